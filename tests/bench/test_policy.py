"""Policies compared at equal cost: the curve each gets, and that a short bench runs to its end."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from bench.policy import command, experiment
from bench.policy.compare import Spent, at_cost, hull
from bench.scale.decide import exponent, one
from burst.simulate.metrics import Elasticity, Outcome

points = st.lists(
    st.builds(Spent, st.floats(0, 1e4), st.floats(1, 1e4), st.floats(0, 1e5)),
    min_size=1,
    max_size=30,
)


def test_what_lies_between_two_settings_can_be_had_by_mixing_them() -> None:
    never, some, much = Spent(0, 100, 9), Spent(10, 20, 3), Spent(30, 10, 1)
    line = [never, some, much, Spent(20, 90, 9)]
    assert hull(line) == [never, some, much]
    assert at_cost(line, 5).bsld == 60
    assert at_cost(line, 20) == Spent(20, 15, 2)
    assert at_cost(line, 99) == much, "nobody is asked to spend more than it likes"
    assert at_cost(line, 0) == never


@given(points, st.floats(0, 1e4))
def test_a_policy_gets_no_less_than_its_best_affordable_setting(
    found: list[Spent], cost: float
) -> None:
    affordable = [one for one in found if one.cost <= cost]
    if affordable:
        got = at_cost(found, cost)
        assert got.bsld <= min(one.bsld for one in affordable) + 1e-6
        assert got.cost <= cost + 1e-6


def test_a_short_bench_compares_every_policy_in_every_case() -> None:
    world = experiment.World(jobs=40)
    some = [
        task
        for task in experiment.tasks(world)
        if task.load == 0.9 and dict(task.knobs).get("cap", 4) == 4
    ]
    some = [task for task in some if task.policy != "cobald-linear"]
    found = [point for task in some for point in experiment.simulate(task)]
    rows = command.compare(found, world)
    traces = {path.name.removesuffix(".swf.gz") for path in experiment.TRACES.glob("*.gz")}
    assert len(traces) == 2
    cases = {(row["trace"], row["load"], row["prices"], row["min_value"]) for row in rows}
    assert len(cases) == 2 * 1 * 2 * len(experiment.VALUES)
    assert {row["policy"] for row in rows} == {"ours", *command.OTHERS}
    for row in rows:
        assert row["bound_bsld"] <= row["bsld"]
        assert set(row) >= {"trace", "load", "prices", "policy", "cost", "mean_wait", "bsld"}


def test_ours_gets_no_more_money_than_another_at_its_best() -> None:
    """Of two settings of ours the one that the other's money buys, and a mixture in between."""
    found = [
        _point("never", 0, 100),
        _point("one-per-job", 10, 20),
        _point("one-per-job", 30, 25),  # dearer and worse: not its best
        _point("ours", 5, 30),
        _point("ours", 15, 10),
    ]
    (row,) = command.at_their_cost(found)
    assert (row["policy"], row["cost"], row["bsld"]) == ("one-per-job", 10, 20)
    assert (row["ours_cost"], row["ours_bsld"]) == (10, 20)


def _point(policy: str, cost: float, bsld: float) -> experiment.Point:
    task = experiment.Task("a.swf.gz", 0.7, "per-second", policy, ())
    idle = Elasticity(*(0.0 for _ in fields(Elasticity)))
    outcome = Outcome(policy, "a", 1, 0, 0, 0, bsld, cost, 0, 0, 0, 0, idle, 1, 1, ())
    return experiment.Point(task, "per-second", cost, outcome)


def test_the_traces_are_those_that_are_named() -> None:
    readme = (Path(experiment.TRACES) / "README.md").read_text()
    assert all(path.name in readme for path in experiment.TRACES.glob("*.gz"))


def test_a_decision_on_a_small_site_is_measured() -> None:
    found = one(200, 20, 20)
    assert found["seconds"] > 0
    assert found["reasons"] >= 200
    assert exponent([(10, 1), (100, 10), (1000, 100)]) == 1
