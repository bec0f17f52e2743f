"""The store: nothing is lost on the way in and out, and a kill leaves whole changes only."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import Engine, create_engine, text

from burst.model import Failure, FailureClass, Lease, LeaseState
from burst.money.limits import Bound
from gateway.enrolment import Refused
from gateway.loops.loop import Loop
from gateway.store import Joins, Store, StoreError
from gateway.store.engine import reading
from lab.process import wait_for
from tests.gateway.leases import T0, lease, leases
from tests.gateway.postgres import Cluster, cluster, programs


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    bin_ = programs()
    if bin_ is None:
        pytest.skip("there are no PostgreSQL programs here (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="the driver is missing: pip install 'dvn[postgres]'")
    with cluster(bin_) as running:
        yield running


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state/gateway.sqlite"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def url(request: pytest.FixtureRequest) -> str:
    """Of an empty database, of each kind."""
    if request.param == "sqlite":
        return str(request.getfixturevalue("sqlite_url"))
    server: Cluster = request.getfixturevalue("postgres")
    return server.url(server.database())


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=leases)
def test_a_lease_comes_back_as_it_went(store: Store, value: Lease) -> None:
    value = replace(value, id=uuid4().hex)  # one store for all examples
    store.save(value, T0)
    assert store.lease(value.id) == value


def test_a_reopened_store_has_everything(url: str) -> None:
    with Store.open(url) as first:
        first.save(lease(1), T0)
        first.save(lease(2, state=LeaseState.JOINED), T0)
        first.note("heartbeat", "now")
    with Store.open(url) as again:
        assert [item.id for item in again.leases()] == [lease(1).id, lease(2).id]
        assert again.notes()["heartbeat"] == "now"


def test_ended_leases_are_listed_only_since(store: Store) -> None:
    store.save(lease(1, state=LeaseState.GONE, ended=T0), T0)
    store.save(lease(2), T0)
    assert [item.id for item in store.leases()] == [lease(2).id]
    assert len(store.leases(ended_since=T0)) == 2
    assert len(store.leases(ended_since=T0 + timedelta(seconds=1))) == 1


def test_only_changes_of_state_are_events(store: Store) -> None:
    value = lease(1)
    store.save(value, T0)
    store.save(replace(value, launch_attempts=1), T0 + timedelta(seconds=1))
    failed = replace(
        value, state=LeaseState.FAILED, failure=Failure(FailureClass.TUNNEL, "no packet"), ended=T0
    )
    store.save(failed, T0 + timedelta(seconds=2))
    told = [(event.state, event.message) for event in store.events(value.id)]
    assert told == [("wanted", ""), ("failed", "tunnel: no packet")]


def test_an_ended_lease_is_settled_once(store: Store) -> None:
    done = lease(1, state=LeaseState.GONE, ended=T0, cost=Decimal("0.034"))
    store.save(done, T0)
    store.save(done, T0 + timedelta(days=2))
    assert store.spent("cms", T0) == Decimal("0.034")
    assert store.spent("cms", T0 + timedelta(seconds=1)) == 0
    assert store.spent("atlas", T0) == 0


def test_money_is_checked_again_when_a_lease_is_wanted(store: Store) -> None:
    store.save(lease(1, state=LeaseState.GONE, ended=T0, cost=Decimal(2)), T0)
    store.save(lease(2, reserved=Decimal(2)), T0)
    wish = lease(3, reserved=Decimal(1))
    assert not store.want(wish, T0, bounds=[Bound(Decimal("4.99"), T0)])
    assert store.lease(wish.id) is None
    assert store.want(wish, T0, bounds=[Bound(Decimal(5), T0)])
    assert not store.want(wish, T0, bounds=[Bound(Decimal(50), T0)]), "the id is known"
    assert not store.want(lease(4, reserved=Decimal(1)), T0, bounds=[Bound(Decimal(5), T0)])
    assert store.want(lease(5), T0, bounds=[Bound(Decimal(0), T0)]), (
        "what costs nothing always fits"
    )
    later = T0 + timedelta(seconds=1)
    assert store.want(lease(6, reserved=Decimal(2)), T0, bounds=[Bound(Decimal(5), later)])
    assert (store.spent("cms", T0), store.reserved("cms")) == (Decimal(2), Decimal(5))


def test_a_row_without_a_newer_field_is_read(url: str) -> None:
    with Store.open(url) as store:
        store.save(lease(1), T0)
        with store.engine.begin() as raw:
            body = json.loads(raw.execute(text("SELECT body FROM leases")).scalar_one())
            del body["launch_attempts"], body["idle_since"]
            raw.execute(text("UPDATE leases SET body = :body"), {"body": json.dumps(body)})
    with Store.open(url) as store:
        assert store.leases() == (lease(1),)


def test_a_drain_request_survives_an_older_copy(store: Store) -> None:
    old = lease(1)
    store.save(old, T0)
    assert store.request_drain(old.id, "kernel update", T0)
    store.save(replace(old, state=LeaseState.REQUESTED), T0)
    kept = store.lease(old.id)
    assert kept is not None
    assert (kept.state, kept.drain_requested) == (LeaseState.REQUESTED, "kernel update")


def test_what_is_not_living_cannot_be_drained(store: Store) -> None:
    store.save(lease(1, state=LeaseState.GONE, ended=T0), T0)
    assert not store.request_drain(lease(1).id, "x", T0)
    assert not store.request_drain("nobody", "x", T0)


class TestTokens:
    """The rules are those of `gateway.enrolment.TokenStore`."""

    expiry = T0 + timedelta(minutes=10)

    @pytest.fixture
    def joins(self, store: Store) -> Joins:
        store.save(lease(1, state=LeaseState.BOOTING), T0)
        store.joins.mint(lease(1).id, "h1", self.expiry)
        return store.joins

    def test_the_same_machine_may_ask_again_even_late(self, joins: Joins) -> None:
        assert joins.redeem("h1", "n1", T0, "p") == lease(1).id
        assert joins.redeem("h1", "n1", T0 + timedelta(hours=1), "p") == lease(1).id

    def test_another_may_not(self, joins: Joins) -> None:
        joins.redeem("h1", "n1", T0, "p")
        answer = joins.redeem("h1", "n2", T0, "p")
        assert isinstance(answer, Refused)
        assert "used before" in answer.reason

    def test_unknown_expired_and_empty_are_refused(self, joins: Joins) -> None:
        for hashed, nonce, at in (("h2", "n1", T0), ("h1", "n1", self.expiry), ("h1", "", T0)):
            answer = joins.redeem(hashed, nonce, at, "p")
            assert isinstance(answer, Refused)
            assert not answer.retry

    @pytest.mark.parametrize("state", LeaseState)
    def test_in_each_state_of_the_lease(
        self, store: Store, joins: Joins, state: LeaseState
    ) -> None:
        ended = T0 if state in (LeaseState.GONE, LeaseState.FAILED) else None
        store.save(lease(1, state=state, ended=ended), T0)
        answer = joins.redeem("h1", "n1", T0, "p")
        if state in (LeaseState.WANTED, LeaseState.REQUESTED):
            assert isinstance(answer, Refused)
            assert answer.retry
            store.save(lease(1, state=LeaseState.BOOTING), T0)
            assert joins.redeem("h1", "another: nothing was bound", T0, "p") == lease(1).id
        elif state in (LeaseState.BOOTING, LeaseState.TUNNELLED):
            assert answer == lease(1).id
        else:
            assert isinstance(answer, Refused)
            assert not answer.retry

    @pytest.mark.parametrize(
        "ending",
        [
            {"failure": Failure(FailureClass.TUNNEL, "no packet")},
            {"stop_reason": "idle"},
            {"drain_requested": "maintenance"},
        ],
        ids=lambda ending: next(iter(ending)),
    )
    def test_a_lease_that_is_being_ended_gets_no_secrets(
        self, store: Store, joins: Joins, ending: dict[str, Any]
    ) -> None:
        store.save(lease(1, state=LeaseState.BOOTING, **ending), T0)
        answer = joins.redeem("h1", "n1", T0, "p")
        assert isinstance(answer, Refused)
        assert not answer.retry

    @pytest.mark.parametrize(
        "ending",
        [
            {"stop_reason": "idle"},
            {"failure": Failure(FailureClass.BOOTSTRAP, "nothing was heard of it")},
            {"state": LeaseState.TERMINATING},
        ],
        ids=lambda ending: next(iter(ending)),
    )
    def test_a_lease_let_go_after_the_token_was_shown_gets_none_either(
        self, store: Store, joins: Joins, ending: dict[str, Any]
    ) -> None:
        """What is decided about a machine that never enrolled must still be true of it."""
        assert joins.redeem("h1", "n1", T0, "p") == lease(1).id
        store.save(lease(1, **{"state": LeaseState.BOOTING, **ending}), T0)
        assert isinstance(joins.enrolled(lease(1).id, T0), Refused)
        assert joins.heard() == {}
        store.save(lease(1, state=LeaseState.BOOTING), T0)
        assert joins.enrolled(lease(1).id, T0) is None
        assert joins.heard()[lease(1).id].at == T0

    def test_a_joined_machine_may_reboot(self, store: Store, joins: Joins) -> None:
        joins.redeem("h1", "n1", T0, "p")
        store.save(lease(1, state=LeaseState.JOINED), T0)
        assert joins.redeem("h1", "n1", T0, "p") == lease(1).id

    def test_a_repeated_mint_prolongs_only_what_is_unused(self, joins: Joins) -> None:
        later = self.expiry + timedelta(hours=1)
        joins.mint(lease(1).id, "h1", later)
        assert joins.redeem("h1", "n1", self.expiry, "p") == lease(1).id
        joins.mint(lease(1).id, "h1", later)
        assert isinstance(joins.redeem("h1", "n2", T0, "p"), Refused)

    def test_of_many_at_once_one_wins(self, joins: Joins) -> None:
        won: list[str] = []
        start = threading.Barrier(8)

        def redeem(nonce: str) -> None:
            start.wait()
            if not isinstance(joins.redeem("h1", nonce, T0, "p"), Refused):
                won.append(nonce)

        threads = [threading.Thread(target=redeem, args=(f"n{i}",)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(won) == 1


def test_of_many_wishes_at_once_no_more_are_stored_than_the_money_allows(store: Store) -> None:
    """Two may each see the same free money: the second must see that it is gone."""
    bounds = [Bound(Decimal(3), T0)]
    start = threading.Barrier(8)
    stored: list[bool] = []

    def wish(number: int) -> None:
        start.wait()
        stored.append(store.want(lease(number, reserved=Decimal(1)), T0, bounds=bounds))

    threads = [threading.Thread(target=wish, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(stored) == [False] * 5 + [True] * 3
    assert store.reserved("cms") == 3


def test_a_reading_is_of_one_moment_and_waits_for_nobody(store: Store) -> None:
    store.save(lease(1, reserved=Decimal(1)), T0)
    with reading(store.engine) as c:
        before = c.execute(text("SELECT count(*) FROM leases")).scalar()
        store.save(lease(2), T0)  # a writer in between
        assert c.execute(text("SELECT count(*) FROM leases")).scalar() == before == 1
    with store.engine.begin():  # a writer that takes its time
        assert len(store.leases()) == 2


def test_a_machine_may_say_what_no_database_can_hold(store: Store) -> None:
    """A NUL is no text to PostgreSQL; what a machine or a user sends must not stop the gateway."""
    store.save(lease(1), T0)
    store.joins.report(lease(1).id, "join", False, "slurmd said \x00", T0)
    assert store.joins.heard()[lease(1).id].failure == "join: slurmd said \ufffd"


def test_the_first_failure_a_machine_reports_stays(store: Store) -> None:
    joins, one = store.joins, lease(1).id
    store.save(lease(1), T0)
    joins.report(one, "join", False, "munge: munged did not start", T0)
    joins.report(one, "join", False, "slurmd: did not start", T0)
    joins.enrolled(one, T0 + timedelta(seconds=5))
    joins.enrolled(one, T0 + timedelta(seconds=9))
    said = joins.heard()[one]
    assert (said.failure, said.phase) == ("join: munge: munged did not start", "join")
    assert said.at == T0 + timedelta(seconds=5)
    assert said.heard == T0 + timedelta(seconds=9)


def test_a_machine_whose_lease_ended_is_told(store: Store) -> None:
    store.save(lease(1, state=LeaseState.JOINED), T0)
    assert store.joins.seen(lease(1).id, T0)
    store.save(lease(1, state=LeaseState.GONE, ended=T0), T0)
    assert not store.joins.seen(lease(1).id, T0)
    assert not store.joins.seen("nobody", T0)
    assert store.joins.heard() == {}


def test_pruning_keeps_money_and_the_living(store: Store) -> None:
    store.save(lease(1, state=LeaseState.GONE, ended=T0, cost=Decimal(3)), T0)
    store.save(lease(2), T0)
    assert store.prune(T0 + timedelta(days=1)) == 1
    assert store.lease(lease(1).id) is None
    assert store.events(lease(1).id) == []
    assert store.lease(lease(2).id) is not None
    assert store.spent("cms", T0) == 3


WRITER = """
import itertools, sys
from dataclasses import replace
from decimal import Decimal
from burst.model import LeaseState
from gateway.store import Store
from lab.process import wait_for
from tests.gateway.leases import T0, lease
store = Store.open(sys.argv[1])
for n in itertools.count(1):
    for state in LeaseState:
        if state is LeaseState.FAILED:
            continue
        ended = T0 if state is LeaseState.GONE else None
        store.save(lease(n, state=state, ended=ended, cost=Decimal(1)), T0)
        sys.stdout.write(f"{n} {state.value}\\n")
        sys.stdout.flush()
