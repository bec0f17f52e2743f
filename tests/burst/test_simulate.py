"""The simulator: traces read, jobs scheduled, machines charged, the production decision driven."""

from __future__ import annotations

import gzip
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burst.decide import decide
from burst.model import Policy
from burst.simulate import production
from burst.simulate.baselines import Never, OnePerJob, Utilisation
from burst.simulate.bound import lower_bound
from burst.simulate.catalogue import UnknownPolicy, policy_named
from burst.simulate.engine import PolicyDriver, Run
from burst.simulate.foresight import cost_of_no_wait
from burst.simulate.metrics import Outcome, bounded_slowdown
from burst.simulate.model import (
    ON_DEMAND,
    MachineType,
    ModelError,
    ProviderModel,
    read_providers,
)
from burst.simulate.production import Production
from burst.simulate.swf import (
    Trace,
    TraceError,
    TraceJob,
    at_load,
    read,
    repeated,
    with_limits,
)

HEADER = "; MaxProcs: 4\n;  Note: made by hand\n"


def job(number: int, submit: float, run: float, cores: int = 1, limit: float = 0) -> TraceJob:
    return TraceJob(number, submit, run, cores, limit or run, "u1")


def trace(*jobs: TraceJob, cores: int = 4) -> Trace:
    return Trace("tiny", cores, jobs)


def busy(count: int = 40, run: float = 600.0, cores: int = 4) -> Trace:
    """Far more than the site's cores can do at once."""
    return trace(*(job(i, 10.0 * i, run) for i in range(count)), cores=cores)


def outcome(
    queue: Trace, policy: PolicyDriver, model: ProviderModel = ON_DEMAND, seed: int = 1
) -> Outcome:
    return Run(queue, policy, {"cloud": model}, seed=seed).outcome()


# Traces


def line(*values: float) -> str:
    return " ".join(str(value) for value in (*values, *[-1] * (18 - len(values))))


def test_a_trace_is_read_with_its_header_and_what_never_ran_is_left_out(tmp_path: Path) -> None:
    text = HEADER + "\n".join([line(1, 0, -1, 60, 2), line(2, 5, -1, -1, 2), line(3, 9, -1, 7, -1)])
    plain, packed = tmp_path / "a.swf", tmp_path / "a.swf.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    assert read(plain) == read(packed)
    found = read(plain)
    assert (found.cores, [one.number for one in found.jobs]) == (4, [1])


@pytest.mark.parametrize(
    ("text", "word"),
    [("1 2 three\n", ":1: "), ("; x: y\n1 2 3\n", ":2: 3 columns"), ("; MaxProcs: 4\n", "no job")],
)
def test_what_is_no_trace_is_refused_with_its_line(text: str, word: str, tmp_path: Path) -> None:
    path = tmp_path / "a.swf"
    path.write_text(text)
    with pytest.raises(TraceError, match=word):
        read(path)


def test_load_is_set_by_the_pace_of_arrivals_alone() -> None:
    scaled = at_load(busy(), 0.5)
    assert scaled.load == pytest.approx(0.5)
    assert [one.run for one in scaled.jobs] == [one.run for one in busy().jobs]
    twice = repeated(busy(count=10), 25)
    assert len(twice.jobs) == 25
    assert [one.submit for one in twice.jobs] == sorted(one.submit for one in twice.jobs)


def test_made_up_limits_cover_the_run_and_given_ones_stay() -> None:
    queue = trace(*(replace(job(i, i, 100.0 * i + 1), limit=None) for i in range(50)))
    limits = [one.limit for one in with_limits(queue).jobs]
    assert all(limit >= one.run for limit, one in zip(limits, queue.jobs, strict=True) if limit)
    assert with_limits(queue) == with_limits(queue)
    assert with_limits(busy()) == busy()


# The farm


def test_jobs_start_in_order_and_a_small_one_overtakes_only_if_it_delays_nobody() -> None:
    """Four cores: 1 takes three of them until 100; 2 wants all four; 3 fits beside and ends in
    time, 4 would end too late."""
    queue = trace(job(1, 0, 100, 3), job(2, 1, 50, 4), job(3, 2, 90), job(4, 3, 200))
    run = Run(queue, Never(), {"cloud": ON_DEMAND})
    run.outcome()
    assert [work.start for work in run.works] == [0, 100, 2, 150]


