"""The latest answer to "why?" for each subject, in memory.

Not in the store: the first round after a restart answers everything anew, and a queue of a
hundred thousand waiting jobs would be written every few seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from burst.actions import Reason

KEEP = timedelta(hours=6)  # of subjects no round speaks of any more, such as ended jobs


@dataclass(frozen=True, slots=True)
class Answer:
    reason: Reason
    since: datetime  # since when it is this code
    at: datetime  # the last round that said so


class Answers:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: dict[tuple[str, str], Answer] = {}

    def hear(self, reasons: Iterable[Reason], now: datetime) -> None:
        with self._lock:
            for reason in reasons:
                key: tuple[str, str] = (reason.subject, reason.id)
                old = self._latest.get(key)
                same = old is not None and old.reason.code == reason.code
                since = old.since if same and old is not None else now
                self._latest[key] = Answer(reason, since, now)
            stale = [key for key, answer in self._latest.items() if now - answer.at > KEEP]
            for key in stale:
                del self._latest[key]

    def why(self, subject: str, name: str) -> Answer | None:
        with self._lock:
            return self._latest.get((subject, name))

    def all_of(self, subject: str) -> dict[str, Answer]:
        with self._lock:
            return {key[1]: answer for key, answer in self._latest.items() if key[0] == subject}
