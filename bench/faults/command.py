"""`./run bench faults`: many stories, and which of them ended in something that must never happen.

A seed is a story: `--seed N -v` tells it again, step by step, the same each time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_GROUP = 20  # stories a worker tells before it reports


@dataclass(slots=True)
class Told:
    """What became of some stories."""

    seeds: int = 0
    failing: dict[int, str] = field(default_factory=dict)
    kills: int = 0
    leases: Counter[str] = field(default_factory=Counter)  # by how they ended
    calls: Counter[str] = field(default_factory=Counter)

    def add(self, other: Told) -> None:
        self.seeds += other.seeds
        self.failing |= other.failing
        self.kills += other.kills
        self.leases += other.leases
        self.calls += other.calls


def add(commands: Any) -> None:
    parser = commands.add_parser("faults", help="the controller in worlds where all goes wrong")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--seeds", type=int, default=10_000, metavar="N", help="how many stories")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first of them")
    parser.add_argument("--seed", type=int, metavar="N", help="only this story")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell it step by step")
    parser.add_argument("--quick", action="store_true", help="200 stories: does it run at all?")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    begin = time.monotonic()
    if options.seed is not None:
        return _one(options.seed, options.verbose)
    count = 200 if options.quick else options.seeds
    told = Told()
    with _until_interrupted():
        for some in _all(range(options.first, options.first + count), options.processes):
            told.add(some)
            for seed, problem in some.failing.items():
                sys.stdout.write(f"seed {seed}: {problem}\n")
                sys.stdout.flush()
            if sys.stderr.isatty():
                told_of = f"{told.seeds} of {count} stories, {len(told.failing)} violations "
                sys.stderr.write(f"\r{told_of}")
    seconds = time.monotonic() - begin
    figures = {
        "seeds": told.seeds,
        "violations": len(told.failing),
        "failing_seeds": sorted(told.failing),
        "problems": {str(seed): text for seed, text in sorted(told.failing.items())},
        "kills": told.kills,
        "leases": dict(sorted(told.leases.items())),
        "calls": dict(sorted(told.calls.items())),
        "seconds": round(seconds, 1),
    }
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    _show(figures)
    return 1 if told.failing else 0


@contextmanager
def _until_interrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the telling, not the report: hours of stories are worth their figures,
    and `seeds` says how many they were."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: the figures are of the stories told so far\n")
    finally:
        signal.signal(signal.SIGTERM, before)


def _one(seed: int, verbose: bool) -> int:
    from lab.simulated.faults import Broken
    from lab.simulated.world import World

    world = World(seed, show=_line if verbose else None)
    try:
        world.run()
    except Broken as error:
        sys.stdout.write(f"seed {seed}: {error}\n")
        return 1
    sys.stdout.write(f"seed {seed}: all is well; {world.story.lines} steps, {world.story.digest}\n")
    return 0


def _line(line: str) -> None:
    sys.stdout.write(line + "\n")


def _all(seeds: range, processes: int) -> Iterator[Told]:
    groups = [seeds[at : at + _GROUP] for at in range(0, len(seeds), _GROUP)]
    if processes <= 1:
        yield from map(tell, groups)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(tell, groups)


def tell(seeds: range) -> Told:
    """Live these stories, one after another, on one store."""
    from gateway.store import Store
    from lab.simulated.faults import Broken
    from lab.simulated.world import World

    told = Told()
    with Store.open("sqlite:///:memory:") as store:
        for seed in seeds:
            world = World(seed, store=store)
            try:
                world.run()
            except Broken as error:
                told.failing[seed] = str(error)
            except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
                # A defect: nobody foresaw it, and the product would have stumbled over it.
                told.failing[seed] = f"{type(error).__name__}: {error}"
            told.seeds += 1
            told.kills += world.kills
            told.calls.update(world.ec2.calls)
            for lease in store.all_leases():
                kind = lease.failure.kind.value if lease.failure else "returned"
                told.leases[kind] += 1
    return told


def _show(figures: dict[str, Any]) -> None:
    out = sys.stdout.write
    out(f"\n{figures['seeds']} stories in {figures['seconds']} s: ")
    out(f"{figures['violations']} violations, {figures['kills']} kills of the gateway\n")
    for title in ("leases", "calls"):
        out(f"  {title}: " + ", ".join(f"{k} {v}" for k, v in figures[title].items()) + "\n")
    for seed in figures["failing_seeds"][:20]:
        out(f"  ./run bench faults --seed {seed} -v\n")