"""


@pytest.mark.parametrize("seed", range(4))
def test_after_sigkill_what_was_said_to_be_written_is_there_and_whole(url: str, seed: int) -> None:
    Store.open(url).close()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert writer.stdout is not None
    said = [writer.stdout.readline() for _ in range(random.Random(seed).randint(5, 80))]
    os.kill(writer.pid, signal.SIGKILL)
    said += writer.stdout.readlines()
    writer.wait(30)
    number, state = next(line for line in reversed(said) if line.endswith("\n")).split()
    order = [item.value for item in LeaseState]
    with Store.open(url) as store:
        found = store.all_leases()
        last = found[int(number) - 1]
        assert order.index(last.state.value) >= order.index(state)
        for item in found:  # a state and its event and its money are one change
            assert store.events(item.id)[-1].state == item.state.value
        ended = sum(not item.living for item in found)
        assert store.spent("cms", T0) == ended


def bare(url: str) -> Engine:
    """The database without our schema."""
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return create_engine(url)


class TestSchema:
    def test_the_revisions_build_what_is_declared(self, url: str) -> None:
        from alembic.autogenerate import compare_metadata
        from alembic.migration import MigrationContext

        from gateway.store.engine import migrate
        from gateway.store.tables import metadata

        engine = bare(url)
        migrate(engine, "x", None)
        with engine.connect() as connection:
            context = MigrationContext.configure(connection)
            assert compare_metadata(context, metadata) == []
        engine.dispose()
        Store.open(url).close()

    def test_the_state_of_an_older_version_keeps_its_leases_and_its_money(self, url: str) -> None:
        from alembic import command
        from alembic.config import Config

        import gateway.store.engine as engine_room
        from gateway.store.rows import row_of

        engine = bare(url)
        config = Config()
        scripts = Path(engine_room.__file__).with_name("migrations")
        config.set_main_option("script_location", str(scripts))
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "0001")
        living, noon = row_of(lease(1, reserved=Decimal(2))), "2026-03-01 12:00:00.000000"
        noon += "" if engine.dialect.name == "sqlite" else "+00"
        with engine.begin() as raw:
            raw.execute(
                text("INSERT INTO leases VALUES (:id, 'cms', 'wanted', :at, NULL, '2', '', :body)"),
                {"id": living["id"], "at": noon, "body": living["body"]},
            )
            raw.execute(text("INSERT INTO ledger VALUES ('old', 'cms', :at, '3.5')"), {"at": noon})
        engine.dispose()
        with Store.open(url) as store:
            assert (store.reserved("cms"), store.spent("cms", T0)) == (Decimal(2), Decimal("3.5"))
            assert [item.id for item in store.leases()] == [lease(1).id]
            (use,) = store.accounts.uses(T0)
            assert (use.lease, use.amount) == ("old", Decimal("3.5"))

    def test_alembic_is_imported_only_when_needed(self, url: str) -> None:
        code = (
            "import sys; from gateway.store import Store; "
            f"Store.open({url!r}).close(); Store.open({url!r}).close(); "
            "sys.exit('alembic' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0

    def test_a_newer_database_is_left_alone(self, url: str) -> None:
        with Store.open(url) as store, store.engine.begin() as raw:
            raw.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(StoreError, match="newer version"):
            Store.open(url)

    def test_a_foreign_database_is_left_alone(self, url: str) -> None:
        engine = bare(url)
        with engine.begin() as raw:
            raw.execute(text("CREATE TABLE theirs (x INTEGER)"))
        engine.dispose()
        with pytest.raises(StoreError, match="none of ours"):
            Store.open(url)

    def test_what_is_no_database_is_said_so(self, tmp_path: Path) -> None:
        path = tmp_path / "text"
        path.write_text("this is no database, it is a text that is long enough" * 40)
        with pytest.raises(StoreError, match="not a database"):
            Store.open(f"sqlite:///{path}")
        with pytest.raises(StoreError, match="no database URL"):
            Store.open("nonsense")


@pytest.mark.long
class TestPostgres:
    """What SQLite has no counterpart of."""

    def test_a_restart_of_the_server_is_survived(self, postgres: Cluster) -> None:
        with Store.open(postgres.url(postgres.database())) as store:
            store.save(lease(1), T0)
            postgres.restart()
            store.save(lease(2), T0)
            assert len(store.leases()) == 2

    def test_a_loop_goes_on_when_the_server_is_back(self, postgres: Cluster) -> None:
        with Store.open(postgres.url(postgres.database())) as store:
            loop = Loop(
                "notes",
                lambda: store.note("heartbeat", "now"),
                interval=timedelta(milliseconds=20),
                clock=lambda: T0,
            )
            loop.start()
            wait_for(lambda: loop.status.rounds > 0, 30)
            postgres.stop()
            wait_for(lambda: loop.status.bugs > 0, 60)
            postgres.start()
            before = loop.status
            wait_for(
                lambda: loop.status.rounds - loop.status.bugs > before.rounds - before.bugs, 60
            )
            assert loop.stop(30)

    def test_the_plain_url_means_the_driver_we_have(self, postgres: Cluster) -> None:
        url = postgres.url(postgres.database()).replace("postgresql+psycopg:", "postgresql:")
        with Store.open(url) as store:
            store.save(lease(1), T0)

    def test_an_intention_outlives_a_power_cut_whatever_the_server_says(
        self, postgres: Cluster
    ) -> None:
        name = postgres.database()
        postgres.sql(f"ALTER DATABASE {name} SET synchronous_commit = off", name)
        with Store.open(postgres.url(name)) as store, store.engine.begin() as c:
            assert c.execute(text("SHOW synchronous_commit")).scalar() == "on"

    def test_no_password_is_told(self, postgres: Cluster) -> None:
        url = postgres.url("nowhere").replace("owner@", "owner:hunter2@")
        with pytest.raises(StoreError, match='"nowhere" does not exist') as caught:
            Store.open(url)
        assert "hunter2" not in str(caught.value)

    def test_a_vanished_writer_blocks_its_successor_for_no_longer_than_said(
        self, postgres: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.store.engine.ABANDONED_MS", 1000)
        url = postgres.url(postgres.database())
        with Store.open(url) as gone, Store.open(url) as successor:
            c = gone.engine.connect()
            c.begin()  # holds the lock, and says no more
            successor.save(lease(1), T0)
            c.invalidate()
            c.close()
