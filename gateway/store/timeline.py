"""The timeline of a lease: written in the transaction of what it tells about."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert

from burst.model import LeaseState
from gateway.store import tables as t

FINAL = (LeaseState.GONE.value, LeaseState.FAILED.value)


@dataclass(frozen=True, slots=True)
class Event:
    """One entry; `state` is empty where the state did not change."""

    id: int
    at: datetime
    lease: str
    kind: str  # state | drain | enrolled | report
    state: str
    message: str


def add_event(c: Connection, at: datetime, lease: str, kind: str, state: str, message: str) -> None:
    c.execute(insert(t.events).values(at=at, lease=lease, kind=kind, state=state, message=message))
