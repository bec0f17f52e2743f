"""A provider whose hypervisor is a node of the batch system at the same time.

Wraps the hypervisor's provider: cores are held in the batch system before a machine is made, and
given back when it is gone. Level-triggered: each listing compares holds and machines, and mends.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Protocol

from burst.lrms.base import LrmsError, LrmsUnavailable
from burst.mixed.ledger import oversubscribed, settle
from burst.mixed.share import Share
from burst.mixed.weights import Balance
from burst.model import FailureClass, Machine, Offer
from burst.providers.base import (
    LaunchRequest,
    Misconfigured,
    NoCapacity,
    Provider,
    ProviderError,
    Unreachable,
)

log = logging.getLogger(__name__)

_DOUBT = (FailureClass.THROTTLED, FailureClass.LOST)


class Placing(Provider, Protocol):
    """A provider that knows what each of its leases takes of the host."""

    def places(self) -> Mapping[str, int]:
        """Cores by lease id of all that is there of ours, running or not yet or half made."""

    def cores_of(self, kind: str) -> int:
        """The cores of a machine of this type. Misconfigured if there is no such type."""


class MixedProvider:
    """`burst.providers.base.Provider`; `enabled` is asked each time: mixed mode can be turned on
    and off while machines and jobs run."""

    offers_last = timedelta(0)

    def __init__(
        self,
        inner: Placing,
        share: Share,
        enabled: Callable[[], bool],
        balance: Balance | None = None,
    ) -> None:
        self.name = inner.name
        self._inner = inner
        self._share = share
        self._enabled = enabled
        self._balance = balance
        self._lock = threading.Lock()  # a launch is never under way while holds are compared

    def offers(self) -> Sequence[Offer]:
        """Those of the hypervisor, as many as the batch system has cores free for."""
        offers = self._inner.offers()
        free = self._free() if self._enabled() else 0
        return tuple(
            replace(offer, available=min(_known(offer.available, free), free // offer.cores))
            for offer in offers
        )

    def launch(self, request: LaunchRequest) -> Machine:
        """Hold, then make. A clear no gives the cores back; after a kill the repeat, or the next
        listing, does."""
        with self._lock:
            there = request.lease_id in self._inner.places()
            if not there and not self._enabled():
                raise NoCapacity(f"mixed mode is off: {self.name} starts no machines now")
            cores = self._inner.cores_of(request.type)
            self._ask(lambda: self._share.hold(request.lease_id, cores))
            try:
                return self._inner.launch(request)
            except ProviderError as error:
                if error.kind not in _DOUBT:
                    self._settle()
                raise

    def machines(self) -> Sequence[Machine]:
        """The hypervisor's; and holds are brought in line with what is there."""
        with self._lock:
            listed = self._inner.machines()
            self._settle()
            self._weigh()
        return listed

    def terminate(self, machine_ids: Sequence[str]) -> None:
        """Return machines, and their cores to the batch system."""
        with self._lock:
            self._inner.terminate(machine_ids)
            self._settle()

    def _weigh(self) -> None:
        problem = self._balance.set(self._enabled()) if self._balance else ""
        if problem:  # both sides run on, with the weights they had
            log.warning("event=no-weights provider=%s error=%r", self.name, problem)

    def _free(self) -> int:
        try:
            return self._share.cores().free
        except LrmsError as error:  # nothing is launched; machines are still taken care of
            log.warning("event=no-cores provider=%s error=%r", self.name, str(error))
            return 0

    def _settle(self) -> None:
        """What cannot be done now is done after the next listing."""
        try:
            machines, held = self._inner.places(), self._share.held()
            due = settle(machines, held)
            for lease in due.give:
                self._share.release(lease)
                log.info("event=cores-back provider=%s lease=%s", self.name, lease)
            for lease, cores in due.take:
                self._take_again(lease, cores)
            if due.take:
                twice = oversubscribed(self._share.cores(), machines)
                log.warning("event=oversubscribed provider=%s cores=%d", self.name, twice)
        except (LrmsError, ProviderError) as error:
            log.warning("event=not-settled provider=%s error=%r", self.name, str(error))

    def _take_again(self, lease: str, cores: int) -> None:
        try:
            self._share.hold(lease, cores)
        except NoCapacity as error:
            log.warning("event=no-hold provider=%s lease=%s error=%r", self.name, lease, str(error))

    def _ask(self, call: Callable[[], None]) -> None:
        try:
            call()
        except LrmsUnavailable as error:
            raise Unreachable(f"the batch system does not answer: {error}") from error
        except LrmsError as error:
            raise Misconfigured(f"cores of {self.name} cannot be held: {error}") from error


def _known(available: int | None, otherwise: int) -> int:
    return otherwise if available is None else available
