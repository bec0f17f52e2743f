"""A service the daemon depends on, asked in a thread of its own.

A hanging answer costs that service's facts in this round and nothing else: not the other
services', not the round, not the daemon's end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from gateway.loops.backoff import Backoff

T = TypeVar("T")
log = logging.getLogger(__name__)
Spawn = Callable[[str, Callable[[], None]], None]


def in_thread(name: str, work: Callable[[], None]) -> None:
    """Do it beside everything else."""
    threading.Thread(target=work, name=name, daemon=True).start()


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """What `dvn gateway status` says of one service."""

    name: str
    ok: bool
    since: datetime | None  # since when it answers, or does not; None: it was never asked
    error: str  # why it does not, or did not the last time
    failures: int  # in a row
    retry_at: datetime | None
    recovered: datetime | None  # the end of the last long outage


class Source(Generic[T]):
    """`ask()` starts a question unless one is under way or it is too early after a failure;
    `answer(seconds)` waits for it and takes the answer, once."""

    def __init__(
        self,
        name: str,
        question: Callable[[], T],
        *,
        expected: tuple[type[Exception], ...],
        backoff: Backoff,
        clock: Callable[[], datetime],
        long_outage: timedelta = timedelta(seconds=30),
        spawn: Spawn = in_thread,
    ) -> None:
        self.name = name
        self._question = question
        self._expected = expected
        self._backoff = backoff
        self._clock = clock
        self._changed = threading.Condition()
        self._running = False
        self._answers: list[T] = []
        self._ok = False
        self._since: datetime | None = None
        self._error = ""
        self._retry_at: datetime | None = None
        self._long_outage = long_outage
        self._recovered: datetime | None = None
        self._spawn = spawn

    def ask(self) -> None:
        with self._changed:
            if self._running or (self._retry_at is not None and self._clock() < self._retry_at):
                return
            self._running = True
        self._spawn(f"ask-{self.name}", self._run)

    def answer(self, timeout: float) -> T | None:
        """What was answered since the last call, or None. Waits only while a question is open."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running or bool(self._answers), timeout)
            if not self._answers:
                if self._running:
                    self._failed(f"no answer after {timeout:.0f} s")
                return None
            return self._answers.pop()

    @property
    def status(self) -> SourceStatus:
        with self._changed:
            return SourceStatus(
                self.name,
                self._ok,
                self._since,
                self._error,
                self._backoff.failures,
                self._retry_at,
                self._recovered,
            )

    @property
    def error(self) -> str:
        return self.status.error

    def _run(self) -> None:
        try:
            answer = self._question()
        except self._expected as error:
            with self._changed:
                self._finish(" ".join(str(error).split()) or type(error).__name__)
        except Exception as error:
            # A defect of ours, not of the service: with its traceback, and then like silence.
            log.exception("event=bug where=%s", self.name)
            with self._changed:
                self._finish(f"internal error: {type(error).__name__}: {error}")
        else:
            with self._changed:
                self._answers = [answer]
                self._finish("")

    def _finish(self, error: str) -> None:
        self._running = False
        if error:
            self._retry_at = self._clock() + self._backoff.failure()
            self._failed(error)
        else:
            if not self._ok:
                log.info("event=answers service=%s", self.name)
                now = self._clock()
                if self._since is not None and now - self._since >= self._long_outage:
                    self._recovered = now
                self._ok, self._since = True, now
            self._backoff.success()
            self._error, self._retry_at = "", None
        self._changed.notify_all()

    def _failed(self, error: str) -> None:
        if self._ok or self._error != error:
            log.warning("event=no-answer service=%s error=%r", self.name, error)
        if self._ok or self._since is None:
            self._ok, self._since = False, self._clock()
        self._error = error
