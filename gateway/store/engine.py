"""Opening the database: locks that cannot fail half-way, and a schema that is the one we know.

There is one writer at a time, so that what a transaction has looked at (the money that is free, a
token that nobody used) still holds when it writes.

SQLite: a writing transaction begins with BEGIN IMMEDIATE, because a deferred one that turns into a
writer fails at once in spite of `busy_timeout` (https://www.sqlite.org/lang_transaction.html).
WAL, so that a reader (the command line, the API) never waits for a writer.

PostgreSQL: a writing transaction begins with an advisory lock of the database, since two of its
READ COMMITTED transactions may each reserve the same free money (PostgreSQL manual, 13.2.1 and
13.3.5). A reading one is REPEATABLE READ: one snapshot, no lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from gateway.store.tables import REVISION, metadata

BUSY_TIMEOUT_MS = 15_000
CONNECT_TIMEOUT_S = 10
ABANDONED_MS = (
    60_000  # a transaction of a gateway that vanished does not block its successor longer
)
_WRITER = 0x64766E  # the advisory lock's key: "dvn"


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
    if parsed.drivername == "postgresql":  # to SQLAlchemy that is psycopg2
        parsed = parsed.set(drivername="postgresql+psycopg")
    sqlite = parsed.get_backend_name() == "sqlite"
    shown = parsed.render_as_string(hide_password=True)  # this is what logs and errors may say
    if sqlite and parsed.database not in (None, "", ":memory:"):
        directory = Path(str(parsed.database)).parent
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make {directory} for the state: {error.strerror}") from error
    try:
        engine = _sqlite(parsed) if sqlite else _postgres(parsed)
    except ImportError as error:
        raise StoreError(
            f"state {shown!r} needs a driver that is not installed ({error.name}); "
            "for PostgreSQL: pip install 'dvn[postgres]'"
        ) from error
    try:
        _upgrade(engine, shown)
    except OperationalError as error:
        engine.dispose()
        raise StoreError(f"cannot use the state {shown!r}: {str(error.orig).strip()}") from error
    except SQLAlchemyError as error:
        engine.dispose()
        raise StoreError(f"the state {shown!r} is damaged or foreign: {error}") from error
    return engine


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, poolclass=QueuePool)
    event.listen(engine, "connect", _sqlite_connect)
    event.listen(engine, "begin", _sqlite_begin)
    return engine


def _postgres(url: URL) -> Engine:
    waits = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_TIMEOUT_S}
    engine = create_engine(url, connect_args=waits, pool_pre_ping=True)
    event.listen(engine, "connect", _postgres_connect)
    event.listen(engine, "begin", _postgres_begin)
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent reading that takes no write lock."""
    options: dict[str, Any] = {"reading": True}
    if engine.dialect.name == "postgresql":
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with engine.connect().execution_options(**options) as connection, connection.begin():
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


def _postgres_connect(connection: Any, _record: object) -> None:
    """Settings of the session; `connection` is psycopg's."""
    was, connection.autocommit = connection.autocommit, True
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute(f"SET idle_in_transaction_session_timeout = {ABANDONED_MS}")
        # As with SQLite an intention must outlive a power cut; more than `on` is the site's choice.
        if cursor.execute("SHOW synchronous_commit").fetchone()[0] in ("off", "local"):
            cursor.execute("SET synchronous_commit = on")
    connection.autocommit = was


def _postgres_begin(connection: Connection) -> None:
    if not connection.get_execution_options().get("reading", False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER})")


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
