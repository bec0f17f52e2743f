"""When to look, when to repair, and when to stop fighting: decided without a clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

QUIET_S, LATEST_S = 0.1, 0.3
FIGHTS, FIGHT_WINDOW_S = 5, 60.0
FIRST_WAIT_S, LONGEST_WAIT_S = 2.0, 60.0


@dataclass
class Debounce:
    """Events come in bursts: look once it is quiet for a moment, or when enough time has passed."""

    quiet: float = QUIET_S
    latest: float = LATEST_S
    _first: float | None = None
    _last: float = 0.0

    def happened(self, now: float) -> None:
        self._first = now if self._first is None else self._first
        self._last = now

    def due(self) -> float | None:
        """When to look; None: nothing happened."""
        if self._first is None:
            return None
        return min(self._last + self.quiet, self._first + self.latest)

    def looked(self) -> None:
        self._first = None


@dataclass
class Fight:
    """Somebody undoes one and the same repair, again and again.

    After `FIGHTS` times within `FIGHT_WINDOW_S` the next waits, twice as long each time, up to a
    minute: two daemons that overwrite each other's work many times a second help nobody, and the
    operator has to be told which they are. A quiet window ends it.
    """

    count: int = 0  # of the repair that was made last, within the window
    who: str = ""  # as far as it was known at any time
    _repairs: deque[tuple[float, tuple[str, ...]]] = field(default_factory=deque)
    _wait: float = 0.0
    _not_before: float = 0.0

    def repaired(self, now: float, what: tuple[str, ...]) -> None:
        self._repairs.append((now, what))
        while self._repairs[0][0] < now - FIGHT_WINDOW_S:
            self._repairs.popleft()
        self.count = sum(same == what for _at, same in self._repairs)
        if self._wait or self.count >= FIGHTS:
            self._wait = min(self._wait * 2 or FIRST_WAIT_S, LONGEST_WAIT_S)
            self._not_before = now + self._wait

    def held_until(self, now: float) -> float | None:
        """When the next repair may be; None: now."""
        if self._wait and now >= self._not_before + FIGHT_WINDOW_S:
            self._wait = 0.0
            self._repairs.clear()
        return self._not_before if now < self._not_before else None

    @property
    def on(self) -> bool:
        return self._wait > 0
