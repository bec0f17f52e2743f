"""A round, again and again: at its interval, earlier when woken, later after a defect."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from gateway.loops.backoff import Backoff

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoopStatus:
    name: str
    rounds: int
    last: datetime | None  # the end of the last round that ended well
    seconds: float  # how long it took
    bugs: int  # rounds that ended in an error nobody foresaw; the log has their tracebacks
    last_bug: str


class Loop:
    """Calls `round_` in its own thread. Nothing that happens in a round ends the loop."""

    def __init__(
        self,
        name: str,
        round_: Callable[[], None],
        *,
        interval: timedelta,
        clock: Callable[[], datetime],
    ) -> None:
        self.name = name
        self._round = round_
        self._interval = interval
        self._clock = clock
        self._backoff = Backoff(interval, timedelta(minutes=5))
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._status = LoopStatus(name, 0, None, 0.0, 0, "")

    @property
    def status(self) -> LoopStatus:
        return self._status

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Do not wait for the interval: something happened."""
        self._wake.set()

    def stop(self, timeout: float) -> bool:
        """End after the round under way. False: it did not end in time."""
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            pause = self._once()
            self._wake.wait(pause.total_seconds())
            self._wake.clear()

    def _once(self) -> timedelta:
        begun = self._clock()
        before = self._status
        try:
            self._round()
        except Exception as error:
            # A defect: it must be seen (log, status), and must not stop the care for machines
            # that cost money.
            log.exception("event=bug where=%s", self.name)
            self._status = LoopStatus(
                self.name,
                before.rounds + 1,
                before.last,
                before.seconds,
                before.bugs + 1,
                f"{type(error).__name__}: {error}",
            )
            return self._backoff.failure()
        self._backoff.success()
        now = self._clock()
        self._status = LoopStatus(
            self.name,
            before.rounds + 1,
            now,
            (now - begun).total_seconds(),
            before.bugs,
            before.last_bug,
        )
        return self._interval
