"""Every policy on every trace, load and price model, in processes of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from burst.model import Policy
from burst.simulate.baselines import LinearController, Never, OnePerJob, Utilisation
from burst.simulate.engine import PolicyDriver, Run
from burst.simulate.metrics import Outcome
from burst.simulate.model import ON_DEMAND, ProviderModel
from burst.simulate.production import Production
from burst.simulate.swf import Trace, at_load, read, with_limits

TRACES = Path(__file__).resolve().parent.parent / "traces"
LOADS = (0.7, 0.9, 1.1)
CORE_HOUR = 0.05  # the same for every type, so that only how time is sold differs
PRICES = {"per-second": 1, "per-hour": 3600}  # what is charged for is rounded up to, in seconds
OURS = "ours"
# The site's one number, `min_value`. What is compared is the default of `Policy`, 0: whoever would
# wait too long is moved. Beside it: a site that counts its money, a little and more.
VALUES = (str(Policy().min_value), "0.02", "1")
CAPS = (1, 2, 4, 8, 16, 32, 64, 1_000_000)


@dataclass(frozen=True, slots=True)
class World:
    """What is assumed and might be otherwise; other values show whether a result hangs on it."""

    jobs: int | None = None  # only so many of each trace ...
    skip: int = 0  # ... after so many
    seed: int = 1  # of time limits and boot times
    boot_s: tuple[float, float] = ON_DEMAND.boot_s


AS_GIVEN = World()


@dataclass(frozen=True, slots=True)
class Task:
    """One simulated run; `prices` is empty where the policy does not look at them."""

    trace: str
    load: float
    prices: str
    policy: str
    knobs: tuple[tuple[str, Any], ...]
    world: World = AS_GIVEN


@dataclass(frozen=True, slots=True)
class Point:
    """What a run came to under one price model."""

    task: Task
    prices: str
    cost: float
    outcome: Outcome


def tasks(world: World) -> list[Task]:
    """All runs, the long ones first."""
    found: list[Task] = []
    for trace in sorted(TRACES.glob("*.swf.gz")):
        for load in LOADS:
            for value in VALUES:
                for prices in PRICES:
                    mine = (("value", value),)
                    found.append(Task(trace.name, load, prices, OURS, mine, world))
            for policy, knobs in _others():
                found.append(Task(trace.name, load, "", policy, knobs, world))
    return sorted(found, key=lambda task: task.policy != OURS)


def _others() -> Iterator[tuple[str, tuple[tuple[str, Any], ...]]]:
    yield "never", ()
    for cap in CAPS:
        yield "one-per-job", (("cap", cap),)
        for target in (0.7, 0.9):
            yield "utilisation", (("cap", cap), ("target", target))
        if cap <= 64:  # without a limiter it would never stop growing on a full farm
            for low, rate in ((0.5, 1.0), (0.9, 1.0), (0.9, 0.05)):
                yield "cobald-linear", (("cap", cap), ("low", low), ("high", low), ("rate", rate))


def _driver(task: Task) -> PolicyDriver:
    knobs = dict(task.knobs)
    if task.policy == OURS:
        return Production(site_policy(knobs["value"], task.world.boot_s))
    kinds: dict[str, Any] = {
        "never": Never,
        "one-per-job": OnePerJob,
        "utilisation": Utilisation,
        "cobald-linear": LinearController,
    }
    driver: PolicyDriver = kinds[task.policy](**knobs)
    return driver


def site_policy(value: str, boot: tuple[float, float] = ON_DEMAND.boot_s) -> Policy:
    """The defaults, with the start measured as the site is told to, and the price of slowdown."""
    start = timedelta(seconds=(boot[0] + boot[1]) / 2)
    return Policy(expected_start_cost=start, min_value=Decimal(value))


@lru_cache(maxsize=8)
def prepared(name: str, load: float, world: World = AS_GIVEN) -> Trace:
    """The trace at this load, with limits where it has none."""
    trace = read(TRACES / name)
    until = None if world.jobs is None else world.skip + world.jobs
    trace = replace(trace, jobs=trace.jobs[world.skip : until])
    return with_limits(at_load(trace, load), world.seed)


def provider(prices: str, world: World = AS_GIVEN) -> ProviderModel:
    changes = {"billing_s": PRICES[prices], "boot_s": world.boot_s}
    return ON_DEMAND.model_copy(update=changes)


def simulate(task: Task) -> list[Point]:
    trace = prepared(task.trace, task.load, task.world)
    model = provider(task.prices or "per-second", task.world)
    outcome = Run(trace, _driver(task), {"cloud": model}, seed=task.world.seed).outcome()
    every = [task.prices] if task.prices else list(PRICES)
    thin = replace(outcome, bills=())
    return [
        Point(task, prices, outcome.cost_at(PRICES[prices], ON_DEMAND.minimum_s), thin)
        for prices in every
    ]


def run_all(todo: list[Task], workers: int | None = None) -> Iterator[Point]:
    """Points as they come."""
    count = workers or len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(max_workers=count) as pool:
        for future in as_completed([pool.submit(simulate, task) for task in todo]):
            yield from future.result()
