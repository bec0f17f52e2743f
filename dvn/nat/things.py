"""Routes and policy rules: how a packet finds the routing table of its network.

What *comes from* a network is routed by its router's table: the bridge is the router's (VRF), one
rule of the kernel's own serves all of them. What *goes to* a network with overlapping addresses,
the answers to its translated connections, has the network's mark (tracking.py). The kernel looks
through policy rules one by one, so 4,000 of them in a row would cost each packet 4,000 compares:
these are a tree instead, of four levels with sixteen branches each, by `goto`.

    20000  not fwmark 0x64760000/0xffff0000  goto 25999     what has no mark of ours goes past
    20001  fwmark 0x64760000/0xfffff000      goto 20010
    20010  fwmark 0x64760000/0xffffff00      goto 20100
    20100  fwmark 0x64760020/0xfffffff0      goto 21002
    21002  fwmark 0x64760025                 lookup 1000037
    25998  fwmark 0x64760000/0xffff0000      blackhole      never by another network's routes
    25999  nop

The inner rules are shared by all networks, and by all sites of a host.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Literal

from dvn.allocate import MARK, MARK_MASK, mark_of, table_of

ROUTE_PROTOCOL = 0xD4  # rtm_protocol, FRA_PROTOCOL; unassigned in iproute2's rt_protos
MAIN_TABLE = 254
FIRST, LAST = 20000, 25999  # preferences of our rules; others' have no place among them
_TOP, _UPPER, _LOWER, _LEAVES, _END = 20001, 20010, 20100, 21000, 25998
_EXACT = 0xFFFFFFFF

Action = Literal["goto", "table", "blackhole", "nop"]


@dataclass(frozen=True)
class Route:
    """`prefix` is reached through `on`, for those who are routed by `table`."""

    table: int
    prefix: str
    on: str
    kind: Literal["route"] = "route"
    rank: int = 1  # the kernel takes no route through a link that is down

    @property
    def key(self) -> tuple[object, ...]:
        return (self.table, self.prefix)

    @property
    def link(self) -> str | None:
        return self.on

    @property
    def version(self) -> int:
        return ip_network(self.prefix).version

    def __str__(self) -> str:
        table = "main" if self.table == MAIN_TABLE else str(self.table)
        return f"{self.prefix} through {self.on} in table {table}"


@dataclass(frozen=True)
class Rule:
    """A policy rule (ip-rule(8)) for marked packets. `target`: a preference or a table."""

    version: int
    preference: int
    mark: int
    mask: int
    action: Action
    target: int = 0
    inverted: bool = False
    shared: bool = field(default=False, compare=False)  # another site here needs it, too
    kind: Literal["rule"] = "rule"

    @property
    def key(self) -> tuple[object, ...]:
        return (self.version, self.preference, self.mark, self.mask, self.inverted)

    @property
    def link(self) -> str | None:
        return None

    @property
    def rank(self) -> int:
        """The refusal for the rest first, branches before what they lead to, and the other way
        round in the end."""
        return 2 if self.action in ("nop", "blackhole") else 3 + (self.action == "table")

    @property
    def is_leaf(self) -> bool:
        return self.action == "table"

    def leads_to(self, numbers: Collection[int]) -> bool:
        """Whether packets of one of these come by it."""
        return bool(numbers) and any(
            self.inverted or mark_of(number) & self.mask == self.mark for number in numbers
        )

    def __str__(self) -> str:
        no = "not " if self.inverted else ""
        mark = f"{no}fwmark {self.mark:#x}" + ("" if self.mask == _EXACT else f"/{self.mask:#x}")
        target = f" {self.target}" if self.action in ("goto", "table") else ""
        mark = mark if self.mask else "all"
        stays = ", stays for another site" if self.shared else ""
        return f"IPv{self.version} {self.preference}: {mark} {self.action}{target}{stays}"


def rules(version: int, number: int) -> Iterator[Rule]:
    """What leads marked packets to the table of `number`; all but the last shared with others."""
    yield Rule(version, LAST, 0, 0, "nop")
    yield Rule(version, _END, MARK, MARK_MASK, "blackhole")
    yield Rule(version, FIRST, MARK, MARK_MASK, "goto", LAST, inverted=True)
    upper = _UPPER + (number >> 12)
    lower = _LOWER + (number >> 8)
    leaves = _LEAVES + (number >> 4)
    yield Rule(version, _TOP, mark_of(number & 0xF000), 0xFFFFF000, "goto", upper)
    yield Rule(version, upper, mark_of(number & 0xFF00), 0xFFFFFF00, "goto", lower)
    yield Rule(version, lower, mark_of(number & 0xFFF0), 0xFFFFFFF0, "goto", leaves)
    yield Rule(version, leaves, mark_of(number), _EXACT, "table", table_of(number))
