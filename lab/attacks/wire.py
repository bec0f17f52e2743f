"""Putting frames on wires, and seeing on every wire at once what came out.

One AF_PACKET socket (packet(7)) a place, without threads: frames wait in the socket until they are
read. What reached the gateway's own sockets is seen by raw sockets, which get a copy of every
packet that passed the input hook (raw(7)). How it is known that everything has come out: fence.py.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice

from lab.attacks.case import MAGIC, Role, Shot, markers
from lab.attacks.fence import Fence, dropped
from lab.attacks.ground import GATEWAY, UNDERLAY

ETH_P_ALL = 3
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23
SO_RCVBUFFORCE = 33
_BUFFER = 64 << 20  # bytes a socket may hold until it is read
_SNAP = 4096
_AT_ONCE, _TRIES = 128, 5  # frames that wait together in a CPU's queue of 1000, copies and all

# Protocols whose packets to the gateway's own sockets are looked for.
RAW4 = (1, 2, 4, 6, 17, 33, 41, 47, 50, 51, 89, 112, 132, 136, 253)
RAW6 = (4, 6, 17, 41, 47, 50, 58, 132, 136, 253)


@dataclass
class Sightings:
    """Which marker was seen where; frames as they were seen."""

    seen: dict[tuple[int, Role], dict[str, list[bytes]]] = field(default_factory=dict)

    def add(self, place: str, frame: bytes) -> int:
        if place == UNDERLAY and _from_tenant(frame):
            place = GATEWAY
        found = set(markers(frame))
        for key in found:
            self.seen.setdefault(key, {}).setdefault(place, []).append(frame)
        return len(found)

    def places(self, number: int, role: Role) -> Mapping[str, list[bytes]]:
        return self.seen.get((number, role), {})


def _from_tenant(packet: bytes) -> bool:
    """Whether an IPv4 packet's source is in a network of the ground (all are in 10.0.0.0/8)."""
    return packet[12:13] == b"\x0a"


def watch(interface: str | None) -> socket.socket:
    """What arrives at an interface, or at all of this network namespace."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER)
    sock.setblocking(False)
    if interface:
        sock.bind((interface, ETH_P_ALL))
    return sock


def delivered(family: int, protocol: int) -> socket.socket:
    """What is delivered to this namespace's own stack."""
    sock = socket.socket(family, socket.SOCK_RAW, protocol)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER)
    sock.setblocking(False)
    return sock


def sender(interface: str) -> socket.socket:
    """Sends frames as they are; receives nothing (protocol 0)."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    sock.bind((interface, 0))
    return sock


class Wires:
    """All sockets of a ground. `places` by the name of what they show."""

    def __init__(
        self, senders: Mapping[tuple[str, str], socket.socket],
        places: Iterable[tuple[str, socket.socket]], fence: Fence,
    ) -> None:  # fmt: skip
        self._senders, self._fence = dict(senders), fence
        self._places = {sock.fileno(): (place, sock) for place, sock in places}
        self._poll = select.poll()
        for number in self._places:
            self._poll.register(number, select.POLLIN)
        self._buffer = bytearray(_SNAP)
        self.sent = 0

    def inject(self, shots: Iterable[Shot], into: Sightings) -> None:
        """Send all, and return when all have come to rest; what was seen is in `into`.

        Raises StuckError.
        """
        frames = chain.from_iterable(self._frames(shot) for shot in shots)
        while some := [*islice(frames, _AT_ONCE)]:
            for _try in range(_TRIES):
                before = dropped()
                for sock, frame in some:
                    sock.send(frame)
                self.sent += len(some)
                self._fence.wait()
                self.read(into)
                if dropped() == before:  # else some of these may have been lost
                    break

    def _frames(self, shot: Shot) -> Iterator[tuple[socket.socket, bytes]]:
        sock = self._senders[shot.host, shot.interface]
        return ((sock, frame) for frame in shot.frames())

    def read(self, into: Sightings) -> int:
        """All that waits. Returns how many markers were in it."""
        found = 0
        for place, sock in self._places.values():
            with suppress(BlockingIOError):
                while True:
                    size = sock.recv_into(self._buffer)
                    data = bytes(self._buffer[:size])
                    if MAGIC in data:
                        found += into.add(place, data)
        return found

    def settle(self, into: Sightings, quiet_s: float, limit_s: float) -> None:
        """Read until no marker has come for a while: what waited for a timer comes late."""
        end = time.monotonic() + limit_s
        last = time.monotonic()
        while time.monotonic() < end:
            if self.read(into):
                last = time.monotonic()
            left = last + quiet_s - time.monotonic()
            if left <= 0:
                return
            self._poll.poll(left * 1000)

    def discard(self) -> None:
        """Forget what waits from before."""
        self.read(Sightings())

    def close(self) -> None:
        for sock in (*self._senders.values(), *(sock for _place, sock in self._places.values())):
            sock.close()
        self._fence.close()
