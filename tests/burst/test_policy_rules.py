"""Who may go, where to, how many at once, in whose turn, and for what money: decided from facts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from burst.actions import Route, Update, Want
from burst.model import (
    Budget,
    Facts,
    Farm,
    Job,
    JobState,
    LeaseState,
    LinkHealth,
    Node,
    NodeState,
    Offer,
    Policy,
    Pool,
    ProviderFacts,
)
from burst.policy import worth
from burst.policy.demand import Candidate, Supply, refusal, shortfall, unserved
from burst.policy.release import idle_too_long
from burst.policy.when import expected_left, local_waits
from burst.policy.which import real_hour
from tests.burst.test_decide import (
    MINUTE,
    OFFER,
    POLICY,
    POOL,
    decided,
    facts,
    lease,
    machine,
    node,
    only,
    why,
)
from tests.burst.test_leases import NOW, a_lease
from tests.burst.test_policy import a_job

HOUR = timedelta(hours=1)
MANY = replace(POLICY, failures_to_pause=99)


def wants(seen: Facts, pools: list[Pool], policy: Policy = MANY) -> list[Want]:
    from itertools import count

    from burst.decide import decide

    ids = count(0xABC)
    return only(decide(seen, pools, policy, lambda: f"{next(ids):08x}{'0' * 24}"), Want)


# Who may go


@pytest.mark.parametrize(
    ("pool", "job", "code"),
    [
        ({"not_users": ("alice",)}, {}, "other-user"),
        ({"not_accounts": ("cms",)}, {}, "other-user"),
        ({"opt_in": ("cloud",)}, {}, "not-opted-in"),
        ({"opt_in": ("cloud",)}, {"comment": "big run, cloud please"}, None),
        ({"opt_in": ("cloud",)}, {"features": ("cloud",)}, None),
        ({"opt_in": ("cloud",)}, {"features": ("cloud", "avx")}, "local-only"),
        ({"opt_out": ("here",)}, {"comment": "here;now"}, "opted-out"),
        ({"opt_out": ("here",)}, {"comment": "nowhere"}, None),
        ({}, {"needs": ("gpu",)}, "local-only"),
        ({"resources": ("gpu",)}, {"needs": ("gpu",)}, None),
        ({"resources": ("gpu",)}, {"needs": ("gpu", "matlab")}, "local-only"),
        ({"max_nodes": 4}, {"nodes": 4, "cores": 16}, None),
        ({"max_nodes": 4}, {"nodes": 4, "cores": 17}, "too-big"),
        ({"max_nodes": 4}, {"nodes": 5, "cores": 5}, "multi-node"),
        ({"max_nodes": 9, "max_machines": 2}, {"nodes": 3, "cores": 3}, "too-big"),
    ],
)
def test_rules_of_a_pool(pool: dict[str, Any], job: dict[str, Any], code: str | None) -> None:
    largest = {"cores": 4, "memory_mb": 8000}
    found = refusal(a_job(**job), replace(POOL, **pool), POLICY, NOW, largest)
    assert (found.code if found else None) == code


# When


def test_the_batch_systems_own_estimate_counts_where_it_is_trusted() -> None:
    soon = a_job("7", 60, estimated_start=NOW + MINUTE)
    assert why(decided(facts(soon)), "job", "7")[0] == "renting", "not trusted unless said so"
    trusting = replace(POLICY, trust_estimates=True)
    assert why(decided(facts(soon), trusting), "job", "7")[0] == "starts-soon"
    past = replace(soon, estimated_start=NOW - MINUTE)
    assert why(decided(facts(past), trusting), "job", "7")[0] == "renting", "it was wrong"


def test_what_a_users_jobs_usually_take_shortens_the_forecast() -> None:
    running = [a_job("r", 60, state=JobState.RUNNING, started=NOW - 3 * MINUTE)]
    shares = {"alice": 0.1}
    plain = local_waits([a_job()], running, 1, NOW, HOUR, HOUR)
    known = local_waits([a_job()], running, 1, NOW, HOUR, HOUR, shares)
    assert (plain, known) == ([57 * 60], [3 * 60])
    late = replace(running[0], started=NOW - 20 * MINUTE)
    assert expected_left(late, NOW, HOUR, 0.1) == 20 * 60, "past the usual: as long again"
    old = replace(running[0], started=NOW - 50 * MINUTE)
    assert expected_left(old, NOW, HOUR, 0.1) == 10 * 60, "never more than it may"


def test_a_wanted_machine_is_not_unwanted_by_a_forecast_at_the_edge() -> None:
    """The job's wait fell below start and margin, but not below the start itself."""
    edge = replace(a_job("busy", 60), state=JobState.RUNNING, node_names=("wn1",))
    for minutes, kept in ((4.5, True), (3.5, False)):
        running = replace(edge, started=NOW - timedelta(minutes=60 - minutes))
        waiting = lease(LeaseState.WANTED, 1)
        seen = facts(leases=(waiting,))
        assert seen.farm is not None
        farm = Farm(NOW, (running, a_job("7", 60)), seen.farm.nodes)
        decision = decided(replace(seen, farm=farm))
        stopped = [update for update in only(decision, Update) if update.lease.stop_reason]
        assert bool(stopped) is not kept
        assert why(decision, "job", "7")[0] in ("on-the-way", "starts-soon")


