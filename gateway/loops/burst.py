"""The burst loop: gather the facts, decide, act. The deciding is `burst.decide`, and pure."""

from __future__ import annotations

import grp
import logging
import os
import pwd
import random
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from burst import batches, execute
from burst.actions import Action, Decision, Update
from burst.decide import decide
from burst.lrms.base import Lrms, LrmsError
from burst.mixed.directing import Rule, directed
from burst.model import Facts, Farm, Lease, Notice, Policy, Pool, ProviderFacts
from burst.observe import world
from burst.providers.base import Provider, ProviderError
from burst.round import Round
from gateway.loops.answers import Answers
from gateway.loops.backoff import Backoff
from gateway.loops.books import Books
from gateway.loops.lending import ProviderReader
from gateway.loops.network import NetworkView
from gateway.loops.source import Source, SourceStatus, Spawn, in_thread
from gateway.loops.timesheet import Timesheet
from gateway.store import Store

log = logging.getLogger(__name__)

FORGIVEN = "forgiven"  # the note in the store: failures up to this instant do not count
WATCH = "watch"  # the note in the store: since when everybody was watched, and when last
HOLD = "hold"  # the note in the store: why nothing new is rented


class BurstLoop:
    """One `round()`; never two at once. The thread around it is `gateway.loops.loop.Loop`."""

    def __init__(
        self,
        *,
        pools: Sequence[Pool],
        policy: Policy,
        store: Store,
        books: Books,
        lrms: Lrms,
        providers: Mapping[str, Provider],
        user_data: Callable[[Lease], str],
        network: Callable[[], NetworkView],
        clock: Callable[[], datetime],
        answer_timeout: timedelta,
        new_id: Callable[[], str] = lambda: secrets.token_hex(16),
        spawn: Spawn = in_thread,
        rng: random.Random | None = None,
        resumed: Callable[[], datetime | None] = lambda: None,
        rules: Sequence[Rule] = (),
    ) -> None:
        """`spawn` runs a question to a service, `rng` spreads retries: both for simulations.
        `resumed` says since when instants may be compared: the clock was set then."""
        self._pools = tuple(pools)
        self._policy = policy
        self._store = store
        self.books = books
        self._lrms = lrms
        self._providers = providers
        self._user_data = user_data
        self._network = network
        self._clock = clock
        self._timeout = answer_timeout.total_seconds()
        self._new_id = new_id
        self._long = min(timedelta(seconds=30), policy.lost_timeout / 4)
        self._started = self._watched_since(clock())
        self._noted: datetime | None = None
        self._resumed = resumed
        self._rules = tuple(rules)
        self.answers = Answers()
        self._timesheet = Timesheet(store.accounts)
        self.facts: Facts | None = None
        self.farm: Farm | None = None  # the last that was seen, for those who ask
        self.failed: dict[str, str] = {}  # the actions of the last round that did not succeed
        # Shorter ones must not put off every time-out, or with a provider that throttles now and
        # then none would ever run out.
        long_outage = self._long
        self._farm_source = Source(
            "lrms",
            self._snapshot,
            expected=(LrmsError, OSError),
            backoff=_patience(policy, rng),
            clock=clock,
            long_outage=long_outage,
            spawn=spawn,
        )
        self._provider_sources = {
            name: Source(
                name,
                ProviderReader(provider, clock),
                expected=(ProviderError, OSError),
                backoff=_patience(policy, rng),
                clock=clock,
                long_outage=long_outage,
                spawn=spawn,
            )
            for name, provider in providers.items()
        }

    @property
    def services(self) -> tuple[SourceStatus, ...]:
        providers = (source.status for source in self._provider_sources.values())
        return (self._farm_source.status, *providers)

    @property
    def hold(self) -> str:
        """Why nothing new is rented now; empty: it may be."""
        return self._store.notes().get(HOLD, "")

    def round(self) -> None:
        facts = self._gather()
        self.facts = facts
        self._note_watch(facts)
        self._timesheet.look(facts)
        decision = self._decide(facts)
        self.answers.hear(decision.reasons, facts.now)
        self._act(decision.actions)

    def plan(self) -> Decision | None:
        """What the facts of the last round ask for now; None before the first round."""
        return None if self.facts is None else self._decide(self.facts)

    def desk(self) -> Round | None:
        """The last round's facts on scratch paper, for quotes; None before the first round."""
        if self.facts is None:
            return None
        flashes = self._store.flashes.all(since=self.facts.now)
        facts = replace(
            self.facts,
            leases=self._store.leases(ended_since=self.facts.now - self._policy.pause),
            budgets=self.books.budgets(),
            flashes=flashes,
        )
        pools = self._pools_now()
        return Round.begin(world(facts, self._policy), pools, self._policy, self._new_id)

    def _snapshot(self) -> Farm:
        """Stamped by the clock that decisions use, whatever clock the adapter has."""
        taken = self._clock()
        return replace(self._lrms.snapshot(), taken=taken)

    def _gather(self) -> Facts:
        # The providers are asked before the leases are read: a lease written in between would
        # make its own machine look like nobody's.
        sources = self._provider_sources
        view = self._network()  # before the farm is asked: what it says is after what this shows
        for source in sources.values():
            source.ask()
        self._farm_source.ask()
        lent = {name: source.answer(self._timeout) for name, source in sources.items()}
        farm = self._farm_source.answer(self._timeout)
        if farm is not None:
            self.farm = farm
        now = self._clock()
        leases = self._store.leases(ended_since=now - self._policy.pause)
        heard = self._store.joins.heard()
        forgiven = self._store.notes().get(FORGIVEN, "")
        flashes = self._store.flashes.all(since=now)
        return Facts(
            now=now,
            farm=farm,
            leases=leases,
            providers={
                name: _attributed(facts, leases)
                if facts
                else ProviderFacts(name, error=sources[name].error or "not asked yet")
                for name, facts in lent.items()
            },
            links=view.links,
            enrolled={lease: said.at for lease, said in heard.items() if said.at is not None},
            heard={lease: said.heard for lease, said in heard.items()},
            notices={
                lease: Notice(said.noticed, said.ends)
                for lease, said in heard.items()
                if said.noticed is not None
            },
            join_reports={lease: said.failure for lease, said in heard.items() if said.failure},
            budgets=self.books.budgets(),
            flashes=flashes,
            flash_spent=self._store.accounts.spent_by_flash(flash.id for flash in flashes),
            network_error=view.error,
            network_applied=view.applied,
            watching_since=self._watching_since(view),
            forgiven=datetime.fromisoformat(forgiven) if forgiven else None,
        )

    def _watched_since(self, now: datetime) -> datetime:
        """Since when machines are watched, over restarts that took but a moment: a daemon that is
        killed again and again must still give up what never boots."""
        since, _, last = self._store.notes().get(WATCH, "").partition(" ")
        if last and now - datetime.fromisoformat(last) <= self._long:
            return datetime.fromisoformat(since)
        return now

    def _note_watch(self, facts: Facts) -> None:
        """Only when everybody answered: silence is no watching."""
        silent = any(provider.machines is None for provider in facts.providers.values())
        if silent or facts.farm is None or facts.network_error or facts.watching_since is None:
            return
        if self._noted is None or facts.now - self._noted >= self._long / 4:
            since, now = facts.watching_since.isoformat(), facts.now.isoformat()
            self._store.note(WATCH, f"{since} {now}")
            self._noted = facts.now

    def _watching_since(self, view: NetworkView) -> datetime:
        """The end of the last long outage of anybody: nobody is late for the time nobody looked."""
        ends = [status.recovered for status in self.services if status.recovered is not None]
        ends += [end for end in (view.recovered, self._resumed()) if end is not None]
        return max([self._started, *ends])

    def _pools_now(self) -> tuple[Pool, ...]:
        hold = self.hold
        return tuple(replace(pool, hold=hold) for pool in self._pools) if hold else self._pools

    def _decide(self, facts: Facts) -> Decision:
        pools = self._pools_now()
        if facts.farm is None or not self._rules:
            return decide(facts, pools, self._policy, self._new_id)
        bound = directed(facts.farm, self._rules, pools, unix_groups)
        facts = replace(facts, farm=bound.farm)
        decision = decide(facts, pools, self._policy, self._new_id)
        return replace(decision, actions=(*bound.actions, *decision.actions))

    def _act(self, actions: Sequence[Action]) -> None:
        if not actions:
            self.failed = {}
            return
        outcomes = execute.apply(
            actions,
            store=self.books,
            lrms=self._lrms,
            providers=self._providers,
            user_data=self._user_data,
            policy=self._policy,
            clock=self._clock,
        )
        failed = {}
        for outcome in outcomes:
            name = type(outcome.action).__name__.lower()
            if outcome.error:
                failed[f"{name} {about(outcome.action)}"] = outcome.error
                log.warning("event=%s %s error=%r", name, about(outcome.action), outcome.error)
            elif not isinstance(outcome.action, Update):  # its change of state is logged already
                log.info("event=%s %s", name, about(outcome.action))
        self.failed = failed


