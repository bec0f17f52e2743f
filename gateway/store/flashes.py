"""Flash requests: what operators asked for, kept with the history."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Engine, and_, insert, select, update

from burst.model import Flash
from gateway.store import tables as t
from gateway.store.engine import reading


class Flashes:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, flash: Flash) -> None:
        values = {name: getattr(flash, name) for name in Flash.__dataclass_fields__}
        with self._engine.begin() as c:
            c.execute(insert(t.flashes).values(values))

    def cancel(self, flash_id: str, now: datetime) -> bool:
        """False: there is none of this id that still stands."""
        with self._engine.begin() as c:
            standing = and_(
                t.flashes.c.id == flash_id,
                t.flashes.c.cancelled.is_(None),
                t.flashes.c.ends > now,
            )
            done = c.execute(update(t.flashes).where(standing).values(cancelled=now))
            return bool(done.rowcount)

    def active(self, now: datetime) -> tuple[Flash, ...]:
        return tuple(flash for flash in self.all(since=now) if flash.active(now))

    def all(self, since: datetime | None = None) -> tuple[Flash, ...]:
        """Those that end, or ended, after `since`; the oldest first."""
        query = select(t.flashes).order_by(t.flashes.c.asked, t.flashes.c.id)
        if since is not None:
            query = query.where(t.flashes.c.ends > since)
        with reading(self._engine) as c:
            return tuple(Flash(**row) for row in c.execute(query).mappings())
