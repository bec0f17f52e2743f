"""One-time tokens and what borrowed machines say of themselves.

Called by the enrolment server's threads, so every method is one short transaction, and none writes
a row the burst loop writes. The rules of a token are in `redeem`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, update

from burst.model import Lease, LeaseState
from gateway.enrolment import Refused
from gateway.store import tables as t
from gateway.store.engine import reading
from gateway.store.rows import lease_of
from gateway.store.timeline import FINAL, add_event

_EARLY = frozenset({LeaseState.WANTED, LeaseState.REQUESTED})
_OPEN = frozenset({LeaseState.BOOTING, LeaseState.TUNNELLED})


@dataclass(frozen=True, slots=True)
class Heard:
    """What a borrowed machine said of itself; `failure` is empty while nothing went wrong."""

    lease: str
    at: datetime | None  # when it first fetched its bundle
    heard: datetime  # its last word
    phase: str
    failure: str
    noticed: datetime | None = None  # when it said that its provider takes it back, or may
    ends: datetime | None = None  # when the provider will end it, where that was said


class Joins:
    """Implements `gateway.enrolment.TokenStore`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.changed: Callable[[], None] = lambda: None  # called after news a decision may need

    def mint(self, lease_id: str, token_hash: str, expires: datetime) -> None:
        """Remember a token by its hash, before the launch. A repeat (the launch is tried again)
        only prolongs a token that nobody used yet."""
        with self._engine.begin() as c:
            known = c.execute(select(t.tokens.c.nonce).where(t.tokens.c.hash == token_hash)).first()
            if known is None:
                c.execute(
                    insert(t.tokens).values(
                        hash=token_hash, lease=lease_id, expires=expires, nonce=""
                    )
                )
            elif not known.nonce:
                c.execute(
                    update(t.tokens).where(t.tokens.c.hash == token_hash).values(expires=expires)
                )

    def redeem(self, token_hash: str, nonce: str, now: datetime, peer: str) -> str | Refused:
        """The token's lease id, or why not. Binds the token to the first nonce that may use it.

        Atomic: of many callers with different nonces one is the first, the others are refused.
        The same nonce may repeat, even after the token expired: a lost answer, or a reboot.
        """
        with self._engine.begin() as c:
            row = c.execute(
                select(t.tokens, t.leases.c.state, t.leases.c.body, t.leases.c.drain_requested)
                .outerjoin(t.leases, t.leases.c.id == t.tokens.c.lease)
                .where(t.tokens.c.hash == token_hash)
                .with_for_update(of=t.tokens)
            ).first()
            refused = _refusal(row, nonce, now)
            if refused is not None or row is None:
                return refused or Refused("unknown token")
            if not row.nonce:
                c.execute(
                    update(t.tokens)
                    .where(t.tokens.c.hash == token_hash)
                    .values(nonce=nonce, redeemed=now, peer=peer)
                )
            return str(row.lease)

    def member(self, batch: str, index: int) -> Lease | None:
        """The lease at this place of a batch."""
        query = select(t.leases).where(t.leases.c.batch == batch, t.leases.c.place == index)
        with reading(self._engine) as c:
            row = c.execute(query).mappings().first()
        return None if row is None else lease_of(dict(row))

    def enrolled(self, lease_id: str, now: datetime) -> Refused | None:
        """The bundle is being handed out; the first time is what counts. Refused where the lease
        was let go since the token was shown: either this is stored first, and the decision about
        the lease sees it, or the machine gets nothing."""
        lease = select(t.leases.c.id, t.leases.c.state, t.leases.c.body, t.leases.c.drain_requested)
        with self._engine.begin() as c:
            stored = c.execute(
                lease.where(t.leases.c.id == lease_id).with_for_update(read=True)
            ).first()
            refused = _let_go(stored) if stored is not None else Refused("unknown lease")
            if refused is not None:
                return refused
            row = _row(c, lease_id)
            if row is None or row.at is None:
                add_event(c, now, lease_id, "enrolled", "", "")
            _put(c, row, lease_id, now, at=now if row is None or row.at is None else row.at)
        self.changed()
        return None

    def report(self, lease_id: str, stage: str, ok: bool, detail: str, now: datetime) -> None:
        """Progress or failure. The first failure stays: what follows it is its consequence."""
        failure = "" if ok else f"{stage}: {detail}"
        with self._engine.begin() as c:
            row = _row(c, lease_id)
            values: dict[str, Any] = {"phase": stage}
            if failure and (row is None or not row.failure):
                values["failure"] = failure
                add_event(c, now, lease_id, "report", "", failure)
            elif ok and (row is None or row.phase != stage):
                add_event(c, now, lease_id, "report", "", f"{stage}: {detail}" if detail else stage)
            _put(c, row, lease_id, now, **values)
        self.changed()

    def seen(self, lease_id: str, now: datetime) -> bool:
        """Note a sign of life. False: the lease has ended, the machine should power off."""
        with self._engine.begin() as c:
            state = c.execute(select(t.leases.c.state).where(t.leases.c.id == lease_id)).scalar()
            if state is None or state in FINAL:
                return False
            _put(c, _row(c, lease_id), lease_id, now)
        return True

    def noticed(self, lease_id: str, ends: datetime | None, now: datetime) -> None:
        """Its provider takes the machine back at `ends`, or (None) may do so soon."""
        with self._engine.begin() as c:
            row = _row(c, lease_id)
            news = row is None or row.noticed is None or (ends is not None and row.ends != ends)
            if not news:
                return _put(c, row, lease_id, now)
            text = f"taken back at {ends.isoformat()}" if ends else "may be taken back soon"
            add_event(c, now, lease_id, "notice", "", text)
            _put(c, row, lease_id, now, noticed=now, ends=ends or (row.ends if row else None))
        return self.changed()

    def heard(self) -> dict[str, Heard]:
        """By lease id, of the leases that live."""
        query = (
            select(t.enrolments)
            .join(t.leases, t.leases.c.id == t.enrolments.c.lease)
            .where(t.leases.c.state.not_in(FINAL))
        )
        with reading(self._engine) as c:
            return {row["lease"]: Heard(**row) for row in c.execute(query).mappings()}


