"""Leases for tests: one plain maker and a strategy over every field."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, get_type_hints

from hypothesis import strategies as st

from burst.model import Failure, FailureClass, Lease, LeaseState

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def lease(number: int = 1, **changes: Any) -> Lease:
    base = Lease(
        id=f"{number:032x}",
        pool="cms-aws",
        tenant="cms",
        network="farm",
        provider="aws",
        type="c5.large",
        zone="eu-south-1a",
        cores=2,
        memory_mb=4096,
        price_per_hour=Decimal("0.101"),
        state=LeaseState.WANTED,
        node=f"cms-aws-{number}",
        address=f"10.9.0.{100 + number}",
        gre_key=1000 + number,
        wanted=T0,
    )
    return replace(base, **changes)


instants = st.integers(0, 4 * 10**15).map(lambda us: T0 + timedelta(microseconds=us))
money = st.decimals(min_value=0, max_value=10**6, places=6, allow_nan=False, allow_infinity=False)
words = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40)
maybe = st.none() | instants

_BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    str: words,
    int: st.integers(1, 2**32 - 1),
    bool: st.booleans(),
    Decimal: money,
    datetime: instants,
    datetime | None: maybe,
    LeaseState: st.sampled_from(LeaseState),
    Failure | None: st.none()
    | st.builds(Failure, kind=st.sampled_from(FailureClass), message=words),
}
_HINTS = get_type_hints(Lease)
_BY_NAME = {"batch_index": st.integers(0, 10_000)}  # a column of its own, and no key of 32 bits
# Every field by its type, so that one added later is tried too.
leases = st.builds(
    Lease,
    **{field.name: _BY_TYPE[_HINTS[field.name]] for field in fields(Lease)} | _BY_NAME,
)
