"""What the lab cloud would charge: each instance by the second, from running to off."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal

MINIMUM = timedelta(seconds=60)  # AWS: Linux instances are charged for at least one minute
_CENTS = Decimal("0.000001")


@dataclass(frozen=True, slots=True)
class Charge:
    """One run of one instance; `ended` is None while it runs."""

    instance: str
    type: str
    price_per_hour: Decimal
    started: datetime
    ended: datetime | None = None

    def cost(self, now: datetime) -> Decimal:
        """Money up to `now`."""
        time = max((self.ended or now) - self.started, MINIMUM)
        hours = Decimal(time / timedelta(microseconds=1)) / Decimal(3_600_000_000)
        return (self.price_per_hour * hours).quantize(_CENTS)


@dataclass
class Ledger:
    charges: list[Charge] = field(default_factory=list)

    def start(self, instance: str, type_name: str, price: Decimal, now: datetime) -> None:
        self.charges.append(Charge(instance, type_name, price, now))

    def end(self, instance: str, now: datetime) -> None:
        """The instance costs nothing from now on. No error when it never ran."""
        self.charges = [
            replace(c, ended=now) if c.instance == instance and c.ended is None else c
            for c in self.charges
        ]

    def cost(self, now: datetime, instance: str | None = None) -> Decimal:
        """The whole bill, or one instance's."""
        chosen = (c for c in self.charges if instance in (None, c.instance))
        return sum((c.cost(now) for c in chosen), Decimal(0))
