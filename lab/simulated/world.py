"""One story: the made-up world around the product's controller, and what must never happen."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import delete, event
from sqlalchemy.exc import OperationalError

from burst.join.bundle import Bundle
from burst.join.userdata import JoinGateway, user_data
from burst.model import Lease
from burst.providers.ec2 import Ec2Config, Ec2Provider
from gateway.enrolment import Enrolment
from gateway.loops.books import Books
from gateway.loops.burst import BurstLoop
from gateway.sections import BudgetConfig
from gateway.steady import LastingClock
from gateway.store import Store
from gateway.store.tables import metadata
from gateway.tokens import SiteSecret, token_hash
from lab.simulated import guests, invariants
from lab.simulated.ec2 import Ec2, Instance
from lab.simulated.farm import SimulatedFarm, SimulatedJob
from lab.simulated.faults import Broken, Faults, Killed
from lab.simulated.network import SimulatedNetwork
from lab.simulated.site import (
    CORES,
    EPOCH,
    HEARTBEAT,
    MEMORY,
    POLICY,
    POOLS,
    PRICES,
    WATCHDOG,
)
from lab.simulated.story import Story

TROUBLE = timedelta(minutes=20)  # then the faults end, and everything must come to rest
TICK = timedelta(seconds=2)
_SPARED = timedelta(seconds=60)  # after a kill there is none for so long
_MISHAPS = 3  # of one service in a row; then it answers once
_GRAIN = timedelta(seconds=0.5)
_TOKEN_LIFETIME = timedelta(minutes=10)
_QUIET_LOGS = ("gateway", "burst")


def empty(store: Store) -> None:
    """Forget everything: quicker than a new database."""
    with store.engine.begin() as connection:
        for table in metadata.sorted_tables:
            connection.execute(delete(table))


class World:
    """`run` lives it to the end, and raises `Broken` if something happened that never may."""

    def __init__(
        self,
        seed: int,
        *,
        faults: Faults | None = None,
        show: Callable[[str], None] | None = None,
        store: Store | None = None,
    ) -> None:
        """`store`: one to use again, emptied first; else one in memory, closed at the end."""
        self.seed = seed
        self.rng = random.Random(seed)
        self.faults = faults or Faults.draw(self.rng)
        self.now = EPOCH
        self.calm = False
        self.kills = 0
        self.unknown_since: dict[str, datetime] = {}  # machines that no lease knows
        self.story = Story(show)
        self.pools = POOLS[: self.rng.choice([1, 1, 2])]
        self.limits = {
            pool.tenant: Decimal(self.rng.choice(["0.30", "1.00", "20"])) for pool in self.pools
        }
        self.interval = self.rng.choice([5, 10, 15, 20])
        self._off = timedelta(0)  # how wrong the gateway's wall clock is
        self._ids = itertools.count(1)
        self._lived = EPOCH
        self._spared_until = EPOCH
        self._mishaps: dict[str, int] = {}
        self._leases: tuple[Lease, ...] | None = None
        self._dying = False
        self._answers_from = EPOCH
        self._guests: dict[str, guests.Guest] = {}
        self._lease_of: dict[str, str] = {}  # of machines launched in a batch
        self._rejoin: list[tuple[datetime, guests.Guest]] = []
        self.ec2 = Ec2(self)
        self.farm = SimulatedFarm(self, tuple(pool.tenant for pool in self.pools))
        self.network = SimulatedNetwork(self)
        self._own_store = store is None
        self.store = store or Store.open("sqlite:///:memory:")
        if store is not None:
            empty(store)
        self.tell(f"seed {seed}: {self.faults}, budgets {self.limits}")
        self._begin()

    # -- the controller ----------------------------------------------------------------------------

    def _begin(self) -> None:
        """Start the gateway: everything but the store is new."""
        self._dying = False
        self.gateway_now = LastingClock(
            self.store,
            lambda: self.now + self._off,
            self._passed,
            lambda: "one",
            floor=self.store.latest_instant(),
        )
        self.network.restart()
        self._secret = SiteSecret(b"s" * 32)
        budgets = {
            tenant: BudgetConfig(limit=limit, period="ever")
            for tenant, limit in self.limits.items()
        }
        self.books = Books(self.store, budgets, self.gateway_now)
        config = Ec2Config(
            region="sim-1",
            image="ami-1",
            subnet="subnet-1",
            security_groups=("sg-1",),
            types=tuple(PRICES),
            site="cnaf",
            prices=PRICES,
        )
        self.loop = BurstLoop(
            pools=self.pools,
            policy=POLICY,
            store=self.store,
            books=self.books,
            lrms=self.farm,
            providers={"aws": Ec2Provider("aws", config, client=self.ec2)},
            user_data=self._user_data,
            network=self.network.view,
            clock=self.gateway_now,
            answer_timeout=timedelta(seconds=1),
            new_id=self._new_id,
            spawn=lambda _name, work: work(),
            resumed=lambda: self.gateway_now.jumped,
            rng=random.Random(self.rng.random()),
        )
        self._enrolment = Enrolment(
            self._secret,
            self.store.joins,
            self._bundle,
            self.gateway_now,
            _TOKEN_LIFETIME,
            wall=lambda: self.now + self._off,
        )

    def _user_data(self, lease: Lease) -> str:
        if lease.batch:
            token = self._secret.batch_token(lease.batch)
        else:
            token = self._secret.token(lease.id)
            expires = self.gateway_now() + _TOKEN_LIFETIME
            self.store.joins.mint(lease.id, token_hash(token), expires)
        return user_data(lease, self._join_gateway(), token)

    def _join_gateway(self) -> JoinGateway:
        return JoinGateway(
            address="192.0.2.1",
            enrol_url="https://192.0.2.1:8443",
            pin="sha256//" + "A" * 43 + "=",
            prefix_length=24,
            heartbeat=HEARTBEAT,
            watchdog=WATCHDOG,
        )

    def _bundle(self, lease_id: str) -> Bundle:
        lease = self.store.lease(lease_id)
        return Bundle(node=lease.node if lease else "")

    def _new_id(self) -> str:
        return f"{next(self._ids):08x}{self.seed % 2**32:08x}{'0' * 16}"

    @contextmanager
    def faulty_store(self) -> Iterator[None]:
        """The store may refuse, and the gateway may die at each transaction."""
        engine = self.store.engine

        def before_commit(_connection: Any) -> None:
            self._leases = None
            self.may_die("within a transaction")
            # Or right after it.
            late = self.now >= self._spared_until and self.chance(self.faults.kill / 8)
            self._dying = late

        def before_begin(_connection: Any) -> None:
            self.may_die("before a transaction")
            if self.chance(self.faults.store):
                self.tell("store: database is locked")
                raise OperationalError("BEGIN", {}, Exception("database is locked"))

        event.listen(engine, "commit", before_commit)
        event.listen(engine, "begin", before_begin)
        try:
            yield
        finally:
            event.remove(engine, "commit", before_commit)
            event.remove(engine, "begin", before_begin)
            if self._own_store:
                self.store.close()

    def _kill(self) -> None:
        self.kills += 1
        pause = self.rng.choice([0.0, 3.0, 30.0])
        self.tell(f"gateway: killed; starts again in {pause:.0f} s")
        self._dying = False
        self._answers_from = self.now + timedelta(seconds=pause)
        self.pass_time(pause)
        with self.undisturbed():
            self._begin()

    # -- time and chance ---------------------------------------------------------------------------

    def _passed(self) -> float:
        return (self.now - EPOCH).total_seconds()

    def tell(self, text: str) -> None:
        self.story.tell(self.now, text)

    def chance(self, probability: float) -> bool:
        return not self.calm and probability > 0 and self.rng.random() < probability

    def may_die(self, where: str) -> None:
        """One of the instants at which the gateway may be killed."""
        if self._dying or (self.now >= self._spared_until and self.chance(self.faults.kill / 8)):
            self._dying = True
            # Bounded: nothing can be kept within a budget that never gets to returning a machine.
            self._spared_until = self.now + _SPARED
            self.tell(f"gateway: kill -9 {where}")
            raise Killed(where)

    def fails(self, service: str, probability: float) -> bool:
        """Whether this call of a service goes wrong, so that not all of them do."""
        if self._mishaps.get(service, 0) < _MISHAPS and self.chance(probability):
            self._mishaps[service] = self._mishaps.get(service, 0) + 1
            return True
        self._mishaps[service] = 0
        return False

    def takes_time(self) -> None:
        """A call on its way; the world goes on."""
        slow = 0.0 if self.calm else self.faults.slow_s
        self.pass_time(0.05 + self.rng.random() ** 4 * slow)

    def pass_time(self, seconds: float) -> None:
        end = self.now + timedelta(seconds=seconds)
        while end - self.now > TICK:
            self.now += TICK
            self._live()
        self.now = end
        if end - self._lived >= _GRAIN:
            self._live()

    def _live(self) -> None:
        now = self._lived = self.now
        self.ec2.live(now)
        for guest in list(self._guests.values()):
            if guest.step != "ended":
                guest.live(now)
        for due, guest in [entry for entry in self._rejoin if entry[0] <= now]:
            self._rejoin.remove((due, guest))
            if guest.alive():
                guest.register()
        self.farm.live(now)

    # -- one story ---------------------------------------------------------------------------------

    def run(self, patience: timedelta = timedelta(hours=5)) -> World:
        """Live until everything is at rest. Raises `Broken`."""
        quiet = [logging.getLogger(name) for name in _QUIET_LOGS]
        levels = [logger.level for logger in quiet]
        for logger in quiet:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            with self.faulty_store():
                self._run(patience)
        finally:
            for logger, level in zip(quiet, levels, strict=True):
                logger.setLevel(level)
        return self

    def _run(self, patience: timedelta) -> None:
        while self.now - EPOCH < patience:
            self.calm = self.now - EPOCH > TROUBLE
            self.pass_time(self.interval)
            self._meddle()
            try:
                self.gateway_now.keep()
                self.loop.round()
            except Killed:
                self._kill()
            except OperationalError as error:
                self.tell(f"gateway: round ended: {error.orig}")
            if self._dying:
                self._kill()
            with self.undisturbed():
                invariants.always(self)
                if self.at_rest():
                    invariants.at_the_end(self)
                    return
        raise Broken(f"not at rest after {patience}: {self.describe()}")

    def _meddle(self) -> None:
        """What people and clocks do."""
        try:
            if self.chance(self.faults.operator):
                living = self.living()
                if living:
                    lease = self.rng.choice(living)
                    self.tell(f"operator: wants {lease.node} back")
                    self.store.request_drain(lease.id, "operator says so", self.gateway_now())
        except (OperationalError, Killed):
            self.tell("operator: was not heard")
        if self.chance(self.faults.farm_operator) and self.farm.borrowed:
            name = self.rng.choice(sorted(self.farm.borrowed))
            self.tell(f"operator: drains {name} in the batch system")
            self.farm.borrowed[name].drain_reason = "maintenance"
        if self.chance(self.faults.cancel):
            jobs = [one for one in self.farm.jobs.values() if one.job.state.value == "pending"]
            if jobs:
                self.farm.cancel(self.rng.choice(jobs))
        if self.chance(self.faults.clock_jump):
            jump = self.rng.choice([-600, -60, -5, 5, 60, 600])
            self._off = timedelta(seconds=jump) if not self._off else timedelta(0)
            self.tell(f"gateway: its clock is set, and is {self._off.total_seconds():+.0f} s off")

    def at_rest(self) -> bool:
        return (
            self.farm.done()
            and not self.ec2.living()
            and not self.farm.borrowed
            and not self.living()
        )

    # -- between the parts -------------------------------------------------------------------------

    def ask_gateway(
        self, method: str, path: str, bearer: str, body: dict[str, Any], peer: str
    ) -> tuple[int, Any] | None:
        """The enrolment server's answer; None when there is none, because it is being killed."""
        if self.now < self._answers_from or self._dying:
            return None
        try:
            answer = self._enrolment.answer(method, path, bearer, body, peer)
            if self.chance(self.faults.duplicate):
                answer = self._enrolment.answer(method, path, bearer, body, peer)
        except Killed:
            return None  # the round under way finds itself dead at its next step
        except OperationalError:
            return None
        if self.chance(self.faults.lost_after):
            return None
        return answer.status, answer.body

    def silence_gateway(self) -> None:
        """From now on it answers nobody."""
        self._answers_from = self.now + timedelta(days=365)

    def started(self, one: Instance) -> None:
        """The provider made a machine."""
        self._guests[one.id] = guests.Guest(self, one, guests.draw(self))
        self.tell(f"ec2: {one.id} for {self.lease_of(one)[:8]}: {self._guests[one.id].flaws}")
        invariants.launched(self, one)

    def returned(self, one: Instance) -> None:
        """The controller ends a machine."""
        guest = self._guests[one.id]
        self.farm.rush(guest.node)
        invariants.returned(self, one, guest)

    def told_to_end(self, guest: guests.Guest) -> None:
        invariants.returned(self, guest.instance, guest)

    def requeued(self, job: SimulatedJob) -> None:
        invariants.requeued(self, job)

    def removed(self, node: str) -> None:
        """The batch system forgot a node; its slurmd may not know yet."""
        for guest in self._guests.values():
            if guest.node == node and guest.slurmd and guest.flaws.rejoins and not self.calm:
                guest.flaws.rejoins = False
                self._rejoin.append((self.now + timedelta(seconds=self.rng.uniform(1, 20)), guest))

    def register(self, guest: guests.Guest) -> None:
        settings = guest.settings
        pool = next(p for p in self.pools if settings["NODE"].startswith(p.name))
        one = guest.instance
        self.farm.register(
            settings["NODE"], CORES[one.type], MEMORY[one.type] - 400, settings["ADDRESS"],
            pool.partition,
        )  # fmt: skip

    def heard_by_farm(self, node: str) -> bool:
        return any(
            guest.node == node and guest.slurmd and guest.alive() and self.network.passes(guest)
            for guest in self._guests.values()
        )

    def runs_jobs(self, node: str) -> bool:
        """Whether processes on it go on, heard of or not."""
        return any(
            guest.node == node and guest.slurmd and guest.alive() for guest in self._guests.values()
        )

    def lease_of(self, one: Instance) -> str:
        if "dvn:batch" not in one.tags:
            return one.tags.get("dvn:lease", "")
        if one.id not in self._lease_of:
            with self.undisturbed():
                members = self.store.members(one.tags["dvn:batch"], one.index)
            self._lease_of[one.id] = members[0].id if members else ""
        return self._lease_of[one.id]

    def guest_of(self, lease_id: str) -> guests.Guest | None:
        mine = [g for g in self._guests.values() if self.lease_of(g.instance) == lease_id]
        return next((g for g in mine if g.alive()), mine[0] if mine else None)

    def living(self) -> tuple[Lease, ...]:
        """The living leases as they are stored."""
        if self._leases is None:
            with self.undisturbed():
                leases = self.store.leases()
            self._leases = leases
        return self._leases

    def guests(self) -> list[guests.Guest]:
        return list(self._guests.values())

    def wanted(self) -> set[str]:
        """The ids of all leases that were ever stored."""
        with self.undisturbed():
            return {lease.id for lease in self.store.all_leases()}

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """A look of ours, not of the gateway's: nothing goes wrong with it."""
        calm, dying = self.calm, self._dying
        self.calm, self._dying = True, False
        try:
            yield
        finally:
            self.calm, self._dying = calm, dying

    def describe(self) -> str:
        leases = [f"{lse.node} {lse.state} {lse.failure}" for lse in self.living()]
        jobs = [one.job.id for one in self.farm.jobs.values() if not one.completed]
        machines = [one.id for one in self.ec2.living()]
        return f"leases {leases}, jobs {jobs}, nodes {sorted(self.farm.borrowed)}, {machines}"