def unix_groups(user: str) -> Collection[str]:
    """The names of the user's groups on this host; none for one whom it does not know."""
    try:
        numbers = os.getgrouplist(user, pwd.getpwnam(user).pw_gid)
        return [grp.getgrgid(number).gr_name for number in numbers]
    except KeyError:
        return ()


def _attributed(facts: ProviderFacts, leases: Sequence[Lease]) -> ProviderFacts:
    if facts.machines is None:
        return facts
    return replace(facts, machines=batches.attributed(facts.machines, leases))


def _patience(policy: Policy, rng: random.Random | None) -> Backoff:
    first = min(policy.backoff_first, timedelta(seconds=10))
    return Backoff(first, policy.backoff_limit, rng or random.Random())


def about(action: Action) -> str:
    """The action's subject in the log's words: `lease=... state=...`, `job=... partition=...`."""
    lease = getattr(action, "lease", None)
    if isinstance(lease, Lease):
        about = f"lease={lease.id} pool={lease.pool} node={lease.node} state={lease.state.value}"
        return about + (f" failure={lease.failure.kind.value}" if lease.failure else "")
    names = [name for name in type(action).__match_args__ if name != "lease"]
    return " ".join(f"{name.removesuffix('_id')}={getattr(action, name)!r}" for name in names)
