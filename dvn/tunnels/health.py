"""How a tunnel fares: up, degraded or down, with hysteresis. Pure; a value for each observation.

Down needs several probes lost in a row *and* some time; degraded needs loss or a round trip well
above the usual over a window, and both are left only when it has been good for longer than it was
bad: a tunnel at the edge does not flap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

State = Literal["up", "degraded", "down"]

WINDOW = 20
"""Probes that loss and round trip are told of."""
PROBES_TO_DOWN = 3
TIME_TO_DOWN = timedelta(seconds=6)
DEGRADED_ABOVE, GOOD_BELOW = 0.10, 0.02
"""Shares of probes lost; between them it stays what it is."""
SLOW, QUICK = 4.0, 2.0
"""Times the usual round trip (the shortest that was seen), likewise."""
LEAST_RTT_MS = 20.0
"""Below it a round trip is never slow: a busy host answers late."""
STEADY = 10
"""Good probes in a row before it is up again after it was degraded."""


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of one tunnel. `lost` probes in a row; `window`: the last round trips in ms,
    None for one that was lost."""

    state: State
    since: datetime
    why: str = "no packet came through yet"
    lost: int = 0
    good: int = 0
    alive: datetime | None = None
    window: tuple[float | None, ...] = ()
    usual_ms: float | None = None
    mtu: int | None = None
    expected_mtu: int | None = None

    @classmethod
    def begin(cls, now: datetime, why: str = "no packet came through yet") -> Health:
        return cls("down", now, why)

    @property
    def loss(self) -> float:
        """Share of the window's probes that were lost, 0 to 1."""
        return self.window.count(None) / len(self.window) if self.window else 0.0

    @property
    def rtt_ms(self) -> float | None:
        """The middle one of the window's round trips."""
        times = sorted(rtt for rtt in self.window if rtt is not None)
        return times[len(times) // 2] if times else None

    def answered(self, now: datetime, rtt_ms: float) -> Health:
        """A probe came back."""
        usual = rtt_ms if self.usual_ms is None else min(self.usual_ms, rtt_ms)
        # A window of the outage would make it degraded at once.
        window, good = ((), 0) if self.state == "down" else (self.window, self.good)
        grown = replace(
            self,
            lost=0,
            good=good + 1,
            alive=now,
            window=(*window, rtt_ms)[-WINDOW:],
            usual_ms=usual,
        )
        return grown._judged(now, "up" if self.state == "down" else self.state)

    def heard(self, now: datetime) -> Health:
        """Packets of others came: a sign of life like an answer, which says nothing of quality."""
        if self.state == "down":
            return self
        return replace(self, lost=0, alive=now)

    def unanswered(self, now: datetime, why: str) -> Health:
        """A probe was lost."""
        grown = replace(self, lost=self.lost + 1, good=0, window=(*self.window, None)[-WINDOW:])
        if self.state == "down":
            return replace(grown, why=why)
        silent = self.alive is None or now - self.alive >= TIME_TO_DOWN
        if grown.lost >= PROBES_TO_DOWN and silent:
            return replace(grown, state="down", since=now, why=why)
        return grown._judged(now, self.state)

    def measured(self, now: datetime, mtu: int, expected: int) -> Health:
        """The largest packet that passes, and the one that ought to."""
        grown = replace(self, mtu=mtu, expected_mtu=expected)
        return grown if self.state == "down" else grown._judged(now, self.state)

    def _judged(self, now: datetime, state: State) -> Health:
        bad = self._bad()
        if bad:
            after: State = "degraded"
        elif state == "degraded" and not self._clean():
            after, bad = "degraded", self.why
        else:
            after = "up"
        since = self.since if after == self.state else now
        return replace(self, state=after, since=since, why=bad)

    def _bad(self) -> str:
        if self.mtu and self.expected_mtu and self.mtu < self.expected_mtu:
            return f"packets above {self.mtu} bytes are lost; {self.expected_mtu} should pass"
        if len(self.window) >= 5 and self.loss > DEGRADED_ABOVE:
            return f"{self.loss:.0%} of the probes are lost"
        rtt, limit = self.rtt_ms, self._limit(SLOW)
        if rtt is not None and limit is not None and len(self.window) >= 5 and rtt > limit:
            return f"round trip {rtt:.0f} ms, usually {self.usual_ms:.0f} ms"
        return ""

    def _clean(self) -> bool:
        limit = self._limit(QUICK)
        quick = self.rtt_ms is None or limit is None or self.rtt_ms <= limit
        return self.good >= STEADY and self.loss <= GOOD_BELOW + 1 / WINDOW and quick

    def _limit(self, factor: float) -> float | None:
        if self.usual_ms is None:
            return None
        return max(LEAST_RTT_MS, factor * self.usual_ms)
