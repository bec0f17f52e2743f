"""A clock that never goes back, and says when the system's clock was set.

Costs, time-outs and "seen after we asked" are differences of instants. A system clock that is set
back would make a machine look cheaper than it is and a snapshot older than the drain it proves; so
the time told here stands on the monotonic clock then, and runs a tenth slower than real time until
the system's clock has caught up. A clock set forward is followed at once: costs are then taken for
too high, never for too low. Either way somebody must know, because no time-out may run for a time
that did not pass: `jumped`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

JUMP = timedelta(seconds=2)  # a smaller difference is the usual discipline of NTP
_SLEW = 0.1  # how much slower it runs while it is ahead of the system's clock


class SteadyClock:
    """Call it for the instant. `floor`: an instant known to have passed, from the last run."""

    def __init__(
        self,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        floor: datetime | None = None,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._seen_wall, self._seen = wall(), monotonic()
        self._told = max(self._seen_wall, floor or self._seen_wall)
        self._jumped: datetime | None = None

    def __call__(self) -> datetime:
        with self._lock:
            wall, now = self._wall(), self._monotonic()
            passed = timedelta(seconds=max(now - self._seen, 0.0))
            jump = wall - self._seen_wall - passed
            self._seen_wall, self._seen = wall, now
            self._told = max(self._told + passed * (1 - _SLEW), wall)
            if abs(jump) > JUMP:
                self._jumped = self._told
            return self._told

    @property
    def ahead(self) -> timedelta:
        """How far it is ahead of the system's clock; more than a moment after that was set back."""
        with self._lock:
            return self._told - self._seen_wall

    @property
    def jumped(self) -> datetime | None:
        """When the system's clock was last set, as told here; None: never since the start."""
        with self._lock:
            return self._jumped
