"""A clock that never goes back, and says when the system's clock was set.

Costs, time-outs and "seen after we asked" are differences of instants. A system clock that is set
back would make a machine look cheaper than it is and a snapshot older than the drain it proves; so
the time told here stands on the monotonic clock then, and runs a tenth slower than real time until
the system's clock has caught up. A clock set forward is followed at once: costs are then taken for
too high, never for too low. Either way somebody must know, because no time-out may run for a time
that did not pass: `jumped`.

It goes on over restarts of the daemon (`LastingClock`): the monotonic clock is the kernel's, and
knows how long the daemon was away, unless the machine itself was started anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

JUMP = timedelta(seconds=2)  # a smaller difference is the usual discipline of NTP
_SLEW = 0.1  # how much slower it runs while it is ahead of the system's clock
KEPT = "clock"  # the note: an instant told, and when that was, as `boot id, seconds`
_KEPT_FOR = timedelta(minutes=1)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def since_boot() -> float:
    """Seconds since the machine's start, those that it was suspended for included (time(7))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Differs for each start of the machine (random(4))."""
    return _BOOT_ID.read_text(encoding="ascii").strip()


class SteadyClock:
    """Call it for the instant. `floor`: an instant known to have passed, from the last run."""

    def __init__(
        self,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = since_boot,
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


class Notes(Protocol):
    """Named texts that outlive the daemon; the store has some."""

    def note(self, key: str, value: str) -> None: ...
    def notes(self) -> Mapping[str, str]: ...


class LastingClock(SteadyClock):
    """A steady clock that takes up where the last daemon's stood. `boot` names the start of the
    machine that `monotonic` counts from."""

    def __init__(
        self,
        notes: Notes,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = since_boot,
        boot: Callable[[], str] = boot_id,
        floor: datetime | None = None,
    ) -> None:
        self._notes = notes
        self._boot = boot()
        self._kept: tuple[datetime, datetime | None] | None = None
        before = self._before(monotonic)
        super().__init__(wall, monotonic, max(filter(None, (before, floor)), default=None))

    def _before(self, monotonic: Callable[[], float]) -> datetime | None:
        words = self._notes.notes().get(KEPT, "").split()
        if len(words) != 3:
            return None
        told, boot, seconds = words
        passed = monotonic() - float(seconds) if boot == self._boot else 0.0
        return datetime.fromisoformat(told) + timedelta(seconds=max(passed, 0.0))

    def keep(self) -> None:
        """Note the time for the next start: each minute, and when the system's clock was set."""
        now, jumped = self(), self.jumped
        if self._kept and self._kept[1] == jumped and now - self._kept[0] < _KEPT_FOR:
            return
        with self._lock:
            told, seconds = self._told, self._seen
        self._notes.note(KEPT, f"{told.isoformat()} {self._boot} {seconds!r}")
        self._kept = (now, jumped)
