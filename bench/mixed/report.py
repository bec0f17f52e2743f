"""The experiment as a table and a plot."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.mixed.measure import PHASES

LABELS = {
    "alone": "jobs alone",
    "together": "beside machines,\none group",
    "slices": "a slice for each,\nequal weights",
    "weights": "weights",
}


def shares(figures: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """By load and phase, those of every run."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in figures["rows"]:
        found.setdefault(row["load"], {}).setdefault(row["phase"], []).append(row["share"])
    return found


def show(figures: Mapping[str, Any]) -> None:
    weights = figures["weights"]
    out = sys.stdout
    out.write(
        "The batch jobs' part of all work done, when both sides want more than there is; "
        f"{figures['cores']} cores, {figures['machines_per_job']} busy machine threads for each "
        f"job, weights {weights['batch']}:{weights['machines']}. "
        f"Machines: {figures['machines']}.\n\n"
    )
    out.write(f"{'load':8}" + "".join(f"{phase:>12}" for phase in PHASES) + "\n")
    for load, phases in shares(figures).items():
        medians = [statistics.median(phases[phase]) for phase in PHASES]
        out.write(f"{load:8}" + "".join(f"{value:12.2f}" for value in medians) + "\n")
    for note in figures["notes"]:
        out.write(f"note: {note}\n")


def plot(figures: Mapping[str, Any], path: Path) -> None:
    """Bars of the medians, with every run as a dot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    found = shares(figures)
    width = 0.8 / max(len(found), 1)
    for place, (load, phases) in enumerate(found.items()):
        at = [index + (place - (len(found) - 1) / 2) * width for index in range(len(PHASES))]
        medians = [statistics.median(phases[phase]) for phase in PHASES]
        axes.bar(at, medians, width * 0.9, label=load, alpha=0.75)
        for x, phase in zip(at, PHASES, strict=True):
            axes.plot([x] * len(phases[phase]), phases[phase], "k.", markersize=4)
    weights = figures["weights"]
    names = {**LABELS, "weights": f"weights\n{weights['batch']}:{weights['machines']}"}
    axes.set_xticks(range(len(PHASES)), [names[phase] for phase in PHASES])
    axes.set_ylabel("batch jobs' part of all work")
    axes.set_ylim(0, 1.1)
    axes.legend(title="both sides want")
    figure.savefig(path)
