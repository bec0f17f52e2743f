"""The experiment: batch jobs alone; then beside machines that want all there is, with everybody in
one group, in a slice for each side, and with weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.mixed.disk import slow_disk
from bench.mixed.groups import BATCH, MACHINES, sides
from burst.mixed.weights import Weights, write

PHASES = ("alone", "together", "slices", "weights")
# Twice as many as batch jobs: machines run more threads than their virtual cores.
MACHINES_PER_JOB = 2


@dataclass(frozen=True)
class Wanted:
    seconds: float
    runs: int
    batch_weight: int
    machine_weight: int


def measure(wanted: Wanted) -> dict[str, Any]:
    """Rows `{load, phase, run, rate, share}`: work per second of the batch side, and its part of
    what it does alone. Raises NoGroupsError."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    with sides() as top, slow_disk() as disk:
        loads: dict[str, list[str]] = {"cpu": []}
        if disk is None:
            notes.append("no disk under BFQ here: input and output were not measured")
        else:
            loads["disk"] = [str(disk)]
        for load, more in loads.items():
            jobs = os.cpu_count() or 1
            if load == "disk":
                jobs = 2
            for run in range(wanted.runs):
                rates = {
                    phase: _rate(top, load, more, jobs, phase, wanted, notes) for phase in PHASES
                }
                rows += [
                    {
                        "load": load,
                        "phase": phase,
                        "run": run,
                        "rate": round(rate, 1),
                        "share": round(rate / rates["alone"], 3),
                    }
                    for phase, rate in rates.items()
                ]
    return {
        "rows": rows,
        "weights": {"batch": wanted.batch_weight, "machines": wanted.machine_weight},
        "cores": os.cpu_count(),
        "machines_per_job": MACHINES_PER_JOB,
        "machines": "processes in machine.slice in the place of QEMU's threads",
        "notes": sorted(set(notes)),
    }


def _rate(
    top: Path,
    load: str,
    more: Sequence[str],
    jobs: int,
    phase: str,
    wanted: Wanted,
    notes: list[str],
) -> float:
    weights = Weights(batch_slice=BATCH, machine_slice=MACHINES)
    if phase == "weights":
        weights = Weights(wanted.batch_weight, wanted.machine_weight, BATCH, MACHINES)
    notes += [problem.replace(str(top), "") for problem in write(weights, top)]
    # In one group nobody tells a job from a machine: each thread gets the same.
    machine_side = BATCH if phase == "together" else MACHINES
    beside: list[subprocess.Popen[str]] = []
    try:
        if phase != "alone":
            beside = _start(
                top / machine_side, load, more, jobs * MACHINES_PER_JOB, wanted.seconds * 20
            )
        done = _start(top / BATCH, load, more, jobs, wanted.seconds)
        limit = wanted.seconds * 20 + 120
        counts = [int(each.communicate(timeout=limit)[0] or 0) for each in done]
    finally:
        for each in beside:
            each.kill()
            each.communicate(timeout=60)
    return sum(counts) / wanted.seconds


def _start(
    group: Path, load: str, more: Sequence[str], number: int, seconds: float
) -> list[subprocess.Popen[str]]:
    """So many workers in a group, all of them at work."""
    argv = [sys.executable, "-m", "bench.mixed.work", str(group), load, f"{seconds:g}", *more]
    started = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(number)
    ]
    for each in started:
        if not each.stdout or each.stdout.readline() != "ready\n":
            raise RuntimeError(f"a worker did not start: {' '.join(argv)}")
    for each in started:
        if each.stdin:
            each.stdin.write("\n")
            each.stdin.flush()
    return started