def test_a_young_job_may_start_on_a_machine_that_is_there_but_none_is_rented_for_it() -> None:
    young = a_job("7", 60, submitted=NOW)
    here = lease(LeaseState.JOINED, 30, reserved=Decimal(2))
    seen = facts(
        young, leases=(here,), machines=(machine(),), nodes=(node(),),
        links={here.id: LinkHealth(up=True, since=NOW - HOUR)},
    )  # fmt: skip
    assert only(decided(seen), Route) == [Route("7", "burst-cms")]
    assert why(decided(seen), "job", "7")[0] == "routed"
    alone = decided(facts(young))
    assert (why(alone, "job", "7")[0], only(alone, Want)) == ("young", [])


# How many


def test_a_coming_core_serves_one_short_job_after_the_other() -> None:
    short = [Candidate(a_job(str(n), 1), MINUTE, 9e9) for n in range(8)]
    assert len(unserved(short, [Supply(1, 10**6)])) == 7
    assert len(unserved(short, [Supply(1, 10**6)], horizon=300.0)) == 2
    busy = Supply(0, 0, soon=((200.0, 1),))
    assert len(unserved(short, [busy], horizon=300.0)) == 6
    assert len(unserved(short, [busy], horizon=100.0)) == 8


def test_a_job_for_several_machines_rents_what_is_missing_or_nothing() -> None:
    wide = a_job("w", 60, nodes=3, cores=6)
    pool = replace(POOL, max_nodes=8)
    three = wants(facts(wide), [pool])
    assert len(three) == 3
    assert wants(facts(wide), [replace(pool, max_machines=2)]) == []
    assert wants(facts(wide, budgets={"cms": Budget("cms", Decimal(1), Decimal(0), Decimal(0))}),
                 [pool]) == [], "money for two of three is money for none"  # fmt: skip
    code, message = why(decided(facts(wide), MANY, replace(pool, max_machines=2)), "job", "w")
    assert (code, "3 nodes at once" in message) == ("too-big", True)


def test_a_job_for_several_machines_goes_when_all_are_there() -> None:
    wide = a_job("w", 60, nodes=2, cores=4)
    pool = replace(POOL, max_nodes=8)
    here = lease(LeaseState.JOINED, 30)
    there = replace(
        lease(LeaseState.JOINED, 30), id="b" * 32, node="cms-aws-bbbbbbbb", machine="i-2",
        address="10.9.0.102", gre_key=2**31 + 7,
    )  # fmt: skip
    links = {one.id: LinkHealth(up=True, since=NOW - HOUR) for one in (here, there)}
    second = replace(node(), name="cms-aws-bbbbbbbb", address="10.9.0.102")
    machines = (machine(), machine(id="i-2", lease_id="b" * 32))
    one = facts(wide, leases=(here,), machines=machines[:1], nodes=(node(),), links=links)
    assert only(decided(one, POLICY, pool), Route) == []
    assert len(only(decided(one, POLICY, pool), Want)) == 1, "one is there, one is missing"
    two = facts(wide, leases=(here, there), machines=machines, nodes=(node(), second), links=links)
    assert only(decided(two, POLICY, pool), Route) == [Route("w", "burst-cms")]


