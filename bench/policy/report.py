"""The comparison as a table and as plots."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.policy.compare import hull, spent
from bench.policy.experiment import OURS, Point


def table(rows: list[dict[str, Any]]) -> None:
    """Slowdown of each policy at what ours costs; one line for each trace, load and price model."""
    from rich.console import Console
    from rich.table import Table

    cases: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        key = (row["trace"], row["load"], row["prices"], row["min_value"])
        cases[key][row["policy"]] = row
    others = [name for name in next(iter(cases.values()), {}) if name != OURS]
    drawn = Table(title="Mean bounded slowdown at equal cost")
    for heading in ("trace", "load", "time sold", "min_value", "cost", "bound", OURS, *others):
        drawn.add_column(heading, justify="left" if heading == "trace" else "right")
    drawn.add_column("best?")
    better: dict[str, list[bool]] = defaultdict(list)
    for key, found in cases.items():
        ours = found[OURS]
        wins = all(ours["bsld"] < found[name]["bsld"] for name in others)
        better[key[3]].append(wins)
        drawn.add_row(
            key[0][:14],
            f"{key[1]:.1f}",
            key[2],
            key[3],
            f"{ours['cost']:.0f}",
            f"{ours['bound_bsld']:.2f}",
            f"{ours['bsld']:.2f}",
            *(f"{found[name]['bsld']:.2f}" for name in others),
            "yes" if wins else "NO",
        )
    console = Console(width=130)
    console.print(drawn)
    for value, won in better.items():
        ratios = [
            found[OURS]["bsld"] / found[OURS]["bound_bsld"]
            for key, found in cases.items()
            if key[3] == value
        ]
        enough = [
            found[OURS]["cost"] >= found[OURS]["no_wait_cost"]
            for key, found in cases.items()
            if key[3] == value
        ]
        console.print(
            f"min_value {value}: ours is better than every other policy at equal cost in "
            f"{sum(won)} of {len(won)} cases, and {min(ratios):.2f} to {max(ratios):.2f} times the "
            f"clairvoyant bound. In {sum(enough)} of the cases a schedule that knows the future "
            "lets nobody wait for no more than ours cost: there the bound of 1 is exact."
        )


def other_way_round(rows: list[dict[str, Any]]) -> None:
    """In how many cases ours is better for what another spends at its best, and the last one."""
    from rich.console import Console

    if not rows:
        return
    better = [row for row in rows if row["ours_bsld"] < row["bsld"]]
    least = max(rows, key=lambda row: float(row["ours_bsld"] / row["bsld"]))
    Console(width=130).print(
        "The other way round: for what another policy spends where its slowdown is lowest, ours "
        f"is better in {len(better)} of {len(rows)} cases. It does least well beside "
        f"{least['policy']} on {least['trace']}, load {least['load']}, {least['prices']}: "
        f"{least['bsld']:.3f} for {least['cost']:.0f}, ours {least['ours_bsld']:.3f} for "
        f"{least['ours_cost']:.0f}."
    )


def plots(points: list[Point], directory: Path) -> None:
    """Cost and slowdown of every setting tried: a picture for each trace, load and price model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    cases: dict[tuple[str, float, str], list[Point]] = defaultdict(list)
    for point in points:
        cases[point.task.trace, point.task.load, point.prices].append(point)
    for (trace, load, prices), here in cases.items():
        figure, axes = pyplot.subplots(figsize=(7, 5))
        for policy in sorted({point.task.policy for point in here} - {"never"}):
            mine = spent((p for p in here if p.task.policy == policy), policy)
            line = hull(mine if policy == OURS else spent(here, policy))
            (drawn,) = axes.plot(
                [one.cost for one in line], [one.bsld for one in line], label=policy
            )
            colour = drawn.get_color()
            axes.scatter([p.cost for p in mine], [p.bsld for p in mine], s=12, color=colour)
        axes.set(xlabel="cost", ylabel="mean bounded slowdown", yscale="log")
        axes.set_title(f"{trace.removesuffix('.swf.gz')}, load {load}, time sold {prices}")
        axes.legend()
        figure.tight_layout()
        figure.savefig(directory / f"{trace.removesuffix('.swf.gz')}-{load}-{prices}.png", dpi=120)
        pyplot.close(figure)
