"""Packets sent for real, and where they came out: what a walk must agree with.

Every interface of the gateway is a cable to `world`, a host without addresses that injects frames
and sees what comes out. Each packet carries its number; all are sent, then all is looked at.
"""

from __future__ import annotations

import re
import select
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from dvn.diagnose.frames import Packet
from lab.host import Host

ETH_P_ALL, ETH_P_ARP = 3, 0x0806
PACKET_OTHERHOST = 3
SOL_PACKET, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING = 263, 8, 23
TP_STATUS_VLAN_VALID = 1 << 4
_MARK = re.compile(rb"dvn!(\d{6})")
_SETTLED_S, _LIMIT_S = 0.4, 30.0
_ICMP_ERRORS = {4: frozenset({3, 5, 11, 12}), 6: frozenset({1, 2, 3, 4, 137})}
_PROTOCOLS = (socket.IPPROTO_TCP, socket.IPPROTO_UDP, 47, 253)


def numbered(number: int) -> bytes:
    """What tells a packet among others; a payload, or at the end of one."""
    return b"dvn!%06d" % number


@dataclass
class Seen:
    """Where the copies of one packet came out, and as what."""

    frames: dict[str, list[Packet]] = field(default_factory=lambda: defaultdict(list))

    @property
    def devices(self) -> frozenset[str]:
        return frozenset(self.frames)


@dataclass(frozen=True)
class Sent:
    """One packet of the test: where it enters, and its number."""

    number: int
    enters: str
    packet: Packet


class Wires:
    """Sends frames into the gateway's interfaces and collects what comes out, on the wires and to
    the gateway itself (raw sockets behind the input hook; ARP at the bridges' own devices)."""

    def __init__(self, world: Host, gateway: Host, interfaces: Sequence[str]) -> None:
        self._world, self._gateway, self._interfaces = world, gateway, interfaces
        self._bridges: tuple[str, ...] = ()

    @contextmanager
    def open(self, bridges: Sequence[str]) -> Iterator[None]:
        with ExitStack() as stack:
            self._wires = self._world.inside(
                lambda: {name: stack.enter_context(_wire(name)) for name in self._interfaces}
            )
            self._own = self._gateway.inside(
                lambda: [stack.enter_context(sock) for sock in _own_sockets(bridges)]
            )
            for sock in self._own:
                sock.setblocking(False)
            yield

    def send(self, packets: Sequence[Sent]) -> dict[int, Seen]:
        """Send all; then where each came out."""
        found: dict[int, Seen] = defaultdict(Seen)
        for sent in packets:
            self._wires[sent.enters].send(sent.packet.frame)
            self._read(found, 0.0)
        end = time.monotonic() + _LIMIT_S
        while self._read(found, _SETTLED_S) and time.monotonic() < end:
            pass
        return found

    def _read(self, found: dict[int, Seen], wait: float) -> bool:
        """Read what is there. Whether there was anything."""
        names = {sock: name for name, sock in self._wires.items()}
        ready, _, _ = select.select([*names, *self._own], [], [], wait)
        for sock in ready:
            while True:
                try:
                    data, extra, _flags, address = sock.recvmsg(4096, 64)
                except BlockingIOError:
                    break
                mark = _MARK.search(data)
                other = isinstance(address, tuple) and address[2:3] == (PACKET_OTHERHOST,)
                if mark is None or (sock not in names and other):
                    continue
                seen = found[int(mark[1])]
                if sock in names:
                    packet = Packet(_with_tag(data, extra))
                    if not _is_error(packet):
                        seen.frames[names[sock]].append(packet)
                else:
                    seen.frames["host"].append(Packet(data))
        return bool(ready)


def _is_error(packet: Packet) -> bool:
    """An ICMP error of the gateway's, which carries the packet that it is about."""
    ip, data = packet.ip, packet.transport
    return bool(
        ip and data and ip.protocol in (1, 58) and data[0] in _ICMP_ERRORS[ip.version]
        and not data[8:].startswith(b"dvn!")
    )  # fmt: skip


def _wire(name: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.bind((name, ETH_P_ALL))
    sock.setblocking(False)
    return sock


def _own_sockets(bridges: Sequence[str]) -> Iterator[socket.socket]:
    for protocol in (*_PROTOCOLS, socket.IPPROTO_ICMP):
        yield socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)
    for protocol in (*_PROTOCOLS, socket.IPPROTO_ICMPV6):
        yield socket.socket(socket.AF_INET6, socket.SOCK_RAW, protocol)
    for bridge in bridges:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP))
        sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        sock.bind((bridge, ETH_P_ARP))
        yield sock


def _with_tag(data: bytes, extra: Sequence[tuple[int, int, bytes]]) -> bytes:
    """The frame with the VLAN tag that the kernel keeps beside it."""
    for level, kind, value in extra:
        if level == SOL_PACKET and kind == PACKET_AUXDATA:
            status, tci, tpid = struct.unpack_from("=I12xHH", value.ljust(20, b"\0"))
            if status & TP_STATUS_VLAN_VALID:
                return data[:12] + struct.pack("!HH", tpid or 0x8100, tci) + data[12:]
    return data
