"""`./run bench policy`: mean bounded slowdown at equal cost, and what a clairvoyant might do."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from bench.policy import report
from bench.policy.compare import Spent, at_cost, at_its_best, spent
from bench.policy.experiment import (
    AS_GIVEN,
    CORE_HOUR,
    LOADS,
    OURS,
    PRICES,
    TRACES,
    VALUES,
    Point,
    World,
    prepared,
    provider,
    run_all,
    tasks,
)
from burst.simulate.bound import lower_bound
from burst.simulate.foresight import cost_of_no_wait

OTHERS = ("never", "one-per-job", "utilisation", "cobald-linear")


def add(commands: Any) -> None:
    parser = commands.add_parser("policy", help="our policy beside others, on recorded queues")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw cost and slowdown there")
    parser.add_argument("--jobs", type=int, help="only so many of each trace: does it run at all?")
    parser.add_argument("--skip", type=int, default=0, help="leave out so many of each trace")
    parser.add_argument("--seed", type=int, default=1, help="of time limits and boot times")
    parser.add_argument(
        "--boot",
        type=float,
        nargs=2,
        metavar=("LEAST", "MOST"),
        default=AS_GIVEN.boot_s,
        help="seconds from a launch to a usable node",
    )
    parser.add_argument("--workers", type=int, help="processes; one for each core unless given")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    begin = time.monotonic()
    world = World(options.jobs, options.skip, options.seed, (options.boot[0], options.boot[1]))
    todo = tasks(world)
    points: list[Point] = []
    for done, point in enumerate(run_all(todo, options.workers), start=1):
        points.append(point)
        if done % 50 == 0:
            sys.stderr.write(f"bench: {done} results after {time.monotonic() - begin:.0f} s\n")
    rows = compare(points, world)
    theirs = at_their_cost(points)
    report.table(rows)
    report.other_way_round(theirs)
    if options.json:
        figures = {
            "rows": [row for row in rows if row["min_value"] == VALUES[0]],
            "rows_at_any_price": [row for row in rows if row["min_value"] != VALUES[0]],
            "rows_at_their_cost": theirs,
            "points": [_flat(point) for point in points],
            "settings": {
                "loads": LOADS,
                "core_hour": CORE_HOUR,
                "prices": PRICES,
                "world": asdict(world),
            },
            "seconds": round(time.monotonic() - begin, 1),
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if options.plots:
        report.plots(points, options.plots)
    return 0


def compare(points: list[Point], world: World = AS_GIVEN) -> list[dict[str, Any]]:
    """For each trace, load and price model: ours, and every other at what ours cost."""
    rows: list[dict[str, Any]] = []
    names = sorted(path.name for path in TRACES.glob("*.swf.gz"))
    for name, load, prices, value in product(names, LOADS, PRICES, VALUES):
        here = [p for p in points if (p.task.trace, p.task.load, p.prices) == (name, load, prices)]
        ours = [
            Spent(p.cost, p.outcome.bsld, p.outcome.mean_wait)
            for p in here
            if p.task.policy == OURS and p.task.knobs == (("value", value),)
        ]
        if not ours:
            continue
        trace = prepared(name, load, world)
        bound = lower_bound(trace, ours[0].cost, CORE_HOUR)
        no_wait = cost_of_no_wait(trace, provider(prices, world))
        found = {OURS: ours[0]}
        found |= {other: at_cost(spent(here, other), ours[0].cost) for other in OTHERS}
        for policy, one in found.items():
            rows.append(
                {
                    "trace": name.removesuffix(".swf.gz"),
                    "load": load,
                    "prices": prices,
                    "policy": policy,
                    "cost": round(one.cost, 2),
                    "mean_wait": round(one.mean_wait, 1),
                    "bsld": round(one.bsld, 4),
                    "bound_bsld": round(bound, 4),
                    "no_wait_cost": round(no_wait, 2),
                    "min_value": value,
                }
            )
    return rows


def at_their_cost(points: list[Point]) -> list[dict[str, Any]]:
    """The other way round: every other policy where it is at its best, and ours for that money.

    `compare` gives each other at most what ours cost, and some want less. Ours is mixed of the
    values of `min_value` as the others are of their settings. "never" costs nothing: left out.
    """
    rows: list[dict[str, Any]] = []
    names = sorted({point.task.trace for point in points})
    for name, load, prices, other in product(names, LOADS, PRICES, OTHERS):
        here = [p for p in points if (p.task.trace, p.task.load, p.prices) == (name, load, prices)]
        if other == "never" or other not in {point.task.policy for point in here}:
            continue
        best = at_its_best(spent(here, other))
        ours = at_cost(spent(here, OURS), best.cost)
        rows.append(
            {
                "trace": name.removesuffix(".swf.gz"),
                "load": load,
                "prices": prices,
                "policy": other,
                "cost": round(best.cost, 2),
                "bsld": round(best.bsld, 4),
                "ours_cost": round(ours.cost, 2),
                "ours_bsld": round(ours.bsld, 4),
            }
        )
    return rows


def _flat(point: Point) -> dict[str, Any]:
    task = asdict(point.task)
    knobs = {"knobs": dict(point.task.knobs)}
    return task | point.outcome.row() | knobs | {"prices": point.prices, "cost": point.cost}