def test_a_job_for_several_machines_gets_all_of_them_or_none() -> None:
    queue = trace(job(1, 0, 5000, 4), job(2, 0, 600, 12))
    model = ProviderModel(machines={"c4": MachineType(cores=4, price=Decimal(1))})
    small = Production(Policy(), cap=2)
    assert outcome(trace(*queue.jobs, cores=12), small, model).borrowed_jobs == 0
    run = Run(trace(*queue.jobs, cores=12), Production(Policy(), cap=3), {"cloud": model})
    found = run.outcome()
    assert found.borrowed_jobs == 1
    assert found.machines == 3
    assert len(run.works[1].on) == 3


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3000), st.integers(1, 3000), st.integers(1, 8)),
        min_size=1,
        max_size=25,
    ),
    st.sampled_from(["never", "one-per-job,cap=3", "utilisation,cap=3", "ours,cap=3"]),
    st.integers(1, 99),
)
def test_every_job_runs_once_and_no_core_twice(
    shapes: list[tuple[int, int, int]], name: str, seed: int
) -> None:
    jobs = sorted((job(i, *shape) for i, shape in enumerate(shapes)), key=lambda one: one.submit)
    model = ON_DEMAND.model_copy(update={"crashes_per_hour": 0.5, "never_boots": 0.1})
    run = Run(trace(*jobs, cores=8), policy_named(name, Policy()), {"cloud": model}, seed=seed)
    found = run.outcome()
    assert found.jobs == len(jobs), "all have ended"
    assert run.site.free == 8
    assert run.site.busy_cores == run.site.open_cores == 0
    assert not run.machines
    edges = [(work.start, work.cores) for work in run.works if work.place == "local"]
    edges += [(work.start + work.run, -work.cores) for work in run.works if work.place == "local"]
    used = peak = 0
    for _, cores in sorted(edges):
        used += cores
        peak = max(peak, used)
    assert peak <= 8


# Money and metrics


def test_time_is_charged_in_the_pieces_it_is_sold_in() -> None:
    assert ON_DEMAND.charged_s(10) == 60
    assert ON_DEMAND.charged_s(61.5) == 62
    assert ON_DEMAND.model_copy(update={"billing_s": 3600}).charged_s(3601) == 7200
    found = outcome(busy(), OnePerJob(cap=4))
    assert found.cost == pytest.approx(found.cost_at(1, 60))
    assert found.cost_at(3600, 60) > found.cost > 0


def test_slowdown_is_bounded_for_very_short_jobs() -> None:
    assert bounded_slowdown(0, 1) == 1
    assert bounded_slowdown(90, 10) == 10
    assert bounded_slowdown(99, 1) == 10


def test_borrowing_helps_and_costs_and_the_same_seed_gives_the_same() -> None:
    never, ours = outcome(busy(), Never()), outcome(busy(), Production(Policy()))
    assert (never.cost, never.machines) == (0, 0)
    assert ours.bsld < never.bsld
    assert 0 < ours.elasticity.time_under < never.elasticity.time_under
    assert ours.cost > 0
    assert outcome(busy(), Production(Policy())) == ours


def test_a_flash_of_short_jobs_on_a_full_small_farm_is_served_at_once() -> None:
    """Twenty jobs of half a minute on two cores, as in the lab: the start is short there, and all
    else is as a site gets it."""
    lab = ON_DEMAND.model_copy(update={"boot_s": (15.0, 25.0)})
    second = timedelta(seconds=1)
    policy = Policy(expected_start_cost=20 * second, margin=2 * second, idle_release=8 * second)
    queue = trace(*(job(i, 0.1 * i, 30, limit=60) for i in range(20)), cores=2)
    run = Run(queue, Production(policy), {"cloud": lab}, interval=5.0)
    found = run.outcome()
    assert found.borrowed_jobs >= 10
    first = min(work.on[0].launched for work in run.works if work.on)
    assert first <= policy.min_job_age.total_seconds() + 5, "as soon as it was seen twice"
    assert found.makespan < outcome(queue, Never()).makespan / 2