def test_held_machines_of_one_job_are_not_counted_on_by_another() -> None:
    wide = Candidate(a_job("w", nodes=3, cores=6), HOUR, 9e9)
    small = Candidate(a_job("s", cores=2), HOUR, 9e9)
    left = shortfall([wide, small], [Supply(2, 10**6), Supply(2, 10**6)])
    assert [(one.candidate.job.id, one.missing) for one in left] == [("w", 1), ("s", 1)]


def test_spares_are_kept_beyond_the_queue_and_the_freshest_of_them() -> None:
    pool = replace(POOL, spares=1)
    assert len(wants(facts(), [pool])) == 1
    assert wants(facts(), [POOL]) == []
    old = lease(LeaseState.JOINED, 60, idle_since=NOW - HOUR)
    fresh = replace(
        lease(LeaseState.JOINED, 60, idle_since=NOW - HOUR / 2), id="b" * 32, machine="i-2",
        node="cms-aws-bbbbbbbb", address="10.9.0.102", gre_key=2**31 + 7,
    )  # fmt: skip
    nodes = (node(), replace(node(), name="cms-aws-bbbbbbbb"))
    machines = (machine(), machine(id="i-2", lease_id="b" * 32))
    seen = facts(leases=(old, fresh), machines=machines, nodes=nodes)
    decision = decided(seen, POLICY, pool)
    gone = [update.lease.id for update in only(decision, Update) if update.lease.stop_reason]
    assert gone == [old.id]
    assert only(decision, Want) == []


# Where, and in whose turn


def at(provider: str, price: str, **changes: Any) -> ProviderFacts:
    return ProviderFacts(provider, (replace(OFFER, provider=provider, price_per_hour=Decimal(price),
                                            **changes),), ())  # fmt: skip


def test_pools_are_used_by_rank_then_by_what_an_hour_really_costs() -> None:
    aws, bari = POOL, replace(POOL, name="cms-bari", provider="bari", partition="b2")
    seen = facts(a_job("7", 60), providers={"aws": at("aws", "0.40"), "bari": at("bari", "0.30")})
    assert [want.lease.provider for want in wants(seen, [aws, bari])] == ["bari"]
    far = replace(bari, data_cost=Decimal("0.20"))
    assert [want.lease.provider for want in wants(seen, [aws, far])] == ["aws"]
    first = replace(far, rank=0)
    assert [w.lease.provider for w in wants(seen, [replace(aws, rank=1), first])] == ["bari"]


def test_a_pool_with_sick_tunnels_comes_last() -> None:
    aws, bari = POOL, replace(POOL, name="cms-bari", provider="bari", partition="b2")
    there = replace(lease(LeaseState.JOINED, 30), pool="cms-bari", provider="bari")
    seen = facts(
        *(a_job(str(n), 60) for n in range(3)),
        leases=(there,),
        providers={"aws": at("aws", "0.40"), "bari": at("bari", "0.30")},
        links={there.id: LinkHealth(up=True, since=NOW - HOUR, state="degraded")},
    )
    assert wants(seen, [aws, bari])[0].lease.provider == "aws"


def test_spot_is_cheap_for_short_jobs_and_dear_for_long_ones() -> None:
    spot, steady = replace(OFFER, spot=True, price_per_hour=Decimal("0.30")), OFFER
    assert real_hour(steady, POOL, POLICY, 10 * HOUR) == 0.36
    assert real_hour(spot, POOL, POLICY, HOUR) < 0.36 < real_hour(spot, POOL, POLICY, 12 * HOUR)
    for minutes, kind in ((30, True), (12 * 60, False)):
        lent = ProviderFacts("aws", (replace(spot, type="s"), steady), ())
        rich = {"cms": Budget("cms", Decimal(99), Decimal(0), Decimal(0))}
        (want,) = wants(facts(a_job("7", minutes), providers={"aws": lent}, budgets=rich), [POOL])
        assert want.lease.spot is kind


