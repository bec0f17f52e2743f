"""Whether a machine still lives: it is asked now and then, and has long to answer.

An emulated machine can stop for good without ending: its processors wait for each other, or turn
in place. Its command would then be waited for forever. A machine that is only slow (this one has
other work) answers late, so patience is long.
"""

from __future__ import annotations

EVERY_S = 10.0
"""Between an answer and the next question."""
PATIENCE_S = 180.0
"""How long an answer may take: a thousand times what it takes on a quiet machine."""


class Pulse:
    """When to ask, and when to give up; times are of one monotonic clock, in seconds."""

    def __init__(self, now: float, *, every: float = EVERY_S, patience: float = PATIENCE_S) -> None:
        self._every = every
        self._patience = patience
        self._due = now + every
        self._asked: float | None = None

    def ask(self, now: float) -> bool:
        """Whether to ask now; the question counts as put."""
        if self._asked is not None or now < self._due:
            return False
        self._asked = now
        return True

    def answered(self, now: float) -> None:
        self._asked = None
        self._due = now + self._every

    def stopped(self, now: float) -> bool:
        """Whether the last question has waited too long."""
        return self._asked is not None and now - self._asked >= self._patience

    def wait(self, now: float) -> float:
        """Seconds until there is something to do if nothing is heard."""
        end = self._due if self._asked is None else self._asked + self._patience
        return max(0.0, end - now)
