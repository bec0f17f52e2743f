"""How much one peer may ask of a server that the whole internet can reach."""

from __future__ import annotations

import threading
from dataclasses import dataclass

_PEERS_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds, rates per second and peer address.

    The defaults leave room for a hundred machines behind one NAT gateway, each with a heartbeat
    every 30 seconds, and for a slow machine's TLS handshake.
    """

    connections: int = 64  # at once, from everybody
    idle: float = 8.0  # between two bytes
    deadline: float = 20.0  # for a whole request, whatever trickles in
    head: int = 8192  # request line and headers
    body: int = 8192
    requests_burst: int = 100
    requests_rate: float = 10.0
    failures_burst: int = 10  # requests with a wrong token or key
    failures_rate: float = 0.2


class TokenBucket:
    """One bucket of `burst` for each peer, refilled at `rate` a second (RFC 2697 calls it CIR)."""

    def __init__(self, burst: int, rate: float) -> None:
        self._burst = float(burst)
        self._rate = rate
        self._levels: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, peer: str, now: float) -> bool:
        """Take one; False when there is none. `now` in seconds of a monotonic clock."""
        with self._lock:
            level = self._level(peer, now)
            allowed = level >= 1.0
            self._levels.pop(peer, None)  # put back at the end: the oldest peer is the first
            self._levels[peer] = (level - 1.0 if allowed else level, now)
            if len(self._levels) > _PEERS_REMEMBERED:
                del self._levels[next(iter(self._levels))]
            return allowed

    def has(self, peer: str, now: float) -> bool:
        """Whether `take` would be allowed."""
        with self._lock:
            return self._level(peer, now) >= 1.0

    def _level(self, peer: str, now: float) -> float:
        level, at = self._levels.get(peer, (self._burst, now))
        return min(self._burst, level + (now - at) * self._rate)
