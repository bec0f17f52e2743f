"""Which address a client of a network gets: never one that another has, the same again if it can.

Pure: a book is what was told to it. Whoever keeps one writes `Lease`s down before he answers, and
tells them again after a restart. Addresses that are not in the book's hands (gateway, ports, those
of borrowed machines) are `reserved`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address

# Probes for a free address before the longest unused one is looked for; ranges of IPv6 are wide.
_MOST_STEPS = 1 << 16
NOBODY = ""  # holds an address that a client found in use


@dataclass(frozen=True)
class Span:
    """The addresses from `first` to `last`, both included, of one family."""

    first: Address
    last: Address

    def __contains__(self, address: object) -> bool:
        return (
            isinstance(address, IPv4Address | IPv6Address)
            and address.version == self.first.version
            and int(self.first) <= int(address) <= int(self.last)
        )

    def __len__(self) -> int:
        return min(int(self.last) - int(self.first) + 1, 1 << 62)

    def from_(self, start: int) -> Iterator[Address]:
        """All addresses, once each, beginning with number `start`."""
        kind, low, size = type(self.first), int(self.first), len(self)
        for step in range(size):
            yield kind(low + (start + step) % size)


@dataclass(frozen=True)
class Lease:
    """`client` has `address` until `until` (seconds since the epoch, UTC). `mac` as far as it is
    known, `name` as the client calls itself."""

    address: Address
    client: str
    until: float
    mac: str = ""
    name: str = ""


def choose(
    span: Span,
    client: str,
    used: Container[Address],
    last_used: Mapping[Address, float],
) -> Address | None:
    """An address of `span` that is not in `used`; None if there is none.

    A client starts at a place of its own, so that it finds the same address with an empty memory;
    addresses nobody had come first, then the one that has been out of use for longest: what others
    remember of it (ARP, conntrack) has had time to fade.
    """
    digest = hashlib.sha256(client.encode()).digest()
    start = int.from_bytes(digest[:8], "big") % len(span)
    for step, address in enumerate(span.from_(start)):
        if step >= _MOST_STEPS:
            break
        if address not in used and address not in last_used:
            return address
    free = (a for a in last_used if a in span and a not in used)
    return min(free, key=lambda address: last_used[address], default=None)


@dataclass(frozen=True)
class _Either:
    one: Container[Address]
    other: Container[Address]

    def __contains__(self, address: object) -> bool:
        return address in self.one or address in self.other


class AddressBook:
    """The leases of one network. `fixed`: the addresses of known MAC addresses."""

    def __init__(
        self,
        spans: Iterable[Span],
        *,
        reserved: Iterable[Address] = (),
        fixed: Iterable[tuple[str, Address]] = (),
        leases: Iterable[Lease] = (),
    ) -> None:
        self._spans: dict[int, Span] = {span.first.version: span for span in spans}
        self._fixed: dict[tuple[str, int], Address] = {
            (mac, address.version): address for mac, address in fixed
        }
        self._reserved = frozenset(reserved) | frozenset(self._fixed.values())
        self._leases: dict[Address, Lease] = {}
        self._held: dict[tuple[str, int], Address] = {}
        for lease in leases:
            self._enter(lease)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._leases.values())

    def at(self, address: Address) -> Lease | None:
        """The last lease of an address, over or not."""
        return self._leases.get(address)

    def living(self, address: Address, now: float) -> Lease | None:
        lease = self._leases.get(address)
        return lease if lease and lease.until > now else None

    def fixed(self, mac: str, version: int) -> Address | None:
        return self._fixed.get((mac, version))

    def held(self, client: str, version: int) -> Lease | None:
        """The last lease of a client, over or not, if nobody had the address since."""
        address = self._held.get((client, version))
        return self._leases[address] if address is not None else None

    def may_have(self, client: str, mac: str, address: Address, now: float) -> bool:
        """Whether the client may have this very address now."""
        fixed = self.fixed(mac, address.version)
        if self._is_anothers(client, mac, address, now):
            return False
        if fixed is not None:
            return address == fixed
        span = self._spans.get(address.version)
        return span is not None and address in span and address not in self._reserved

    def offer(
        self,
        client: str,
        mac: str,
        version: int,
        now: float,
        *,
        wanted: Address | None = None,
        avoid: Container[Address] = (),
    ) -> Address | None:
        """The address for a client: its fixed one, the one it had, the one it wants, another; none
        of `avoid`, which are promised to others."""
        fixed = self.fixed(mac, version)
        if fixed is not None:
            return fixed if self.may_have(client, mac, fixed, now) else None
        held = self.held(client, version)
        for address in (held.address if held else None, wanted):
            if (
                address is not None
                and address.version == version
                and address not in avoid
                and self.may_have(client, mac, address, now)
            ):
                return address
        span = self._spans.get(version)
        if span is None:
            return None
        used = self._reserved | {a for a, lease in self._leases.items() if lease.until > now}
        past = {a: lease.until for a, lease in self._leases.items() if lease.until <= now}
        free = (a for a in past if a not in avoid)
        return choose(span, client, _Either(used, avoid), {a: past[a] for a in free})

    def bind(self, lease: Lease, now: float) -> None:
        """Note that a client has an address. ValueError if another has it, which `may_have` and
        `offer` would have told."""
        if self._is_anothers(lease.client, lease.mac, lease.address, now):
            raise ValueError(f"{lease.address} is given to somebody else")
        self._enter(lease)

    def release(self, client: str, address: Address, now: float) -> Lease | None:
        """The client lets go. Returns what to write down; None if it was not the client's."""
        lease = self.living(address, now)
        if lease is None or lease.client != client:
            return None
        over = replace(lease, until=now)
        self._enter(over)
        return over

    def quarantine(self, address: Address, until: float) -> Lease:
        """Somebody uses the address who has it not from here. Returns what to write down."""
        lease = Lease(address, NOBODY, until)
        self._enter(lease)
        return lease

    def _is_anothers(self, client: str, mac: str, address: Address, now: float) -> bool:
        lease = self.living(address, now)
        if lease is None or lease.client == client:
            return False
        # One machine has many client identifiers (its firmware's, its system's), and one address.
        return not (mac and lease.mac == mac and self.fixed(mac, address.version) == address)

    def _enter(self, lease: Lease) -> None:
        before = self._leases.get(lease.address)
        version = lease.address.version
        if before and self._held.get((before.client, version)) == lease.address:
            del self._held[before.client, version]
        self._leases[lease.address] = lease
        if lease.client != NOBODY:
            self._held[lease.client, version] = lease.address
