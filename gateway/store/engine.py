"""Opening the database: locks that cannot fail half-way, and a schema that is the one we know.

SQLite: a writing transaction begins with BEGIN IMMEDIATE, because a deferred one that turns into a
writer fails at once in spite of `busy_timeout` (https://www.sqlite.org/lang_transaction.html).
WAL, so that a reader (the command line, the API) never waits for a writer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from gateway.store.tables import REVISION, metadata

BUSY_TIMEOUT_MS = 15_000


class StoreError(Exception):
    """The database cannot be used; the message says which, why, and what to do."""


def open_engine(url: str) -> Engine:
    """Connect to `url` and bring its schema to `REVISION`. Raises `StoreError`."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StoreError(
            f"state {url!r} is no database URL; write for example "
            "sqlite:////var/lib/dvn/gateway.sqlite or postgresql+psycopg://user@host/dvn"
        ) from error
    sqlite = parsed.get_backend_name() == "sqlite"
    if sqlite and parsed.database not in (None, "", ":memory:"):
        directory = Path(str(parsed.database)).parent
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make {directory} for the state: {error.strerror}") from error
    try:
        engine = create_engine(parsed, poolclass=QueuePool if sqlite else None)
    except ImportError as error:
        raise StoreError(
            f"state {url!r} needs a driver that is not installed ({error.name}); "
            "for PostgreSQL: pip install 'dvn[postgres]'"
        ) from error
    if sqlite:
        event.listen(engine, "connect", _sqlite_connect)
        event.listen(engine, "begin", _sqlite_begin)
    try:
        _upgrade(engine, url)
    except OperationalError as error:
        engine.dispose()
        raise StoreError(f"cannot use the state {url!r}: {error.orig}") from error
    except SQLAlchemyError as error:
        engine.dispose()
        raise StoreError(f"the state {url!r} is damaged or foreign: {error}") from error
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent reading that takes no write lock."""
    with engine.connect().execution_options(reading=True) as connection, connection.begin():
        yield connection


def _sqlite_connect(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # sqlite3's own implicit BEGIN is a deferred one
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",  # an intention must outlive a power cut, not only a kill
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(connection: Connection) -> None:
    writing = not connection.get_execution_options().get("reading", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _upgrade(engine: Engine, url: str) -> None:
    """Create what is empty, leave what is current, and import alembic only for what is old."""
    with engine.begin() as connection:
        present = set(inspect(connection).get_table_names())
        if not present:
            metadata.create_all(connection)
            connection.execute(
                text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
            )
            connection.execute(
                text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": REVISION}
            )
            return
        if "alembic_version" not in present:
            raise StoreError(
                f"the database {url!r} has tables but none of ours: name another one in "
                "gateway.state, ours is made by itself"
            )
        revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if revision != REVISION:
        migrate(engine, url, None if revision is None else str(revision))


def migrate(engine: Engine, url: str, revision: str | None) -> None:
    """Bring an old schema up to date with alembic. Raises `StoreError` for a newer one."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        raise StoreError(
            f"the database {url!r} was written by a newer version (revision {revision}, this one "
            f"knows up to {REVISION}): upgrade this software, or restore the older state"
        )
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
