"""Demand and supply over time as pictures; needs matplotlib, which a site need not have."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from burst.simulate.engine import Run


class PlotMissing(Exception):  # noqa: N818 - it is missing, and that is all
    """Pictures need matplotlib."""


def draw(runs: Iterable[Run], directory: Path) -> None:
    """Borrowed cores that were wanted, and that were there, over time: a picture a policy."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise PlotMissing("pictures need matplotlib: pip install matplotlib") from None

    directory.mkdir(parents=True, exist_ok=True)
    for number, run in enumerate(runs, start=1):
        hours = [when / 3600 for when, _, _ in run.meter.curve]
        figure, axes = pyplot.subplots(figsize=(9, 4))
        axes.step(hours, [demand for _, demand, _ in run.meter.curve], where="post", label="demand")
        axes.step(hours, [supply for _, _, supply in run.meter.curve], where="post", label="supply")
        axes.set(xlabel="hours", ylabel="borrowed cores", title=run.policy.name)
        axes.legend()
        figure.tight_layout()
        figure.savefig(directory / f"{number}-{run.policy.name.partition(',')[0]}.png", dpi=120)
        pyplot.close(figure)
