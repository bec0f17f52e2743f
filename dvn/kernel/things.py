"""Kernel objects that are neither links, addresses nor nft: routes, rules, queues, tunnel peers.

All follow one pattern, so that a new kind is one value and one driver and nothing else changes: a
frozen value with the key the kernel knows it by; the same key with another value is changed in
place. `PACKED` of makers.py has the drivers of what route netlink carries, and is what to write for
a kind of which there are thousands: a plan sends their requests many at a time, among those of
links and addresses. `DRIVERS` has the others, which write by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from dvn.kernel.netlink import Request, Socket

if TYPE_CHECKING:
    from dvn.kernel.rtnl import RawLink
    from dvn.nat.things import Rule

IndexOf: TypeAlias = Callable[[str], int]


class Thing(Protocol):
    """A frozen dataclass that compares by value. `str()` is how a plan shows it."""

    @property
    def kind(self) -> str:
        """Of all of one class, such as `route`."""

    @property
    def key(self) -> tuple[object, ...]:
        """What the kernel lets only one thing of this kind have."""

    @property
    def link(self) -> str | None:
        """The link it goes away with, if any."""

    @property
    def rank(self) -> int:
        """The order of making, within a plan: below 0 before links go up, others after. Removal is
        the other way round."""


@dataclass(frozen=True)
class Sight:
    """What a driver may need to recognise ours: links by index, those of the site, its name; and
    all links as they were read."""

    site: str
    names: Mapping[int, str]
    indexes: Mapping[str, int]
    own: frozenset[str]
    queues: Mapping[str, str]  # kind of each link's root queue
    links: Sequence[RawLink] = ()
    # Every policy rule: (ours, or None; protocol, preference, table); tables of our other sites.
    rules: tuple[tuple[Rule | None, int, int, int], ...] = ()
    others_tables: frozenset[int] = frozenset()


class _Driver(Protocol):
    kinds: frozenset[str]

    def observe(self, socket: Socket, sight: Sight) -> Iterable[Thing]:
        """Those that are ours, and the site's. Raises OSError (NetlinkError)."""


class PackedDriver(_Driver, Protocol):
    """Reads the things of some kinds, and says which route netlink messages write them."""

    def requests(self, thing: Thing, before: Thing | None, index_of: IndexOf) -> list[Request]:
        """Those that make it, or change `before` into it in place. They are sent in one datagram.
        `index_of` a link's name raises NetlinkError (ENODEV) if there is no such link."""

    def removal(self, thing: Thing, index_of: IndexOf) -> list[Request]:
        """Those that remove it; `forgiven` of a request has the errors that mean it is gone."""


class GroupDriver(_Driver, Protocol):
    """Reads the things of some kinds, and changes many of them at once. Raises OSError."""

    def change(self, put: Sequence[Thing], gone: Sequence[Thing]) -> int:
        """Make or change `put`, remove `gone`. Returns the number of writes."""


class ThingDriver(_Driver, Protocol):
    """Reads and writes the things of some kinds. Raises OSError (NetlinkError)."""

    def put(self, socket: Socket, thing: Thing, before: Thing | None) -> int:
        """Make it, or change `before` into it in place. Returns the number of writes."""

    def remove(self, socket: Socket, thing: Thing) -> int:
        """What is gone already need not be removed."""