def test_a_scarce_offer_is_shared_between_tenants_in_turn() -> None:
    atlas = replace(
        POOL, name="atlas-aws", tenant="atlas", users=("bob",), partition="b2",
        addresses=("10.9.1.1", "10.9.1.2", "10.9.1.3"),
    )  # fmt: skip
    queue = [a_job(str(n), 60, cores=2) for n in range(8)]
    queue += [a_job(f"b{n}", 60, cores=2, user="bob") for n in range(8)]
    money = {name: Budget(name, Decimal(9), Decimal(0), Decimal(0)) for name in ("cms", "atlas")}
    seen = facts(*queue, budgets=money, providers={"aws": at("aws", "0.36", available=4)})
    assert Counter(w.lease.tenant for w in wants(seen, [POOL, atlas])) == {"cms": 2, "atlas": 2}
    alone = wants(replace(seen, farm=replace(seen.farm, jobs=seen.farm.jobs[:9])), [POOL, atlas]) \
        if seen.farm else []  # fmt: skip
    assert Counter(want.lease.tenant for want in alone) == {"cms": 4}, "nothing lies idle for it"


def test_a_tenants_cap_holds_over_all_its_pools() -> None:
    other = replace(POOL, name="cms-bari", provider="bari", partition="b2")
    lent = {"aws": at("aws", "0.36"), "bari": at("bari", "0.30")}
    seen = facts(*(a_job(str(n), 60, cores=2) for n in range(9)), providers=lent)
    assert len(wants(seen, [POOL, other], replace(MANY, tenant_machines=3))) == 3
    policy = replace(MANY, tenant_machines=3)
    assert why(decided(seen, policy), "job", "8")[0] == "tenant-cap"


# Worth


def test_the_short_and_small_come_first_and_of_equals_the_oldest() -> None:
    old, new = a_job("old", 60, submitted=NOW - HOUR), a_job("new", 60)
    order = [a_job("wide", 60, cores=2), new, old, a_job("short", 5)]
    ranked = worth.by_urgency(
        [
            Candidate(job, HOUR, 9e9, 0.0, worth.urgency(
                job, job.time_limit.total_seconds() if job.time_limit else 0.0,
                (NOW - job.submitted).total_seconds()))
            for job in order
        ]
    )  # fmt: skip
    assert [candidate.job.id for candidate in ranked] == ["short", "old", "new", "wide"]


def test_what_gains_too_little_for_its_money_stays_and_says_so() -> None:
    """An hour of waiting is four times a quarter of an hour, and nothing to a day."""
    policy = replace(POLICY, min_value=Decimal(1))
    rich = {"cms": Budget("cms", Decimal(99), Decimal(0), Decimal(0))}
    short = decided(facts(a_job("7", 15), budgets=rich), policy)
    assert why(short, "job", "7")[0] == "renting"
    long = decided(facts(a_job("7", 24 * 60), budgets=rich), policy)
    code, message = why(long, "job", "7")
    assert (code, only(long, Want)) == ("not-worth", [])
    assert "min_value 1" in message
    assert why(decided(facts(a_job("7", 24 * 60), budgets=rich)), "job", "7")[0] == "renting"


def test_a_machine_that_is_there_anyway_is_not_given_to_what_is_not_worth_it() -> None:
    policy = replace(POLICY, min_value=Decimal(1))
    here = lease(LeaseState.JOINED, 30, reserved=Decimal(20))
    budgets = {"cms": Budget("cms", Decimal(99), Decimal(0), Decimal(20))}
    queue = (a_job("long", 24 * 60), a_job("short", 15))
    seen = facts(
        *queue, leases=(here,), machines=(machine(),), nodes=(node(),), budgets=budgets,
        links={here.id: LinkHealth(up=True, since=NOW - HOUR)},
    )  # fmt: skip
    assert [route.job_id for route in only(decided(seen, policy), Route)] == ["short"]
    assert {r.job_id for r in only(decided(seen), Route)} == {"short", "long"}


