"""Every attack of the suite. The order decides the numbers, so new ones go to the end."""

from __future__ import annotations

from collections.abc import Container, Iterator

from lab.attacks.case import Case
from lab.attacks.catalogue import (
    crossing,
    ethernet,
    flows,
    headers,
    intruder,
    malformed,
    rogue,
    spoofing,
    trunk,
    tunnels,
    uplink,
)
from lab.attacks.catalogue.draft import Attack, numbered

ATTACKS: tuple[Attack, ...] = (
    *spoofing.ATTACKS,
    *rogue.ATTACKS,
    *ethernet.ATTACKS,
    *crossing.ATTACKS,
    *tunnels.ATTACKS,
    *trunk.ATTACKS,
    *headers.ATTACKS,
    *flows.ATTACKS,
    *malformed.ATTACKS,
    *intruder.ATTACKS,
    *uplink.ATTACKS,
)


def cases() -> Iterator[Case]:
    """All cases with their frames: some seconds of scapy."""
    yield from numbered(ATTACKS)


def some(every: int, names: Container[str] = (), first: int = 0) -> Iterator[Case]:
    """One in `every` cases of each attack, at least one, and the first cases of some attacks: for
    where making all takes too long."""
    yield from numbered(
        ATTACKS, lambda a, place: place % every == 0 or (a.name in names and place < first)
    )
