"""When to look, when to repair, and when to stop fighting: decided without a clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TypeAlias

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


Repair: TypeAlias = tuple[str, ...]  # its steps in words


@dataclass
class _Held:
    """A repair that has to wait."""

    wait: float
    not_before: float


@dataclass
class Fight:
    """Somebody undoes one and the same repair, again and again.

    After `FIGHTS` times within `FIGHT_WINDOW_S` the next waits, twice as long each time, up to a
    minute: two daemons that overwrite each other's work many times a second help nobody, and the
    operator has to be told which they are. A quiet window ends it. Other repairs do not wait.
    """

    who: str = ""  # as far as it was known at any time
    _repairs: deque[tuple[float, Repair]] = field(default_factory=deque)
    _held: dict[Repair, _Held] = field(default_factory=dict)

    def repaired(self, now: float, what: Repair) -> int:
        """How many times this was, within the window."""
        self._repairs.append((now, what))
        while self._repairs[0][0] < now - FIGHT_WINDOW_S:
            self._repairs.popleft()
        count = sum(same == what for _at, same in self._repairs)
        held = self._held.get(what)
        if held or count >= FIGHTS:
            wait = min(held.wait * 2 if held else FIRST_WAIT_S, LONGEST_WAIT_S)
            self._held[what] = _Held(wait, now + wait)
        return count

    def held_until(self, now: float, what: Repair) -> float | None:
        """When this repair may be made; None: now."""
        held = self._held.get(what)
        return held.not_before if held and now < held.not_before else None

    def on(self, now: float) -> bool:
        """Whether it is not over yet."""
        over = [w for w, held in self._held.items() if now >= held.not_before + FIGHT_WINDOW_S]
        for what in over:
            del self._held[what]
            self._repairs = deque(each for each in self._repairs if each[1] != what)
        return bool(self._held)
