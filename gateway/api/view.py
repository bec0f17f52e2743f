"""What the daemon knows, as the API's values. Reads only, except where an operator asks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from burst.model import Budget, Farm, JobState, LinkHealth, Pool
from burst.model import Job as LrmsJob
from burst.model import Lease as StoredLease
from burst.policy.money import accrued
from burst.rules import rule_of
from dvn.agent_client import AgentError, AgentUnavailable
from gateway.api import explaining
from gateway.api import models as m
from gateway.api.bills import Bills
from gateway.api.flashes import FlashView
from gateway.api.planning import planned
from gateway.enrol import EnrolServer
from gateway.hosts.keeper import HostKeeper
from gateway.loops.answers import Answer
from gateway.loops.burst import FORGIVEN, HOLD, BurstLoop
from gateway.loops.loop import LoopStatus
from gateway.loops.network import NetworkLoop
from gateway.mixed import MixedMode
from gateway.sitefile import SiteFile
from gateway.store import Store
from gateway.version import version

_NO_BURST = "this site file has no `burst` section"


class NotFound(Exception):  # noqa: N818 - an answer, not a malfunction
    """There is no such lease, job or pool; the message says where to look."""


class View:
    def __init__(
        self,
        *,
        file: SiteFile,
        store: Store,
        clock: Callable[[], datetime],
        network: NetworkLoop,
        burst: BurstLoop | None,
        loops: Callable[[], tuple[LoopStatus, ...]],
        enrolment: Callable[[], EnrolServer | None],
        enrolment_error: Callable[[], str],
        wake: Callable[[], None],
        drift: Callable[[], dict[str, Any]],
        hosts: HostKeeper | None = None,
    ) -> None:
        self._file = file
        self._store = store
        self._clock = clock
        self._network = network
        self._burst = burst
        self._loops = loops
        self._enrolment = enrolment
        self._enrolment_error = enrolment_error
        self._wake = wake
        self._drift = drift
        self._hosts = hosts
        self._mixed = MixedMode(file, store)
        self._started = clock()
        self._currency = file.burst.currency if file.burst else ""
        self.bills = Bills(file, store, clock)
        self.flashes = FlashView(file, store, clock, burst, wake, self._why)

    # -- hosts

    def hosts(self) -> tuple[m.Host, ...]:
        if self._hosts is None:
            return ()
        views = self._hosts.views(self._network.site_now())
        return tuple(m.Host(**_fields(view)) for view in views)

    def invite(self, name: str) -> m.Invitation:
        """What the agent's file on a host says; it has the host's token."""
        if self._hosts is None:
            raise NotFound("the site file has no `hosts`")
        try:
            return m.Invitation(host=name, text=self._hosts.invitation(name))
        except KeyError:
            raise NotFound(f"the site file has no host {name!r} under `hosts`") from None

    # -- reading -----------------------------------------------------------------------------

    def status(self) -> m.Status:
        leases = self._store.leases()
        return m.Status(
            version=version(),
            site=self._file.site.site,
            pid=os.getpid(),
            started=self._started,
            now=self._clock(),
            hold=self._burst.hold if self._burst else "",
            services=self._services(),
            loops=tuple(m.LoopState(**_fields(status)) for status in self._loops()),
            enrolment=self._enrolment_state(),
            leases=dict(Counter(lease.state.value for lease in leases)),
            failed_actions=dict(self._burst.failed) if self._burst else {},
            pools=self.pools(),
            budgets=self.budgets(),
            drift=self._drift_now(),
        )

    def _drift_now(self) -> m.Drift | None:
        try:
            return m.Drift.model_validate(self._drift())
        except (AgentUnavailable, AgentError, ValidationError):
            return None  # that it does not answer stands among the services

    def leases(self, *, ended: bool = False) -> tuple[m.Lease, ...]:
        found = self._store.all_leases() if ended else self._store.leases()
        links = self._network.view.links
        return tuple(self._lease(lease, links) for lease in found)

    def jobs(self) -> tuple[m.Job, ...]:
        farm = self._burst.farm if self._burst else None
        if farm is None:
            return ()
        borrowed = self._borrowed(farm)
        return tuple(self._job(job, borrowed) for job in farm.jobs)

    def pools(self) -> tuple[m.Pool, ...]:
        leases = self._store.leases()
        return tuple(
            m.Pool(
                name=pool.name,
                tenant=pool.tenant,
                network=pool.network,
                provider=pool.provider,
                partition=pool.partition,
                types=pool.types,
                max_machines=pool.max_machines,
                machines=sum(lease.pool == pool.name for lease in leases),
                states=dict(Counter(le.state.value for le in leases if le.pool == pool.name)),
                why=self._why("pool", pool.name),
            )
            for pool in self._file.pools
        )

    def budgets(self) -> tuple[m.Budget, ...]:
        """Every limit of every account as it stands now."""
        if self._burst is None:
            return ()
        return tuple(
            m.Budget(
                tenant=account,
                period=budget.period,
                unit=budget.unit or self._currency,
                limit=budget.limit,
                soft=budget.soft,
                spent=budget.spent,
                reserved=budget.reserved,
                free=budget.free,
            )
            for account, several in sorted(self._burst.books.every().items())
            for budget in several
        )

    def events(self, *, lease: str | None, after: int, limit: int) -> tuple[m.Event, ...]:
        found = self._store.events(lease, after, limit)
        return tuple(m.Event(**_fields(event)) for event in found)

    def explain(self, kind: str, name: str) -> m.Explanation:
        """Why a job, lease or pool is as it is. Raises `NotFound`."""
        match kind:
            case "job":
                return self._explain_job(name)
            case "lease":
                return self._explain_lease(self.find(name))
            case "pool":
                return self._explain_pool(name)
        raise NotFound(f"there is nothing to explain about a {kind!r}: job, lease or pool")

    def plan(self) -> m.PlanNow:
        decision = self._burst.plan() if self._burst else None
        if decision is None:
            return m.PlanNow(ready=False, steps=())
        stored = {lease.id: lease for lease in self._store.leases()}
        return planned(decision, stored, self._currency)

    def find(self, name: str) -> StoredLease:
        """A lease by its id, the unique beginning of it, its node or its machine."""
        every = self._store.all_leases()
        exact = [le for le in every if name in (le.id, le.node, le.machine)]
        found = exact or [le for le in every if len(name) >= 4 and le.id.startswith(name)]
        living = [le for le in found if le.living]
        if len(living or found) > 1:
            raise NotFound(f"{len(found)} leases begin with {name!r}: write more of the id")
        if not found:
            raise NotFound(f"there is no lease {name!r}; see `dvn burst leases --all`")
        return (living or found)[0]

    # -- what an operator asks ---------------------------------------------------------------

    def drain(self, name: str, reason: str) -> m.Drained:
        lease = self.find(name)
        if not self._store.request_drain(lease.id, reason, self._clock()):
            raise NotFound(f"lease {lease.id} has ended already ({lease.state.value})")
        self._wake()
        return m.Drained(leases=(lease.id,), hold=self._hold())

    def drain_all(self, reason: str) -> m.Drained:
        """Return every machine, and rent none until `resume`: else the queue that is still there
        would have them back in a minute."""
        self._store.note(HOLD, reason)
        now = self._clock()
        drained = [le.id for le in self._store.leases()]
        for lease_id in drained:
            self._store.request_drain(lease_id, reason, now)
        self._wake()
        return m.Drained(leases=tuple(drained), hold=self._hold())

    def resume(self) -> m.Drained:
        """Lift a hold, and forget the failures so far: what caused them is said to be mended."""
        self._store.note(HOLD, "")
        self._store.note(FORGIVEN, self._clock().isoformat())
        self._wake()
        return m.Drained(leases=(), hold=self._hold())

    def mixed(self, name: str, on: bool | None) -> m.Mixed:
        """Whether the host of this provider is in mixed mode; `on` turns it."""
        if name not in self._mixed.names:
            known = ", ".join(self._mixed.names) or "there is none"
            raise NotFound(f"no provider {name!r} can be in mixed mode (known: {known})")
        if on is not None:
            self._mixed.turn(name, on)
            self._wake()
        leases = [le.id for le in self._store.leases() if le.provider == name]
        return m.Mixed(provider=name, on=self._mixed.on(name), leases=tuple(leases))

    # -- parts -------------------------------------------------------------------------------

    def _hold(self) -> str:
        return self._burst.hold if self._burst else ""

    def _services(self) -> tuple[m.Service, ...]:
        view = self._network.view
        network = m.Service(
            name="network",
            ok=not view.error,
            since=view.since,
            error=view.error,
            failures=view.failures,
            retry_at=view.retry_at,
        )
        others = self._burst.services if self._burst else ()
        hosts = [self._hosts_server(self._hosts)] if self._hosts else []
        return (network, *hosts, *(m.Service(**_known(m.Service, status)) for status in others))

    @staticmethod
    def _hosts_server(hosts: HostKeeper) -> m.Service:
        """Whether hosts can ask; how each fares is said elsewhere."""
        return m.Service(
            name="hosts",
            ok=not hosts.error,
            since=hosts.since,
            error=hosts.error,
            failures=0,
            retry_at=None,
        )

    def _enrolment_state(self) -> m.Enrolment | None:
        server = self._enrolment()
        if server is None:
            return None
        error = self._enrolment_error() or server.last_error
        return m.Enrolment(url=server.url, refusals=server.refusals, error=error)

    def _why(self, kind: str, name: str) -> m.Why | None:
        return _why(self._burst.answers.why(kind, name)) if self._burst else None

    def _lease(self, lease: StoredLease, links: Mapping[str, LinkHealth]) -> m.Lease:
        health = links.get(lease.id)
        values = {name: getattr(lease, name) for name in m.Lease.model_fields if name in _OF_LEASE}
        failure = lease.failure
        values |= {
            "state": lease.state.value,
            "cost": accrued(lease, self._clock()) if lease.living else lease.cost,
            "failure": m.Failed(kind=failure.kind.value, message=failure.message)
            if failure
            else None,
        }
        return m.Lease(
            **values,
            link=m.Link(**_fields(health)) if health and lease.living else None,
            why=self._why("lease", lease.id),
        )

    def _borrowed(self, farm: Farm) -> frozenset[str]:
        """The names of borrowed nodes: those of leases, and all in a pool's partition."""
        partitions = {pool.partition for pool in self._file.pools}
        nodes = {node.name for node in farm.nodes if partitions.intersection(node.partitions)}
        return frozenset(nodes | {lease.node for lease in self._store.all_leases()})

    def _job(self, job: LrmsJob, borrowed: frozenset[str]) -> m.Job:
        remote = [node in borrowed for node in job.node_names]
        where = (
            "" if not remote else "remote" if all(remote) else "both" if any(remote) else "local"
        )
        partitions = {pool.partition for pool in self._file.pools}
        return m.Job(
            id=job.id,
            name=job.name,
            user=job.user,
            state=job.state.value,
            partitions=job.partitions,
            cores=job.cores,
            submitted=job.submitted,
            started=job.started,
            ended=job.ended,
            nodes=job.node_names,
            where=where,
            routed=bool(partitions.intersection(job.partitions)),
            lrms_reason=job.reason,
            why=self._why("job", job.id),
        )

    def _explain_job(self, name: str) -> m.Explanation:
        why = self._why("job", name)
        farm = self._burst.farm if self._burst else None
        seen = next((one for one in farm.jobs if one.id == name), None) if farm else None
        borrowed = self._borrowed(farm) if seen and farm and seen.node_names else frozenset()
        job = self._job(seen, borrowed) if seen else None
        if job is None and why is None:
            hint = f"; {_NO_BURST}" if self._burst is None else ""
            raise NotFound(f"the batch system shows no job {name!r} now{hint}")
        told = [f"Job {name}"]
        if job is not None:
            place = f" ({job.where}: {', '.join(job.nodes)})" if job.nodes else ""
            told.append(f"of {job.user} is {job.state}{place}")
            if job.state == JobState.PENDING.value:
                told.append(f"in {', '.join(job.partitions)}")
        said = f": {why.message}" if why else "."
        rule = explaining.rule_for(why)
        inputs = explaining.of_job(seen, self._clock()) if seen else []
        pools = self._pools_for(seen)
        budgets = [budget for pool in pools for budget in self._budgets_of(pool)]
        if rule is not None and rule.of_pool:
            inputs += [fact for pool in pools for fact in self._facts_of(pool, f"{pool.name}: ")]
        return m.Explanation(
            kind="job",
            id=name,
            why=why,
            text=" ".join(told) + said,
            job=job,
            rule=rule.text if rule else "",
            inputs=(*inputs, *explaining.of_policy(rule, self._file.policy)),
            change=explaining.changes(why, rule, budgets, self._clock()),
        )

    def _pools_for(self, job: LrmsJob | None) -> list[Pool]:
        """The pools that might take the job, as far as its partitions say."""
        if job is None:
            return []
        names = set(job.partitions)
        return [
            pool for pool in self._file.pools if names & {*pool.from_partitions, pool.partition}
        ]

    def _budgets_of(self, pool: Pool) -> tuple[Budget, ...]:
        return self._burst.books.of(pool.account) if self._burst else ()

    def _facts_of(self, pool: Pool, prefix: str = "") -> list[m.Fact]:
        """What a decision about the pool looks at."""
        facts = self._burst.facts if self._burst else None
        provider = facts.providers.get(pool.provider) if facts else None
        every = self._store.leases()
        mine = [lease for lease in every if lease.pool == pool.name]
        used = {
            lease.address
            for lease in every
            if (lease.tenant, lease.network) == (pool.tenant, pool.network)
        }
        if facts and facts.farm:
            used |= {node.address for node in facts.farm.nodes}
        budgets = self._budgets_of(pool)
        return explaining.of_pool(pool, mine, provider, budgets, self._currency, used, prefix)

    def _explain_lease(self, lease: StoredLease) -> m.Explanation:
        shown = self._lease(lease, self._network.view.links)
        told = [f"Lease {lease.id} ({lease.node}) is {lease.state.value}"]
        if shown.failure:
            told.append(f"failed ({shown.failure.kind}): {shown.failure.message}")
        elif lease.drain_requested:
            told.append(f"an operator asked to return it: {lease.drain_requested}")
        elif lease.stop_reason:
            told.append(f"it is returned because {lease.stop_reason}")
        if shown.why:
            told.append(shown.why.message)
        if shown.link and not shown.link.up:
            told.append(f"its tunnel is down: {shown.link.detail}")
        events = self.events(lease=lease.id, after=0, limit=1000)
        rule = explaining.rule_for(shown.why) or rule_of(lease.state.value)  # of long ago: its end
        return m.Explanation(
            kind="lease",
            id=lease.id,
            why=shown.why,
            text="; ".join(told) + ".",
            lease=shown,
            events=events,
            rule=rule.text if rule else "",
            inputs=(
                *explaining.of_lease(lease, shown.cost, self._currency),
                *explaining.of_policy(rule, self._file.policy),
            ),
            change=explaining.changes(shown.why, rule, (), self._clock()),
        )

    def _explain_pool(self, name: str) -> m.Explanation:
        pool = next((pool for pool in self.pools() if pool.name == name), None)
        if pool is None:
            known = ", ".join(pool.name for pool in self.pools()) or _NO_BURST
            raise NotFound(f"there is no pool {name!r}; there is: {known}")
        said = pool.why.message if pool.why else "nothing to say about it yet."
        declared = next(one for one in self._file.pools if one.name == name)
        rule = explaining.rule_for(pool.why)
        budgets = self._budgets_of(declared)
        return m.Explanation(
            kind="pool",
            id=name,
            why=pool.why,
            text=f"Pool {name} has {pool.machines} of {pool.max_machines} machines: {said}",
            pool=pool,
            rule=rule.text if rule else "",
            inputs=(
                *self._facts_of(declared),
                *explaining.of_policy(rule, self._file.policy),
            ),
            change=explaining.changes(pool.why, rule, budgets, self._clock()),
        )


_OF_LEASE = frozenset(StoredLease.__dataclass_fields__) - {"state", "cost", "failure"}


def _fields(value: object) -> dict[str, object]:
    names = getattr(type(value), "__dataclass_fields__", {})
    return {name: getattr(value, name) for name in names}


def _known(model: type[m.Model], value: object) -> dict[str, object]:
    return {name: getattr(value, name) for name in model.model_fields}


def _why(answer: Answer | None) -> m.Why | None:
    if answer is None:
        return None
    return m.Why(code=answer.reason.code, message=answer.reason.message, since=answer.since)