# Letting go


def test_an_idle_machine_whose_hour_is_paid_stays_until_the_edge_is_near() -> None:
    hour = timedelta(hours=1)
    idle = a_lease(LeaseState.JOINED, requested=NOW, idle_since=NOW + 10 * MINUTE)
    for minutes, goes in ((20, False), (50, False), (58, True), (61, False), (118, True)):
        now = NOW + minutes * MINUTE
        found = idle_too_long(idle, now, POLICY, work_waits=False, billing=hour)
        assert (found is not None) is goes, minutes


# Every pending job of a mixed queue has an answer, and the right one


def test_each_job_of_a_mixed_queue_of_1000_has_an_answer_that_the_actions_bear_out() -> None:
    kinds: list[tuple[dict[str, Any], set[str]]] = [
        ({}, {"renting", "cap", "on-the-way", "routed"}),
        ({"state": JobState.HELD}, {"held"}),
        ({"partitions": ("gpu",)}, {"other-partition"}),
        ({"user": "mallory"}, {"other-user"}),
        ({"comment": "stay here"}, {"opted-out"}),
        ({"features": ("infiniband",)}, {"local-only"}),
        ({"needs": ("gpu",)}, {"local-only"}),
        ({"nodes": 9, "cores": 9}, {"multi-node"}),
        ({"nodes": 2, "cores": 4}, {"renting", "cap", "on-the-way", "routed"}),
        ({"cores": 64}, {"too-big"}),
        ({"memory_mb": 10**6}, {"too-big"}),
        ({"reason": "Dependency"}, {"lrms-reason"}),
        ({"submitted": NOW}, {"young"}),
        ({"time_limit": timedelta(days=60)}, {"not-worth", "budget"}),
    ]
    queue: list[Job] = []
    expected: dict[str, set[str]] = {}
    for number in range(1000):
        changes, codes = kinds[number % len(kinds)]
        values = {"submitted": NOW - timedelta(seconds=120 + number)} | changes
        queue.append(a_job(str(number), 5 + number % 50, **values))
        expected[str(number)] = codes
    pool = replace(
        POOL, max_nodes=4, opt_out=("here",), max_machines=20,
        addresses=tuple(f"10.9.0.{n}" for n in range(100, 130)),
    )  # fmt: skip
    here = lease(LeaseState.JOINED, 30)
    local = [
        Node(f"wn{n}", NodeState.ALLOCATED, 2, 2, 4000, partitions=("batch",)) for n in range(2, 9)
    ]
    busy = [
        a_job(f"on{n}", 300, cores=2, state=JobState.RUNNING, started=NOW, node_names=(f"wn{n}",))
        for n in range(2, 9)
    ]
    seen = facts(
        *busy,
        *queue,
        leases=(here,),
        machines=(machine(),),
        nodes=(node(), *local),
        links={here.id: LinkHealth(up=True, since=NOW - HOUR)},
        budgets={"cms": Budget("cms", Decimal(500), Decimal(0), Decimal("0.72"))},
        providers={"aws": ProviderFacts("aws", (OFFER, Offer("aws", "big", "", 8, 32768,
                                                            Decimal("1.44"))), (machine(),))},
    )  # fmt: skip
    policy = replace(MANY, min_value=Decimal("0.01"))
    decision = decided(seen, policy, pool)
    answers = Counter(r.id for r in decision.reasons if r.subject == "job")
    assert answers == Counter({job.id: 1 for job in queue}), "each exactly one"
    for job in queue:
        code, message = why(decision, "job", job.id)
        assert code in expected[job.id], (job.id, code, message)
        assert len(message) > 20
    routed = {route.job_id for route in only(decision, Route)}
    said = {r.id for r in decision.reasons if r.subject == "job" and r.code == "routed"}
    assert said == routed
    assert sum(r.code == "renting" for r in decision.reasons if r.subject == "job") > 0
    assert len(only(decision, Want)) == 19
    told = Counter(r.code for r in decision.reasons if r.subject == "job")
    assert len(told) >= 11, told
