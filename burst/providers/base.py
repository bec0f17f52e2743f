"""What a source of machines must offer: the whole surface of a new provider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol, runtime_checkable

from burst.model import FailureClass, Machine, Offer


class ProviderError(Exception):
    """A refusal by the provider, in one of the classes a decision tells apart."""

    kind: FailureClass = FailureClass.CONFIG


class Throttled(ProviderError):  # noqa: N818 - the provider's own words for these states
    """Too many requests: slow down. Says nothing about capacity."""

    kind = FailureClass.THROTTLED


class NoCapacity(ProviderError):  # noqa: N818
    """This type in this zone cannot be had now; another may."""

    kind = FailureClass.NO_CAPACITY


class QuotaExceeded(ProviderError):  # noqa: N818
    """Our account may not have more of this."""

    kind = FailureClass.QUOTA


class Misconfigured(ProviderError):  # noqa: N818
    """The request itself is wrong (image, subnet, credentials); repeating it cannot help."""

    kind = FailureClass.CONFIG


class Unreachable(ProviderError):  # noqa: N818
    """No answer. A launch may or may not have happened: repeat it with the same lease id."""

    kind = FailureClass.LOST


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    lease_id: str
    tenant: str
    pool: str
    type: str
    zone: str
    name: str  # the node's name, for the provider's console
    user_data: str
    spot: bool = False  # as a spot machine ...
    max_price: Decimal | None = None  # ... for at most so much an hour, in the site's currency
    network: str = ""  # the tenant's network; for providers whose machines are in it from the start
    address: str = ""  # the machine's address inside it


class Provider(Protocol):
    """Every method may raise a `ProviderError`."""

    name: str

    def offers(self) -> Sequence[Offer]:
        """What could be had now, with prices."""

    def launch(self, request: LaunchRequest) -> Machine:
        """Start one machine; idempotent by `lease_id`: a repeat returns the same machine."""

    def machines(self) -> Sequence[Machine]:
        """All machines that carry our tags, whoever started them, the ended ones while listed."""

    def terminate(self, machine_ids: Sequence[str]) -> None:
        """Return machines; those already gone are no error."""


@runtime_checkable
class LaunchesMany(Protocol):
    """A provider that starts many machines of a kind with one call."""

    @property
    def at_once(self) -> int:
        """How many at most."""

    def launch_many(self, request: LaunchRequest, count: int) -> Sequence[Machine]:
        """Start up to `count` machines, at least one; idempotent by `lease_id`, the batch's name
        here. Each machine has its `batch` and its `index` in it, from 0 without a gap."""
