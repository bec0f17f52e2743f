"""From probes to "this tunnel is up": with hysteresis, so that one lost packet moves nobody.

Up with the first answer. Down when several probes in a row were lost *and* some time passed. While
packets of others keep arriving no probe is needed: they prove as much.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from burst.model import LinkHealth

PROBES_TO_DOWN = 3
TIME_TO_DOWN = timedelta(seconds=6)


@dataclass(frozen=True, slots=True)
class Counters:
    """Packets through the tunnel device, as the kernel counts them."""

    rx: int
    tx: int


@dataclass(frozen=True, slots=True)
class Watch:
    """What is known of one tunnel; a new value for each observation."""

    health: LinkHealth
    lost: int = 0  # probes without an answer since the last sign of life
    alive: datetime | None = None  # the last sign of life
    moving: bool = False  # packets arrived between the last two looks

    @classmethod
    def begin(cls, now: datetime, detail: str = "no packet came through yet") -> Watch:
        return cls(LinkHealth(up=False, since=now, detail=detail))

    @property
    def needs_probe(self) -> bool:
        return not (self.health.up and self.moving)

    def counted(self, now: datetime, counters: Counters) -> Watch:
        moving = counters.rx > self.health.rx_packets
        health = replace(self.health, rx_packets=counters.rx, tx_packets=counters.tx)
        if moving and health.up:
            return replace(self, health=health, moving=True, lost=0, alive=now)
        return replace(self, health=health, moving=moving)

    def answered(self, now: datetime, rtt_ms: float) -> Watch:
        since = self.health.since if self.health.up else now
        health = replace(self.health, up=True, since=since, rtt_ms=rtt_ms, detail="")
        return replace(self, health=health, lost=0, alive=now)

    def unanswered(self, now: datetime, detail: str) -> Watch:
        lost = self.lost + 1
        if not self.health.up:
            return replace(self, lost=lost, health=replace(self.health, detail=detail))
        silent = self.alive is None or now - self.alive >= TIME_TO_DOWN
        if lost < PROBES_TO_DOWN or not silent:
            return replace(self, lost=lost)
        health = replace(self.health, up=False, since=now, rtt_ms=None, detail=detail)
        return replace(self, lost=lost, health=health)
