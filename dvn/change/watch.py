"""What the kernel announces: links, addresses, routes, rules, neighbours, queues and nftables.

Sockets and formats by hand, as in kernel/netlink.py (rtnetlink(7), linux/netfilter/nf_tables.h).
An event is a reason to look and a hint who did it, never the truth: events may be lost (ENOBUFS),
and then one says so.
"""

from __future__ import annotations

import errno
import selectors
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from dvn.change.names import OURS
from dvn.kernel import netlink as nl
from dvn.kernel.state import ADDRESS_PROTOCOL, ALIAS_PREFIX, LINK_GROUP

Kind: TypeAlias = Literal[
    "link", "address", "route", "rule", "neighbour", "queue", "setting", "nft", "lost"
]  # fmt: skip
Table: TypeAlias = tuple[str, str]  # family, name

NETLINK_ADD_MEMBERSHIP = 1
# In this order RTNLGRP_LINK, NEIGH and TC; of IPv4 and IPv6 each IFADDR, ROUTE and RULE; and last
# those of NETCONF, which tell of forwarding and rp_filter.
_ROUTE_GROUPS = (1, 3, 4, 5, 7, 8, 9, 11, 19, 24, 25)
_NFT_GROUP = 7  # NFNLGRP_NFTABLES
_SO_RCVBUFFORCE = 33
_BUFFER = 16 << 20  # bytes: a foreign load of 50,000 rules is 10 MB of announcements
_RECEIVE = 1 << 18
_MOST_AT_ONCE = 4096  # messages, before what they mean is looked at

_LINK, _ADDRESS, _ROUTE, _NEIGHBOUR, _RULE = (16, 17), (20, 21), (24, 25), (28, 29), (32, 33)
_QUEUE = tuple(range(36, 47))
_SETTING, _NETCONFA_IFINDEX, _ALL_LINKS = (80, 81), 1, -1
_AF_BRIDGE = 7  # announcements of a bridge about its ports
_IFINFO = struct.Struct("=BxHiII")
_IFLA_IFNAME, _IFLA_IFALIAS, _IFLA_GROUP = 3, 20, 27
_RTA_OIF = 4
_NUD_PERMANENT = 0x80

_NFT_SUBSYSTEM = 10
_NEWGEN = 15
_GEN_PROC_PID, _GEN_PROC_NAME = 2, 3
_REMOVES = frozenset(
    {2, 5, 8, 11, 14, 20, 24, 26, 27, 28, 29, 30, 31, 32}
)  # NFT_MSG_DEL*, DESTROY*
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_TABLE_NAME = 1  # the first attribute of every object names its table


@dataclass(frozen=True)
class Event:
    """`what` in words; `link` the device it is about; `ours` by its stamp. An nft event is one
    transaction: the tables it touched, those it took things from, and the process that did it."""

    kind: Kind
    what: str
    link: str = ""
    ours: bool = False
    gone: bool = False
    tables: frozenset[Table] = frozenset()
    removed: frozenset[Table] = frozenset()
    process: str = ""
    pid: int = 0


@dataclass(frozen=True)
class Interest:
    """What concerns us besides what bears our stamp: ports, uplinks, underlay; our tables."""

    links: frozenset[str] = frozenset()


def concerns(event: Event, interest: Interest) -> bool:
    """Whether our objects may have changed. Pure."""
    match event.kind:
        case "lost" | "rule":
            return True
        case "nft":
            return any(name.startswith("dvn-") for _family, name in event.tables)
        case "route":
            return event.ours or event.link in interest.links
        case _:
            return event.ours or event.link in interest.links


def is_foreign_nft(event: Event) -> bool:
    """Whether somebody else's rules changed."""
    return event.kind == "lost" or (
        event.kind == "nft" and any(not name.startswith("dvn-") for _family, name in event.tables)
    )


def is_echo(event: Event) -> bool:
    """Whether one of our own processes did it, as far as the kernel says."""
    return event.kind == "nft" and event.process in OURS


