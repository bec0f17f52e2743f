"""From probes to "this tunnel is up": dvn/tunnels/health.py, with what the kernel counts.

While packets of others keep arriving an up tunnel needs no probe: they prove as much.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from burst.model import LinkHealth
from dvn.tunnels.health import Health


@dataclass(frozen=True, slots=True)
class Counters:
    """Packets through the tunnel device, as the kernel counts them."""

    rx: int
    tx: int


@dataclass(frozen=True, slots=True)
class Watch:
    """What is known of one tunnel; a new value for each observation."""

    known: Health
    turned: datetime  # since when it is down, or not
    counters: Counters = Counters(0, 0)
    moving: bool = False  # packets arrived between the last two looks

    @classmethod
    def begin(cls, now: datetime, detail: str = "no packet came through yet") -> Watch:
        return cls(Health.begin(now, detail), now)

    @property
    def health(self) -> LinkHealth:
        """As others see it; `since` when it is up, or not."""
        known = self.known
        return LinkHealth(
            up=known.state != "down",
            since=self.turned,
            rx_packets=self.counters.rx,
            tx_packets=self.counters.tx,
            rtt_ms=None if known.state == "down" else known.rtt_ms,
            detail=known.why,
            state=known.state,
            loss=known.loss,
        )

    @property
    def needs_probe(self) -> bool:
        return not (self.known.state == "up" and self.moving)

    def counted(self, now: datetime, counters: Counters) -> Watch:
        moving = counters.rx > self.counters.rx
        known = self.known.heard(now) if moving else self.known
        return replace(self._after(now, known), counters=counters, moving=moving)

    def answered(self, now: datetime, rtt_ms: float) -> Watch:
        return self._after(now, self.known.answered(now, rtt_ms))

    def unanswered(self, now: datetime, detail: str) -> Watch:
        return self._after(now, self.known.unanswered(now, detail))

    def _after(self, now: datetime, known: Health) -> Watch:
        same = (known.state == "down") == (self.known.state == "down")
        return replace(self, known=known, turned=self.turned if same else now)
