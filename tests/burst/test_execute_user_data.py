"""User data that cannot be made fails its lease with a reason; the provider is never asked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

from burst.actions import Launch
from burst.execute import apply
from burst.join.userdata import UserDataError
from burst.lrms.slurm import Slurm
from burst.model import FailureClass, Lease, LeaseState, Machine, Offer, Policy
from burst.providers.base import LaunchRequest

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LEASE = Lease(
    id="ab" * 16, pool="p", tenant="cms", network="farm", provider="aws", type="c5.large",
    zone="a", cores=2, memory_mb=4096, price_per_hour=Decimal("0.1"), state=LeaseState.WANTED,
    node="p-abababab", address="10.9.0.101", gre_key=1, wanted=NOW,
)  # fmt: skip


class Store:
    def __init__(self) -> None:
        self.kept = LEASE

    def lease(self, lease_id: str) -> Lease | None:
        return self.kept

    def want(self, lease: Lease) -> bool:
        raise AssertionError("nothing is wanted here")

    def update(self, lease: Lease) -> None:
        self.kept = lease


class Untouched:
    name = "aws"

    def launch(self, request: LaunchRequest) -> Machine:
        raise AssertionError("the provider was asked")

    def offers(self) -> Sequence[Offer]:
        return ()

    def machines(self) -> Sequence[Machine]:
        return ()

    def terminate(self, machine_ids: Sequence[str]) -> None:
        raise AssertionError("the provider was asked")


def test_user_data_that_cannot_be_made_is_a_reason_and_not_a_crash() -> None:
    def refuse(lease: Lease) -> str:
        raise UserDataError("the pin 'x y' has a blank in it")

    store = Store()
    outcomes = apply(
        [Launch(LEASE.id)], store=store, lrms=Slurm(), providers={"aws": Untouched()},
        user_data=refuse, policy=Policy(), clock=lambda: NOW,
    )  # fmt: skip
    assert [outcome.ok for outcome in outcomes] == [False]
    assert "blank" in outcomes[0].error
    assert store.kept.failure is not None
    assert store.kept.failure.kind is FailureClass.CONFIG
