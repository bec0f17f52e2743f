"""Flash requests: what is chosen, what money and time bound, and that it is kept until its end."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burst.actions import Decision, Drain, Update, Want
from burst.decide import decide
from burst.flashing import quote
from burst.model import (
    Budget,
    Facts,
    Farm,
    Flash,
    Lease,
    LeaseState,
    Machine,
    MachineState,
    Node,
    NodeState,
    Offer,
    Policy,
    Pool,
    ProviderFacts,
)
from burst.observe import world
from burst.policy import flash, money
from burst.round import Round
from tests.gateway.leases import T0, lease

HOUR = timedelta(hours=1)
POLICY = Policy()
OFFERS = (
    Offer("aws", "small", "a", 2, 4096, Decimal("0.30")),
    Offer("aws", "large", "a", 8, 16384, Decimal("1.00")),
)
POOL = Pool(
    name="cms-aws",
    tenant="cms",
    network="farm",
    provider="aws",
    partition="burst-cms",
    from_partitions=("batch",),
    types=("small", "large"),
    max_machines=20,
    addresses=tuple(f"10.9.0.{n}" for n in range(101, 131)),
)


def request(cores: int = 16, hours: float = 2, most: str | None = None) -> Flash:
    limit = None if most is None else Decimal(most)
    return Flash("f1", "cms", cores, T0, T0 + hours * HOUR, "", limit)


def proven() -> Lease:
    """A machine that joined: its pool may start as many as it likes."""
    return lease(90, state=LeaseState.GONE, joined=T0, ended=T0, node="cms-aws-x")


def facts(
    *flashes: Flash, leases: tuple[Lease, ...] = (), limit: str = "100", **more: object
) -> Facts:
    living = [one for one in leases if one.living]
    reserved = sum((one.reserved for one in living), Decimal(0))
    machines = tuple(
        Machine(
            one.machine,
            "aws",
            one.id,
            MachineState.RUNNING,
            one.type,
            "a",
            "10.0.0.1",
            "203.0.113.9",
        )
        for one in living
        if one.machine
    )
    values = {
        "now": T0,
        "farm": Farm(T0, (), ()),
        "leases": leases,
        "providers": {"aws": ProviderFacts("aws", OFFERS, machines)},
        "budgets": {"cms": Budget("cms", Decimal(limit), Decimal(0), reserved)},
        "flashes": flashes,
        "watching_since": T0 - HOUR,
    }
    return Facts(**(values | more))  # type: ignore[arg-type]


def deciding(given_facts: Facts, pool: Pool = POOL) -> Decision:
    ids = itertools.count(1)
    return decide(given_facts, [pool], POLICY, lambda: f"{next(ids):08x}{'0' * 24}")


def wanted(decision: Decision) -> list[Lease]:
    return [action.lease for action in decision.actions if isinstance(action, Want)]


def why(decision: Decision) -> tuple[str, str]:
    (reason,) = [reason for reason in decision.reasons if reason.subject == "flash"]
    return reason.code, reason.message


def test_it_is_served_without_any_job_in_the_queue() -> None:
    decision = deciding(facts(request(), leases=(proven(),)))
    assert [(one.type, one.flash) for one in wanted(decision)] == [("large", "f1")] * 2
    assert why(decision)[0] == "flash-served"
    assert wanted(deciding(facts(leases=(proven(),)))) == [], "the control: without it, nothing"


def test_its_whole_time_is_reserved_before_the_launch() -> None:
    for one in wanted(deciding(facts(request(hours=3), leases=(proven(),)))):
        assert one.reserved >= money.price_of(one.price_per_hour, 3 * HOUR + POLICY.return_time)


def test_the_quote_is_what_is_rented() -> None:
    asked = request(cores=11)
    given_facts = facts(leases=(proven(),))
    paper = Round.begin(world(given_facts, POLICY), [POOL], POLICY, lambda: "0" * 32)
    told = quote(paper, asked)
    rented = wanted(deciding(replace(given_facts, flashes=(asked,))))
    assert sorted((part.type, part.count) for part in told.parts) == sorted(
        (kind, sum(one.type == kind for one in rented)) for kind in {one.type for one in rented}
    )
    assert told.reserved[""] == sum(one.reserved for one in rented)
    assert told.cores == sum(one.cores for one in rented) >= 11


@pytest.mark.parametrize(
    ("asked", "limit", "code"),
    [
        (request(cores=1000), "1000", "flash-cap"),
        (request(most="2.50"), "100", "flash-max-cost"),
        (request(), "2.50", "flash-budget"),
        (replace(request(), provider="bari"), "100", "flash-no-offer"),
    ],
)
def test_what_is_too_much_is_said_so(asked: Flash, limit: str, code: str) -> None:
    decision = deciding(facts(asked, leases=(proven(),), limit=limit))
    assert why(decision)[0] == code
    assert sum(one.reserved for one in wanted(decision)) <= Decimal(limit)


def test_an_unproven_pool_starts_only_a_few() -> None:
    decision = deciding(facts(request(cores=80)))
    assert len(wanted(decision)) == POLICY.failures_to_pause
    assert "until one of them has joined" in why(decision)[1]


def test_a_soft_limit_does_not_bar_a_flash() -> None:
    soft = {"cms": Budget("cms", Decimal(100), Decimal(50), Decimal(0), soft=Decimal(40))}
    assert wanted(deciding(facts(request(), leases=(proven(),), budgets=soft)))


def test_nothing_is_rented_while_the_batch_system_is_silent_or_it_is_over() -> None:
    assert not wanted(deciding(facts(request(), leases=(proven(),), farm=None)))
    over = (request(hours=0), replace(request(), cancelled=T0))
    for one in over:
        assert not wanted(deciding(facts(one, leases=(proven(),))))


def joined(flash_id: str) -> Lease:
    long_ago = T0 - HOUR
    return lease(
        1,
        state=LeaseState.JOINED,
        machine="i-1",
        node="cms-aws-00000001",
        flash=flash_id,
        requested=long_ago,
        joined=long_ago,
        idle_since=long_ago,
        reserved=Decimal(20),
        type="small",
    )


def released(asked: Flash, mine: Lease) -> bool:
    node = Node(mine.node, NodeState.IDLE, 2, 0, 4096, mine.address, ("burst-cms",), ("burst-cms",))
    decision = deciding(facts(asked, leases=(mine,), farm=Farm(T0, (), (node,))))
    return any(isinstance(action, Drain) for action in decision.actions)


def test_its_idle_machines_are_kept_until_the_end_and_no_longer() -> None:
    assert not released(request(cores=2), joined("f1"))
    assert released(replace(request(cores=2), cancelled=T0), joined("f1"))
    assert released(request(cores=2, hours=0), joined("f1"))
    assert released(request(cores=2), joined("")), "the control: an idle machine of the queue's"


def test_money_stays_reserved_until_the_end() -> None:
    mine = replace(joined("f1"), reserved=Decimal("0.20"))
    node = Node(mine.node, NodeState.IDLE, 2, 0, 4096, mine.address, ("burst-cms",), ("burst-cms",))
    given_facts = facts(request(cores=2), leases=(mine,), farm=Farm(T0, (), (node,)))
    (update,) = [a.lease for a in deciding(given_facts).actions if isinstance(a, Update)]
    spent = money.accrued(mine, T0)
    assert update.reserved >= spent + money.price_of(mine.price_per_hour, 2 * HOUR)


offers = st.lists(
    st.builds(
        Offer,
        provider=st.just("aws"),
        type=st.sampled_from(["a", "b", "c"]),
        zone=st.just("z"),
        cores=st.integers(1, 32),
        memory_mb=st.just(1024),
        price_per_hour=st.decimals(0, 5, places=3),
        available=st.none() | st.integers(0, 5),
        spot=st.booleans(),
    ),
    max_size=4,
    unique_by=lambda one: (one.type, one.spot),
)


@given(
    offers,
    st.integers(1, 100),
    st.integers(0, 12),
    st.decimals(0, 50, places=2),
    st.none() | st.decimals(0, 20, places=2),
    st.decimals(0, 5, places=2),
)
def test_no_choice_passes_a_bound_or_stops_without_a_reason(
    given_offers: list[Offer],
    cores: int,
    machines: int,
    free: Decimal,
    most: Decimal | None,
    spent: Decimal,
) -> None:
    asked = replace(request(cores), max_cost=most)
    means = flash.Means(given_offers, machines, free)
    choice = flash.choose(asked, cores, spent, means, T0, POLICY)
    assert len(choice.offers) <= machines
    assert (
        choice.reserve <= free
        or choice.reserve == 0
        or not any(offer.price_per_hour for offer in choice.offers)
    )
    if most is not None and choice.offers:
        assert spent + choice.cost <= most
    for offer in given_offers:
        if offer.available is not None:
            assert choice.offers.count(offer) <= offer.available
    assert bool(choice.short) == (choice.cores < cores)
    if choice.offers:
        without_last = choice.cores - choice.offers[-1].cores
        assert without_last < cores, "no machine beyond what was asked for"


def test_machines_that_failed_count_against_the_most_it_may_cost() -> None:
    dead = lease(
        7, state=LeaseState.FAILED, flash="f1", ended=T0 - HOUR, cost=Decimal("1.50"), type="small"
    )
    asked = request(cores=2, hours=1, most="1.60")
    spent = {"f1": Decimal("1.50")}
    given_facts = facts(asked, leases=(proven(), dead), flash_spent=spent)
    assert why(deciding(given_facts))[0] == "flash-max-cost"
    assert wanted(deciding(replace(given_facts, flash_spent={}, leases=(proven(),))))
