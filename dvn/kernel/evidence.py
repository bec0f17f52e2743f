"""Whether anybody else has changed what a look saw: the kernel's own announcements since.

Nothing is believed because of an event. As long as there is none that says something new, what was
read is still true, and a change may be made on top of it without reading everything again. One
that says something else, or one that was lost, and the whole is looked at.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping

from dvn.kernel import netlink as nl
from dvn.kernel import rtnl
from dvn.kernel.rtnl import RawAddress, RawLink
from dvn.kernel.state import ADDRESS_PROTOCOL

_ADD_MEMBERSHIP = 1
_LINK, _ADDRESS4, _ADDRESS6 = 1, 5, 9  # RTNLGRP_*
_ROUTE4, _ROUTE6, _RULE4, _RULE6 = 7, 11, 8, 19
_GROUPS = (_LINK, _ADDRESS4, _ADDRESS6, _ROUTE4, _ROUTE6, _RULE4, _RULE6)
_NEWROUTE, _DELROUTE, _NEWRULE, _DELRULE = 24, 25, 32, 33
_AF_BRIDGE = 7
_RTM_PROTOCOL = 5  # offset in struct rtmsg
_RECEIVE, _BUFFER = 1 << 18, 8 << 20
_SO_RCVBUFFORCE = 33
UNKNOWN = -1


class Evidence:
    """Listens in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._socket.bind((0, 0))
        for group in _GROUPS:
            self._socket.setsockopt(nl.SOL_NETLINK, _ADD_MEMBERSHIP, group)
        self._links: dict[int, RawLink] = {}
        self._addresses: dict[int, set[tuple[str, int]]] = {}  # by the link's index
        self._generation = UNKNOWN
        self._holds = False

    def close(self) -> None:
        self._socket.close()

    def begin(self) -> None:
        """A look begins: what was announced till now is in it."""
        self._heed()

    def saw(
        self, links: Iterable[RawLink], addresses: Iterable[RawAddress], generation: int
    ) -> None:
        """What the look has read. Who relies on an earlier one has to know if it was otherwise:
        an event of it may come only now, and then says nothing new."""
        before = self._read()
        self._links = {link.index: link for link in links}
        self._addresses = {}
        for address in addresses:
            self._on(address).add(_key(address))
        self._generation = generation
        self._holds = self._holds and before == self._read()

    def rely(self) -> None:
        """What was read last is what `holds` is about from now on."""
        self._holds = True

    def _read(self) -> tuple[object, ...]:
        addresses = {index: found for index, found in self._addresses.items() if found}
        return self._links, addresses, self._generation

    def wrote(self, transactions: int, generation: int) -> None:
        """We made so many transactions of nftables, and now it is at `generation`."""
        if generation != self._generation + transactions:
            self._holds = False
        self._generation = generation

    def holds(self, generation: int) -> bool:
        """Whether what was seen is still so."""
        if self._generation != generation:
            self._holds = False
        self._heed()
        return self._holds

    def _heed(self) -> None:
        for kind, payload in self._events():
            self._holds = self._holds and self._known(kind, payload)

    def own(self, names: Collection[str]) -> None:
        """What was announced since `holds` may be ours where it is about `names`, which are read
        again now: `reread` has what they are."""
        for kind, payload in self._events():
            if kind in (_NEWROUTE, _DELROUTE, _NEWRULE, _DELRULE):
                continue
            if not self._ours(kind, payload, names) and not self._known(kind, payload):
                self._holds = False

    def reread(self, links: Mapping[int, RawLink | None], addresses: Iterable[RawAddress]) -> None:
        """Links that were read again, None where they are gone, and all addresses of those."""
        for index, link in links.items():
            if link is None:
                self._links.pop(index, None)
            else:
                self._links[index] = link
            self._addresses.pop(index, None)
        for address in addresses:
            self._on(address).add(_key(address))

    def _on(self, address: RawAddress) -> set[tuple[str, int]]:
        return self._addresses.setdefault(address.index, set())

    def _ours(self, kind: int, payload: bytes, names: Collection[str]) -> bool:
        if kind in (rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK):
            return rtnl.parse_link(payload).name in names
        address = rtnl.parse_address(payload)
        if address.protocol == ADDRESS_PROTOCOL:
            if kind == rtnl.RTM_NEWADDR:
                self._on(address).add(_key(address))
            else:
                self._on(address).discard(_key(address))
            return True
        link = self._links.get(address.index)
        return link is None or link.name in names

    def _known(self, kind: int, payload: bytes) -> bool:
        """Whether the event says only what was seen already."""
        if kind in (rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK):
            if payload[0] == _AF_BRIDGE:  # of a port, which its own link tells as well
                return True
            link = rtnl.parse_link(payload)
            return (self._links.get(link.index) == link) == (kind == rtnl.RTM_NEWLINK)
        if kind in (rtnl.RTM_NEWADDR, rtnl.RTM_DELADDR):
            address = rtnl.parse_address(payload)
            known = _key(address) in self._on(address)
            return known == (kind == rtnl.RTM_NEWADDR)
        if kind in (_NEWROUTE, _DELROUTE):
            return payload[_RTM_PROTOCOL] != ADDRESS_PROTOCOL
        return False

    def _events(self) -> Iterator[tuple[int, bytes]]:
        while True:
            try:
                data = self._socket.recv(_RECEIVE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._holds = False  # some were lost
                continue
            for kind, _flags, _sequence, payload in nl.messages(data):
                yield kind, payload


def _key(address: RawAddress) -> tuple[str, int]:
    return address.address, address.protocol
