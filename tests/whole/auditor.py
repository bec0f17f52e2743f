"""Somebody who looks at the money all the time, from outside: the daemon is not asked.

The bill is the lab cloud's own. What is settled and set aside is read from the database file, so
that it is also seen while no daemon lives.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.cloud.types import TYPES
from lab.scenarios.story import Story

_FILE = "/var/lib/dvn/gateway.sqlite"  # on the gateway
_SETTLED = "SELECT amount FROM ledger"
_RESERVED = "SELECT reserved FROM leases WHERE state NOT IN ('gone', 'failed')"


@dataclass(frozen=True, slots=True)
class Books:
    """One look: `bill` was asked before the others were read."""

    bill: Decimal
    spent: Decimal
    reserved: Decimal

    @property
    def counted(self) -> Decimal:
        return self.spent + self.reserved


class Auditor:
    """A context manager; inside, it looks about twice a second and keeps what it saw.

    price: what the site pays for an hour of `type_name`; the lab's own list has another.
    """

    def __init__(self, story: Story, type_name: str, price: Decimal) -> None:
        self._story = story
        self._factor = price / TYPES[type_name].price_per_hour
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="auditor", daemon=True)
        self.looks: list[Books] = []
        self.missed = 0

    def bill(self) -> Decimal:
        """What the cloud charges at the site's price: by the second, at least a minute each."""
        return self._story.cloud.cost() * self._factor

    def look(self) -> Books:
        """Raises `sqlite3.Error` while the file cannot be read."""
        bill = self.bill()
        # Not by /proc/PID/root: SQLite follows such a link by its text, to our own /.
        spent, reserved = self._story.gw1.inside(_read)
        return Books(bill, spent, reserved)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            try:
                self.looks.append(self.look())
            except sqlite3.Error:
                self.missed += 1  # there is no database yet, or it is being recovered


def _read() -> tuple[Decimal, Decimal]:
    # A file without its log, as nobody has it open, cannot be opened just for reading
    # (sqlite.org/wal.html, "Read-Only Databases"), unless we say that nobody writes.
    how = "mode=ro" if Path(f"{_FILE}-wal").exists() else "mode=ro&immutable=1"
    with closing(sqlite3.connect(f"file:{_FILE}?{how}", uri=True, timeout=5)) as c:
        c.execute("BEGIN")  # both sums are of one moment
        return _sum(c, _SETTLED), _sum(c, _RESERVED)


def _sum(connection: sqlite3.Connection, query: str) -> Decimal:
    return sum((Decimal(row[0]) for row in connection.execute(query)), Decimal(0))
