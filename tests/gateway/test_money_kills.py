"""Budgets, quotas and flashes through kill -9, retries and lost answers, at the end of a month."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

import pytest

from burst import funds
from burst.model import Lease, LeaseState
from burst.policy import money
from gateway.store import Store
from gateway.store import store as storing
from lab.simulated.faults import Broken
from tests.gateway.money_world import MoneyWorld, always, prepare

SHORT, LONG = range(2), range(2, 60)
KINDS = {"money": {}, "core-hours": {"quota": True}, "flash": {"with_flash": True}}


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with Store.open("sqlite:///:memory:") as opened:
        yield opened


def live(kind: type[MoneyWorld], seeds: range, store: Store) -> tuple[int, list[Lease]]:
    """Kills, and all leases; fails for every seed in which something broke."""
    kills = 0
    leases: list[Lease] = []
    broken: list[str] = []
    for seed in seeds:
        world = kind(seed, store)
        try:
            world.run()
        except Broken as error:
            broken.append(f"seed {seed}: {error}")
        kills += world.kills
        leases += store.all_leases()
    assert not broken, "\n".join(broken)
    return kills, leases


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "seeds",
    [SHORT, pytest.param(LONG, marks=[pytest.mark.long, pytest.mark.timeout(900)])],
    ids=str,
)
def test_no_limit_is_passed_whatever_goes_wrong(
    name: str, seeds: range, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked after every round: what is spent and reserved, and what the cloud would bill, under
    every limit of every period; a flash under its own; and at the end that the books add up."""
    kills, leases = live(prepare(monkeypatch, **KINDS[name]), seeds, store)
    assert kills > 0, "the control: there were kills"
    assert any(lease.cost for lease in leases), "the control: machines cost"
    if name == "flash":
        assert any(lease.flash and lease.joined for lease in leases)
    if name == "core-hours":
        assert {lease.account for lease in leases} <= {"cms@aws", "atlas@aws"}


def test_a_world_notices_money_that_is_not_reserved(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: with hardly anything set aside, some seed must pass its limit."""
    kind = prepare(monkeypatch)
    monkeypatch.setattr(money, "first_reservation", lambda *_: Decimal("0.000001"))
    monkeypatch.setattr(funds, "carry", lambda _paper: None)
    with pytest.raises(AssertionError, match="seed"):
        live(kind, range(1, 60), store)


def test_the_store_itself_refuses_what_was_decided_on_old_numbers(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = prepare(monkeypatch)
    world = kind(1, store)
    world.run()
    pool = world.pools[0]
    limit = world.books.limits(pool.account)[0].limit
    one = next(lease for lease in store.all_leases() if lease.tenant == pool.tenant)
    wish = replace(
        one, id="f" * 32, state=LeaseState.WANTED, ended=None, reserved=limit + 1, cost=Decimal(0)
    )
    assert not world.books.want(wish)
    always(world)
    monkeypatch.setattr(storing, "fits", lambda *_: True)  # the control: its check is what refuses
    assert world.books.want(wish)
    with pytest.raises(Broken, match="reserved"):
        always(world)
