"""The sockets of one network, each bound to its bridge.

What another network sends is not seen, and overlapping prefixes are as good as any. In a VRF as
well: a socket bound to a bridge gets what comes in by the bridge, and what it sends goes that way
(Documentation/networking/vrf.rst of the kernel).
"""

from __future__ import annotations

import asyncio
import errno
import functools
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import cast

from dvn.ipam import Address, AddressBook
from dvn.services import dhcp4, dhcp6
from dvn.services.config import Family, Service
from dvn.services.dhcp4 import Dhcp4
from dvn.services.dhcp6 import Dhcp6
from dvn.services.resolver import GATEWAY, Resolver, Upstream

ALL_SERVERS, ALL_ROUTERS = "ff02::1:2", "ff02::2"
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78
_TURN = 16  # datagrams of one socket before the others have their turn
_DATAGRAM = 65535
# What one network may ask for, so that one that floods does not keep the others waiting.
_RATE_PER_S, _MOST = 50.0, 100.0


@dataclass
class Allowance:
    """A token bucket: `rate` a second, at most `most` at once."""

    rate: float = _RATE_PER_S
    most: float = _MOST
    left: float = _MOST
    last: float = 0.0

    def take(self, now: float) -> bool:
        self.left = min(self.most, self.left + max(0.0, now - self.last) * self.rate)
        self.last = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Ears:
    """What a room tells its server: a message of a client, and where it came from."""

    def heard4(self, room: Room, message: dhcp4.Message) -> None:
        raise NotImplementedError

    def heard6(self, room: Room, message: dhcp6.Message, source: tuple[str, int, int, int]) -> None:
        raise NotImplementedError


class Room:
    """One network that is served. `open` raises OSError."""

    def __init__(
        self,
        service: Service,
        index: int,
        book: AddressBook,
        ears: Ears,
        upstream: Upstream,
        clock: Callable[[], float],
    ) -> None:
        self.service, self.index, self.book = service, index, book
        self._ears, self._clock = ears, clock
        self.dhcp4 = Dhcp4(service, service.four, book) if service.four else None
        self.dhcp6 = Dhcp6(service, service.six, book) if service.six else None
        self.resolver = Resolver(upstream, service.domain, self._look)
        self._allowance = Allowance()
        self._sockets: list[socket.socket] = []
        self._six: socket.socket | None = None

    def open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self.dhcp4:
                four = self._bound(socket.AF_INET, socket.SOCK_DGRAM, "0.0.0.0", 67)
                loop.add_reader(four, self._read4, four)
            if self.dhcp6:
                self._six = self._bound(socket.AF_INET6, socket.SOCK_DGRAM, "::", 547)
                for group in (ALL_SERVERS, ALL_ROUTERS):
                    self._join(self._six, group)
                loop.add_reader(self._six, self._read6, self._six)
            if self.service.resolves:
                for family in self.service.families():
                    self._open_dns(family, loop)
        except OSError:
            self.close()
            raise

    def _open_dns(self, family: Family, loop: asyncio.AbstractEventLoop) -> None:
        kind = socket.AF_INET if family.gateway.version == 4 else socket.AF_INET6
        udp = self._bound(kind, socket.SOCK_DGRAM, str(family.gateway), 53)
        loop.add_reader(udp, self._read_dns, udp)
        tcp = self._bound(kind, socket.SOCK_STREAM, str(family.gateway), 53)
        tcp.listen(16)
        loop.add_reader(tcp, self._accept, tcp)

    def _bound(
        self, family: socket.AddressFamily, kind: socket.SocketKind, address: str, port: int
    ) -> socket.socket:
        sock = socket.socket(family, kind)
        self._sockets.append(sock)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.service.bridge.encode() + b"\0"
        )
        # A bridge that was just made again may have no address yet.
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        sock.bind((address, port))
        return sock

    def _join(self, sock: socket.socket, group: str) -> None:
        request = IPv6Address(group).packed + struct.pack("=I", self.index)
        try:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()
        self.resolver.close()

    def send6(self, data: bytes, target: tuple[str, int, int, int]) -> None:
        if self._six:
            self._six.sendto(data, (target[0], 546, 0, self.index))

    def _look(self, label: str, version: int) -> tuple[Address, ...] | None:
        """The addresses of a machine's name, or of the gateway's; None: no such name."""
        now = self._clock()
        named = [lease for lease in self.book if lease.name == label and lease.until > now]
        found: list[Address] = [lease.address for lease in named]
        if label == GATEWAY:
            found = [family.gateway for family in self.service.families()]
        if not found:
            return None
        return tuple(address for address in found if address.version == version)

    def _read4(self, sock: socket.socket) -> None:
        for data, _source in _datagrams(sock):
            message = dhcp4.parse(data)
            if message and self._allowance.take(self._clock()):
                self._ears.heard4(self, message)

    def _read6(self, sock: socket.socket) -> None:
        for data, source in _datagrams(sock):
            message = dhcp6.parse(data)
            if message and self._allowance.take(self._clock()):
                self._ears.heard6(self, message, cast("tuple[str, int, int, int]", source))

    def _read_dns(self, sock: socket.socket) -> None:
        for data, source in _datagrams(sock):
            self.resolver.datagram(data, functools.partial(_send, sock, source))

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _source = listener.accept()
        except OSError:
            return
        client.setblocking(False)
        self.resolver.connection(client)


def _datagrams(sock: socket.socket) -> list[tuple[bytes, tuple[object, ...]]]:
    found = []
    for _turn in range(_TURN):
        try:
            found.append(sock.recvfrom(_DATAGRAM))
        except OSError:  # none left, or an error of an earlier send
            break
    return found


def _send(sock: socket.socket, target: tuple[object, ...], data: bytes) -> None:
    try:
        sock.sendto(data, target)
    except OSError:  # the client is gone, or the network is: it asks again
        return


def gateway4(service: Service) -> IPv4Address:
    """The gateway's IPv4 address. KeyError where the network has none."""
    if service.four is None:
        raise KeyError(service.network)
    return cast(IPv4Address, service.four.gateway)


def fixed6(service: Service) -> frozenset[str]:
    """MAC addresses that have an IPv6 address of their own."""
    return frozenset(mac for mac, _address in service.six.fixed) if service.six else frozenset()
