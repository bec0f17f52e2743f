"""Router advertisements in every network: asked for, and from time to time."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv6Address

from dvn.services import ra
from dvn.services.config import Service

log = logging.getLogger(__name__)

_ICMP6_FILTER, _RECVPKTINFO, _PKTINFO, _RECVHOPLIMIT, _HOPLIMIT = 1, 49, 50, 51, 52
_UNICAST_HOPS, _MULTICAST_HOPS, _MULTICAST_LOOP = 16, 18, 19


@dataclass
class _Turn:
    """When a network had its last advertisement, and what it waits for."""

    service: Service
    sent: int = 0
    last: float = -ra.APART_S
    timer: asyncio.TimerHandle | None = None


class Advertiser:
    """One raw socket for all networks (icmpv6(7)): neighbour discovery passes every raw socket of
    the host, and a thousand of them would make it slow."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        self._socket.setblocking(False)
        blocked = bytearray(b"\xff" * 32)
        blocked[ra.ROUTER_SOLICITATION // 8] &= ~(1 << ra.ROUTER_SOLICITATION % 8) & 0xFF
        self._socket.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, bytes(blocked))
        for option, value in (
            (_RECVPKTINFO, 1),
            (_RECVHOPLIMIT, 1),
            (_UNICAST_HOPS, ra.HOP_LIMIT),
            (_MULTICAST_HOPS, ra.HOP_LIMIT),
            (_MULTICAST_LOOP, 0),
        ):
            self._socket.setsockopt(socket.IPPROTO_IPV6, option, value)
        self._turns: dict[int, _Turn] = {}

    def listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def add(self, index: int, service: Service) -> None:
        """Advertise on the bridge with this index, from now on."""
        self._turns[index] = _Turn(service)
        self._send(index)

    def remove(self, index: int, *, farewell: bool) -> None:
        """No more; with `farewell` machines are told that this router goes."""
        turn = self._turns.pop(index, None)
        if turn is None:
            return
        if turn.timer:
            turn.timer.cancel()
        if farewell:
            self._put(index, turn.service, 0)

    def _read(self) -> None:
        try:
            data, extra, _flags, (source, *_rest) = self._socket.recvmsg(1500, 256)
        except OSError:
            return
        told = {kind: value for level, kind, value in extra if level == socket.IPPROTO_IPV6}
        hops = struct.unpack("=i", told.get(_HOPLIMIT, bytes(4)))[0]
        if len(data) < 8 or data[1] != 0 or hops != ra.HOP_LIMIT:
            return  # RFC 4861, 6.1.1
        index = struct.unpack_from("=I", told.get(_PKTINFO, bytes(20)), 16)[0]
        turn = self._turns.get(index)
        if turn is None:
            return
        log.debug("%s: %s solicits", turn.service.network, source)
        loop = asyncio.get_running_loop()
        due = turn.last + ra.APART_S
        if loop.time() >= due:
            self._send(index)
        elif turn.timer is None or turn.timer.when() > due:
            self._again(index, turn, due)

    def _send(self, index: int) -> None:
        turn = self._turns.get(index)
        if turn is None:
            return
        now = asyncio.get_running_loop().time()
        turn.last, turn.sent = now, turn.sent + 1
        self._put(index, turn.service, ra.LIFETIME_S)
        self._again(
            index, turn, now + (ra.FIRST_INTERVAL_S if turn.sent < ra.FIRST else ra.INTERVAL_S)
        )

    def _again(self, index: int, turn: _Turn, when: float) -> None:
        if turn.timer:
            turn.timer.cancel()
        turn.timer = asyncio.get_running_loop().call_at(when, self._send, index)

    def _put(self, index: int, service: Service, lifetime: int) -> None:
        if service.six is None:
            return
        data = ra.advertisement(service, service.six, lifetime)
        source = IPv6Address(service.link_local).packed + struct.pack("=I", index)
        extra = [(socket.IPPROTO_IPV6, _PKTINFO, source)]
        try:
            self._socket.sendmsg([data], extra, 0, (ra.ALL_NODES, 0, 0, index))
        except OSError as error:  # not up yet, or gone: the next one comes
            log.info("%s: router advertisement: %s", service.network, error.strerror)
