"""Sends and hears what exchange.py says, by raw GRE and by UDP. Needs CAP_NET_RAW.

GRE packets of the probes carry an Ethernet type that no tunnel uses (IEEE 802, local experimental),
so a tunnel with the same key, which the kernel hands them to as well, lets them fall.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from dvn.spec import Site, Tunnel
from dvn.tunnels.exchange import INTERVAL_S, PROBE_PORT, Exchange, Packet, Via
from dvn.tunnels.pmtu import Search

_EXPERIMENTAL = 0x88B5
_GRE = struct.Struct("!HHI")  # flags, protocol, key (RFC 2890)
_KEYED = 0x2000
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3  # linux/in.h, linux/in6.h
_LEAST = 1280
_HEADERS = {(4, "gre"): 28, (4, "udp"): 28, (6, "gre"): 48, (6, "udp"): 48}
"""IP, and GRE with key or UDP: eight bytes either."""


@dataclass(frozen=True)
class End:
    """A tunnel to be probed: `largest` is that of the packets worth trying."""

    tunnel: Tunnel
    local: str
    remote: str | None
    largest: int


def ends(site: Site, largest: int, wanted: Callable[[Tunnel], bool]) -> tuple[End, ...]:
    """Those of a site that are `wanted`; one without an address here is left out."""
    found = []
    for tunnel in site.tunnels():
        local = site.local_of(tunnel)
        if local is None and site.underlay:
            local = site.underlay.address[0]
        if local is not None and wanted(tunnel):
            remote = str(tunnel.remote) if tunnel.remote else None
            found.append(End(tunnel, str(local), remote, largest))
    return tuple(found)


def probe_paths(
    some: Iterable[End],
    patience_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Mapping[str, Exchange]:
    """Talk to the other ends, all at once, until every exchange is over or `patience_s` have gone.

    By the tunnels' full names. The other ends have to do the same at the same time. Raises OSError.
    """
    some = tuple(some)
    talks = {
        end.tunnel.full_name: Exchange(
            end.tunnel.key, os.urandom(8).hex(), end.local, Search(_LEAST, end.largest)
        )
        for end in some
    }
    with ExitStack() as stack:
        sockets = {
            version: _Sockets(stack, version)
            for version in sorted({6 if ":" in end.local else 4 for end in some})
        }
        until = clock() + patience_s
        due = clock()
        while clock() < until and not all(talk.over for talk in talks.values()):
            if clock() >= due:
                due = clock() + INTERVAL_S
                for end in some:
                    name = end.tunnel.full_name
                    talks[name], packets = talks[name].round()
                    sockets[6 if ":" in end.local else 4].send(end, talks[name], packets)
            for via, source, port, key, body in _heard(sockets.values(), max(0.0, due - clock())):
                for end in some:
                    name = end.tunnel.full_name
                    if end.remote in (None, source) and key in (None, end.tunnel.key):
                        talks[name] = talks[name].receive(via, source, port, body)
        # A last word, so that the other end need not wait for its patience.
        for end in some:
            talk, packets = talks[end.tunnel.full_name].round()
            sockets[6 if ":" in end.local else 4].send(end, talk, packets[:3])
    return talks


class _Sockets:
    """Of one family: GRE, UDP at the known port, and UDP at another."""

    def __init__(self, stack: ExitStack, version: int) -> None:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        self.version = version
        self.gre = stack.enter_context(socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_GRE))
        self.udp = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        self.stray = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        for sock in (self.gre, self.udp, self.stray):
            if version == 6:
                if sock is not self.gre:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
            sock.setblocking(False)
        self.udp.bind(("::" if version == 6 else "0.0.0.0", PROBE_PORT))

    def send(self, end: End, talk: Exchange, packets: Iterable[Packet]) -> None:
        """What cannot be sent is as good as lost: too large here, or no way there."""
        heard = talk.remote
        for packet in packets:
            target, port = end.remote, PROBE_PORT
            if packet.via == "udp" and heard:
                target, port = heard
            if target is None:
                continue
            body = packet.body
            if packet.size:
                room = packet.size - _HEADERS[self.version, packet.via]
                body += b"\0" * (room - len(body))
            try:
                if packet.via == "gre":
                    header = _GRE.pack(_KEYED, _EXPERIMENTAL, end.tunnel.key)
                    self.gre.sendto(header + body, (target, 0))
                else:
                    sock = self.udp if packet.via == "udp" else self.stray
                    sock.sendto(body, (target, port))
            except OSError:
                continue


_Heard = tuple[Via, str, int, int | None, bytes]


def _heard(some: Iterable[_Sockets], wait_s: float) -> Iterable[_Heard]:
    """(way, source, port, GRE key, body) of all that comes within `wait_s`, at least once."""
    known = {sock: (each, sock is each.gre) for each in some for sock in (each.gre, each.udp)}
    ready, _, _ = select.select(list(known), [], [], wait_s)
    for sock in ready:
        each, gre = known[sock]
        while True:
            try:
                data, sender = sock.recvfrom(65535)
            except OSError:  # nothing more, or an ICMP error of a packet sent before
                break
            source = str(sender[0]).partition("%")[0]
            if not gre:
                yield "udp", source, int(sender[1]), None, data
                continue
            if each.version == 4:
                data = data[(data[0] & 15) * 4 :]
            if len(data) < _GRE.size:
                continue
            flags, protocol, key = _GRE.unpack_from(data)
            if flags == _KEYED and protocol == _EXPERIMENTAL:
                yield "gre", source, 0, key, data[_GRE.size :]