@dataclass
class Reader:
    """Messages -> events. Remembers which index is whose, for events that name no device."""

    names: dict[int, str] = field(default_factory=dict)
    stamped: set[int] = field(default_factory=set)
    _tables: set[Table] = field(default_factory=set)
    _removed: set[Table] = field(default_factory=set)

    def route(self, data: bytes) -> Iterator[Event]:
        for kind, _flags, _sequence, payload in nl.messages(data):
            event = self._route(kind, payload)
            if event is not None:
                yield event

    def _route(self, kind: int, payload: bytes) -> Event | None:
        if kind in _LINK:
            return self._link(kind, payload)
        if kind in _ADDRESS and len(payload) >= 8:
            (index,) = struct.unpack_from("=I", payload, 4)
            return self._about("address", index, gone=kind == _ADDRESS[1])
        if kind in _NEIGHBOUR and len(payload) >= 12:
            index, state = struct.unpack_from("=iH", payload, 4)
            # What is learned comes and goes all day; what somebody wrote down does not.
            if not state & _NUD_PERMANENT:
                return None
            return self._about("neighbour", index, gone=kind == _NEIGHBOUR[1])
        if kind in _QUEUE and len(payload) >= 8:
            (index,) = struct.unpack_from("=i", payload, 4)
            return self._about("queue", index, gone=False)
        if kind in _ROUTE and len(payload) >= 12:
            return self._of_route(kind, payload)
        if kind in _SETTING and len(payload) >= 4:
            found = nl.attributes(payload, 4).get(_NETCONFA_IFINDEX, b"")
            index = int.from_bytes(found, sys.byteorder, signed=True)
            if index == _ALL_LINKS:
                return Event("setting", "settings of all links", ours=True)
            return self._about("setting", index, gone=False)
        if kind in _RULE:
            return Event("rule", "a routing rule", gone=kind == _RULE[1])
        return None

    def _link(self, kind: int, payload: bytes) -> Event | None:
        if len(payload) < _IFINFO.size or payload[0] == _AF_BRIDGE:
            return None
        _family, _type, index, _flags, _change = _IFINFO.unpack_from(payload)
        found = nl.attributes(payload, _IFINFO.size)
        name = found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
        alias = found.get(_IFLA_IFALIAS, b"").decode(errors="replace")
        group = int.from_bytes(found.get(_IFLA_GROUP, b""), sys.byteorder)
        # A stamp that somebody took away was ours all the same.
        ours = alias.startswith(ALIAS_PREFIX) or group == LINK_GROUP or index in self.stamped
        gone = kind == _LINK[1]
        self.names[index] = name
        (self.stamped.add if ours and not gone else self.stamped.discard)(index)
        if gone:
            self.names.pop(index, None)
        return Event("link", f"link {name}", name, ours, gone)

    def _about(self, kind: Kind, index: int, *, gone: bool) -> Event:
        name = self.names.get(index, f"#{index}")
        return Event(kind, f"{kind} of {name}", name, index in self.stamped, gone)

    def _of_route(self, kind: int, payload: bytes) -> Event:
        length, protocol = payload[1], payload[5]
        found = nl.attributes(payload, 12)
        index = int.from_bytes(found.get(_RTA_OIF, b""), sys.byteorder)
        name = self.names.get(index, "")
        ours = protocol == ADDRESS_PROTOCOL or index in self.stamped or length == 0
        return Event("route", f"route by {name or 'nothing'}", name, ours, kind == _ROUTE[1])

    def nft(self, data: bytes) -> Iterator[Event]:
        for kind, _flags, _sequence, payload in nl.messages(data):
            if kind >> 8 != _NFT_SUBSYSTEM or len(payload) < 4:
                continue
            message = kind & 0xFF
            if message == _NEWGEN:
                yield self._transaction(nl.attributes(payload, 4))
                continue
            name = _first_text(payload)
            table = (_FAMILIES.get(payload[0], "unspec"), name)
            self._tables.add(table)
            if message in _REMOVES:
                self._removed.add(table)

    def _transaction(self, found: nl.Attributes) -> Event:
        tables, removed = frozenset(self._tables), frozenset(self._removed)
        self._tables.clear()
        self._removed.clear()
        process = found.get(_GEN_PROC_NAME, b"").rstrip(b"\0").decode(errors="replace")
        pid = int.from_bytes(found.get(_GEN_PROC_PID, b""), "big")
        names = ", ".join(sorted(f"{family} {name}" for family, name in tables))
        return Event("nft", f"nft table {names}", tables=tables, removed=removed,
                     process=process, pid=pid)  # fmt: skip

    def forget_transaction(self) -> None:
        """Messages were lost: what was read of a transaction is a part of it."""
        self._tables.clear()
        self._removed.clear()


def _first_text(payload: bytes) -> str:
    """The text of the attribute that names the table, without reading the others."""
    if len(payload) < 8:
        return ""
    length, kind = struct.unpack_from("=HH", payload, 4)
    if kind & nl.NLA_TYPE_MASK != _TABLE_NAME:
        return nl.attributes(payload, 4).get(_TABLE_NAME, b"").rstrip(b"\0").decode()
    return payload[8 : 4 + length].rstrip(b"\0").decode(errors="replace")


class Watch:
    """The sockets, in the network namespace of the thread that makes it. Raises OSError."""

    def __init__(self, names: Mapping[int, str], stamped: frozenset[int]) -> None:
        self.reader = Reader(dict(names), set(stamped))
        self._sockets: list[socket.socket] = []
        try:
            self._route = self._open(socket.NETLINK_ROUTE, _ROUTE_GROUPS)
            self._nft = self._open(_NETLINK_NETFILTER, (_NFT_GROUP,))
        except OSError:
            self.close()
            raise

    def _open(self, protocol: int, groups: tuple[int, ...]) -> socket.socket:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        sock = socket.socket(socket.AF_NETLINK, kind, protocol)
        self._sockets.append(sock)
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except PermissionError:  # no CAP_NET_ADMIN in the first user namespace: as it is allowed
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        sock.bind((0, 0))
        for group in groups:
            sock.setsockopt(nl.SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        return sock

    def register(self, selector: selectors.BaseSelector) -> None:
        for sock in self._sockets:
            selector.register(sock, selectors.EVENT_READ, "events")

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()

    def read(self) -> Iterator[Event]:
        """What is there, without waiting; a bounded part of it."""
        for sock in self._sockets:
            yield from self._read(sock)

    def _read(self, sock: socket.socket) -> Iterator[Event]:
        for _ in range(_MOST_AT_ONCE):
            try:
                data = sock.recv(_RECEIVE)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.reader.forget_transaction()
                yield Event("lost", "more happened than could be told")
                continue
            yield from self.reader.nft(data) if sock is self._nft else self.reader.route(data)


_NETLINK_NETFILTER = 12