def _refusal(row: Any, nonce: str, now: datetime) -> Refused | None:
    if row is None:
        return Refused("unknown token")
    if not nonce:
        return Refused("no nonce")
    if row.nonce and row.nonce != nonce:
        return Refused(f"the token of lease {row.lease} was used before, by another machine")
    if not row.nonce and now >= row.expires:
        return Refused(f"the token of lease {row.lease} expired")
    if row.state is None:
        return Refused(f"lease {row.lease} is not known")
    if (let_go := _let_go(row)) is not None:
        return let_go
    state = LeaseState(row.state)
    if state in _EARLY:  # the machine was faster than our loop
        return Refused(f"lease {row.lease} is only {state.value}", retry=True)
    if state is LeaseState.JOINED and not row.nonce:
        return Refused(f"lease {row.lease} is {state.value}")
    return None


def _let_go(row: Any) -> Refused | None:
    """Whether no machine may join for this lease any more."""
    lease = lease_of({"body": row.body, "drain_requested": row.drain_requested})
    if lease.failure or lease.stop_reason or lease.drain_requested:
        return Refused(f"lease {lease.id} is being ended")
    state = LeaseState(row.state)
    if state in (*_EARLY, *_OPEN, LeaseState.JOINED):
        return None
    return Refused(f"lease {lease.id} is {state.value}")


def _row(c: Connection, lease_id: str) -> Any:
    return c.execute(select(t.enrolments).where(t.enrolments.c.lease == lease_id)).first()


def _put(c: Connection, row: Any, lease_id: str, now: datetime, **values: Any) -> None:
    values["heard"] = now
    if row is None:
        blank: dict[str, Any] = {
            "at": None, "phase": "", "failure": "", "noticed": None, "ends": None
        }  # fmt: skip
        c.execute(insert(t.enrolments).values(blank | values | {"lease": lease_id}))
    else:
        c.execute(update(t.enrolments).where(t.enrolments.c.lease == lease_id).values(values))