def test_only_the_sites_own_jobs_coming_and_going_ask_for_no_decision() -> None:
    """A machine is kept by a long job; beside it forty short ones come and go here."""
    long = [job(i, 0, 40_000, 4) for i in range(2)]
    short = [job(10 + i, 5000 + 100 * i, 50) for i in range(40)]
    quiet = Run(trace(*long, cores=5), Production(Policy()), {"cloud": ON_DEMAND})
    busy_here = Run(trace(*long, *short, cores=5), Production(Policy()), {"cloud": ON_DEMAND})
    asked: list[int] = []
    for run in (quiet, busy_here):
        with pytest.MonkeyPatch.context() as patched:
            calls: list[int] = []
            patched.setattr(
                production, "decide", lambda *facts, calls=calls: calls.append(1) or decide(*facts)
            )
            assert run.outcome().machines == 1
        asked.append(len(calls))
    assert asked[1] <= asked[0] + 5


def test_a_budget_holds_in_a_simulated_run_as_well() -> None:
    rich = outcome(busy(), Production(Policy()))
    poor = outcome(busy(), Production(Policy(), budget=Decimal("0.3")))
    assert 0 < poor.cost <= 0.3 < rich.cost


def test_time_sold_by_the_hour_is_used_to_its_end() -> None:
    """A machine whose hour is paid stays; sold by the second it goes when idle for long enough."""
    pause = 1500.0
    jobs = [job(i, 0, 300) for i in range(8)] + [job(9 + i, pause, 300) for i in range(8)]
    by_hour = ON_DEMAND.model_copy(update={"billing_s": 3600})
    hour = outcome(trace(*jobs, cores=2), Production(Policy()), by_hour)
    second = outcome(trace(*jobs, cores=2), Production(Policy()))
    assert hour.machines < second.machines


def test_the_clairvoyant_bound_holds_for_every_policy_and_falls_with_money() -> None:
    queue = busy(count=120, run=900.0)
    before = float("inf")
    for policy in (Never(), Utilisation(cap=2), OnePerJob(cap=2), Production(Policy())):
        found = outcome(queue, policy)
        assert 1 <= lower_bound(queue, found.cost, 0.05, steps=60) <= found.bsld
    for cost in (0.0, 0.5, 5.0):
        bound = lower_bound(queue, cost, 0.05, steps=60)
        assert bound <= before + 0.05
        before = bound
    assert lower_bound(queue, 0.0, 0.05, steps=60) > 2, "the control: it is not always one"


def test_one_who_knows_the_future_pays_for_boot_and_run_and_for_nothing_idle() -> None:
    """Four cores here, taken until 1000; the next two jobs fit on one borrowed machine of four."""
    first, second = job(1, 0, 1000, 4), job(2, 100, 300, 2)
    assert cost_of_no_wait(trace(first), ON_DEMAND) == 0
    queue = trace(first, second, job(3, 200, 400, 2), job(4, 1000, 50, 4))
    held = ON_DEMAND.boot_s[1] + 500  # from before 100 until 600
    assert cost_of_no_wait(queue, ON_DEMAND) == pytest.approx(0.20 * held / 3600)
    late = trace(first, second, job(3, 900, 50, 2))
    by_hour = ON_DEMAND.model_copy(update={"billing_s": 3600})
    assert cost_of_no_wait(late, by_hour) == pytest.approx(0.20), "its hour is paid: it stays"
    both = 2 * ON_DEMAND.boot_s[1] + 300 + 50
    assert cost_of_no_wait(late, ON_DEMAND) == pytest.approx(0.20 * both / 3600)


# What is named on the command line


def test_policies_have_names_and_numbers_and_errors_name_those_there_are() -> None:
    policy = policy_named("ours,min_value=2,min_job_age=5,cap=7", Policy())
    assert isinstance(policy, Production)
    assert (policy.policy.min_value, policy.cap) == (Decimal(2), 7)
    assert policy.policy.min_job_age.total_seconds() == 5
    for text, word in (("mine", "one-per-job"), ("never,cap=1", "no numbers"), ("ours,x=1", "cap")):
        with pytest.raises(UnknownPolicy, match=word):
            policy_named(text, Policy())
    with pytest.raises(UnknownPolicy, match="NUMBER=VALUE"):
        policy_named("ours,cap", Policy())


def test_providers_are_read_and_what_is_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lent.yaml"
    path.write_text("aws:\n  boot_s: [60, 90]\n  machines:\n    a: {cores: 8, price: 0.4}\n")
    assert read_providers(path)["aws"].machines["a"].memory == 16384
    path.write_text("aws:\n  machines:\n    a: {cores: 8, prise: 0.4}\n")
    with pytest.raises(ModelError, match=r"aws\.machines\.a\.price"):
        read_providers(path)
    with pytest.raises(ModelError, match="cannot be read"):
        read_providers(tmp_path / "none")
