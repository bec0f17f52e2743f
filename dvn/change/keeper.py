"""Keeps the kernel as it was told: a look soon after each event, and a slow one all the same.

A thread beside the agent's. What is wanted is what was applied last, by the daemon or by hand: the
newest revision in force, with the daemon's tunnels of leases. While a change waits to be confirmed
nothing is repaired. Repairs are `Engine.apply`: the same path as everything else.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from dvn.change import blame
from dvn.change.drift import Debounce, Fight
from dvn.change.foreign import Dropper, ForeignRules, Ours
from dvn.change.names import AGENT, call_thread
from dvn.change.watch import Event, Interest, Watch, concerns, is_foreign_nft
from dvn.kernel import netlink as nl
from dvn.kernel import rtnl
from dvn.kernel.driver import KernelError
from dvn.kernel.nft import Nft
from dvn.kernel.state import ALIAS_PREFIX, LINK_GROUP, KernelState
from dvn.problems import SpecError
from dvn.spec import Site
from dvn.status import Applied

log = logging.getLogger(__name__)

RESYNC_S = 60.0
_RETRY_S = 5.0
_DECIDED_POLL_S = 0.5  # how soon after a trial's end its site is looked at
_FAILED = ("failed",)  # stands for the steps of a repair that came to nothing
_KEPT_EVENTS = 256
_KEPT_REPORTS = 50
_SHOWN_STEPS = 10


class Target(Protocol):
    """What the keeper asks of the agent."""

    def wanted(self) -> Mapping[str, Site]:
        """By name, what each site is to be; without those whose change waits to be confirmed."""

    def waiting(self) -> frozenset[str]:
        """Sites whose change waits to be confirmed."""

    def planned(self, name: str) -> tuple[str, ...]:
        """What a repair would do; raises as it does."""

    def repair(self, name: str) -> Applied | None:
        """Make the kernel as it is wanted; None if it is not to be touched now. Raises SpecError,
        ApplyError, KernelError."""

    def state(self) -> KernelState:
        """What there is of ours. Raises KernelError."""


@dataclass(frozen=True)
class Report:
    """Drift that was found. `action`: repaired, held (a fight) or failed.

    `seconds`: from the first event to the end of the repair, verified, by the agent's clock; rather
    too long than too short where it was busy when the event came. None: nothing announced it.
    """

    time: str  # UTC, ISO 8601
    site: str
    action: str
    who: str
    steps: tuple[str, ...]
    message: str
    seconds: float | None = None


@dataclass
class _Status:
    watching: bool = False
    settled: bool = False  # what was announced has been looked into
    error: str = ""
    reports: deque[Report] = field(default_factory=lambda: deque(maxlen=_KEPT_REPORTS))
    foreign: tuple[Dropper, ...] = ()
    held: dict[str, str] = field(default_factory=dict)


class Keeper:
    """`start()` it in the namespace it is to watch; `stop()` waits for its end."""

    def __init__(
        self,
        target: Target,
        *,
        resync: float = RESYNC_S,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        watch: Callable[[], Watch] | None = None,
        rules: Callable[[], ForeignRules] | None = None,
    ) -> None:
        self._target = target
        self._open_watch = watch or _watch_now
        self._open_rules = rules or (lambda: ForeignRules(Nft()))
        self._resync = resync
        self._clock = clock
        self._now = now
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        self._stopping = False
        self._status = _Status()
        self._events: deque[Event] = deque(maxlen=_KEPT_EVENTS)
        self._tables: set[tuple[str, str]] | None = None  # foreign ones that changed; None: all
        self._drift, self._rules = Debounce(), Debounce()
        self._fights: dict[str, Fight] = {}
        self._next_resync = 0.0
        self._silent = 0.0  # when there was nothing to be read
        self._since: float | None = None  # when the first event came that was not yet looked into
        self._waiting: frozenset[str] = frozenset()
        self._interest: tuple[tuple[Site, ...], Interest] = ((), Interest())

    def start(self) -> None:
        self._thread.start()

    def stop(self, patience_s: float) -> None:
        self._stopping = True
        self.wake()
        if self._thread.ident is not None:
            self._thread.join(patience_s)

    def wake(self) -> None:
        """What is wanted has changed: look at others' rules again, with it in mind."""
        with contextlib.suppress(BlockingIOError):
            self._wake.send(b"x")

    def status(self) -> dict[str, Any]:
        """For the agent's `drift`: JSON-able."""
        status = self._status
        return {
            "watching": status.watching,
            "settled": status.settled,
            "error": status.error,
            "repairs": [asdict(report) for report in tuple(status.reports)],
            "foreign": [str(dropper) for dropper in status.foreign],
            "held": dict(status.held),
        }

    # -- the thread

    def _run(self) -> None:
        call_thread(AGENT)
        while not self._stopping:
            try:
                self._watch()
            except (OSError, KernelError) as error:
                words = str(error)
                if words != self._status.error:
                    log.error("event=not-watching error=%r retry_s=%g", words, _RETRY_S)
                self._status.watching, self._status.error = False, words
                if not self._stopping:
                    self._sleep(_RETRY_S)

    def _sleep(self, seconds: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            selector.select(seconds)

    def _watch(self) -> None:
        with (
            contextlib.closing(self._open_watch()) as watch,
            contextlib.closing(self._open_rules()) as rules,
            selectors.DefaultSelector() as selector,
        ):
            watch.register(selector)
            selector.register(self._woken, selectors.EVENT_READ, "wake")
            self._status.watching, self._status.error = True, ""
            self._tables = None
            self._rules.happened(self._clock())
            self._drift.happened(self._clock())
            while not self._stopping:
                ready = selector.select(0)
                if not ready:
                    self._status.settled = self._drift.due() is None
                    ready = selector.select(self._patience())
                    self._status.settled = False
                    self._silent = self._clock()
                if any(key.data == "wake" for key, _mask in ready):
                    self._drain()
                    self._tables = None
                    self._rules.happened(self._clock())
                self._hear(watch)
                self._act(watch, rules)

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass

    def _patience(self) -> float:
        due = [at for at in (self._drift.due(), self._rules.due()) if at is not None]
        patience = max(0.0, min([self._next_resync, *due]) - self._clock())
        return min(patience, _DECIDED_POLL_S) if self._waiting else patience

    def _hear(self, watch: Watch) -> None:
        """Take what there is. It came after the last time that there was nothing."""
        begun = self._clock()
        self._take(watch.read())
        self._silent = begun

    def _take(self, events: Iterable[Event]) -> None:
        interest: Interest | None = None  # asked for once, and only if anything happened
        for event in events:
            if is_foreign_nft(event):
                if event.kind == "lost":
                    self._tables = None
                elif self._tables is not None:
                    self._tables |= event.tables
                self._rules.happened(self._clock())
            if interest is None:
                interest = self._interested()
            if concerns(event, interest):
                self._events.append(event)
                self._drift.happened(self._clock())
                self._since = self._silent if self._since is None else self._since

    def _interested(self) -> Interest:
        sites = tuple(self._target.wanted().values())
        if self._interest[0] != sites:
            self._interest = (sites, _interest(sites))
        return self._interest[1]

    def _act(self, watch: Watch, rules: ForeignRules) -> None:
        now = self._clock()
        if self._waiting and self._waiting - self._target.waiting():
            self._drift.happened(now)  # decided: what happened meanwhile was not looked into
        due = self._drift.due()
        if (due is not None and now >= due) or now >= self._next_resync:
            self._drift.looked()
            events, since = list(self._events), self._since
            self._events.clear()
            self._since = None
            self._next_resync = now + self._resync
            # Before what is wanted is asked for: one that is decided in between is looked at twice.
            self._waiting = self._target.waiting()
            for name in self._target.wanted():
                self._look(name, events, since, watch)
        due = self._rules.due()
        if due is not None and self._clock() >= due:
            self._rules.looked()
            changed = None if self._tables is None else frozenset(self._tables)
            self._tables = set()
            self._name(rules.look(_ours(self._target), changed))

    def _look(self, name: str, events: list[Event], since: float | None, watch: Watch) -> None:
        now = self._clock()
        fight = self._fights.setdefault(name, Fight())
        action, steps, message = "repaired", tuple[str, ...](), ""
        try:
            if fight.on(now) and self._waits(name, fight):
                return
            applied = self._target.repair(name)
        except (KernelError, SpecError, RuntimeError) as error:
            # What changed while we looked at it, or was taken away before we looked again: once
            # more, soon. What goes on failing is held as a fight is.
            action, message = "failed", str(error)
            self._drift.happened(now)
            self._since = since if self._since is None else self._since
        else:
            if not fight.on(now):
                self._status.held.pop(name, None)
            if applied is None or not applied.steps:
                return
            steps = applied.steps
        done = self._clock()
        # A look may see what is done before it hears of it. What our own writes announce cannot be
        # told from what somebody else did after we had read that part: it leads to one look more,
        # which then writes nothing.
        self._hear(watch)
        who = self._who([*events, *(event for event in self._events if event.kind == "nft")])
        fight.who = who or fight.who
        what = steps or _FAILED
        count = fight.repaired(now, what)
        self._report(name, action, who, steps, message, None if since is None else done - since)
        held = fight.held_until(now, what)
        if held is not None:
            self._hold(name, fight, message, count, held)

    def _waits(self, name: str, fight: Fight) -> bool:
        """Whether what is to be repaired is what somebody undoes, and has to wait."""
        now = self._clock()
        held = fight.held_until(now, _FAILED) or fight.held_until(now, self._target.planned(name))
        if held is not None:
            self._next_resync = min(self._next_resync, held)
        return held is not None

    def _hold(self, name: str, fight: Fight, error: str, count: int, held: float) -> None:
        """Say that a fight is on, or that repairs go on failing."""
        times = f"{count} times within a minute"
        wait = f"waits {held - self._clock():.0f} s"
        words = f"repairing failed {times}, the next one {wait}: {error}"
        if fight.who or not error:
            who = fight.who or "somebody"
            words = f"{who} undoes what is repaired, {times}: the next {wait}; stop one of the two"
        self._status.held[name] = words
        self._next_resync = min(self._next_resync, held)
        self._report(name, "held", fight.who, (), words)

    def _who(self, events: list[Event]) -> str:
        parents = {event.pid: blame.parent_of(event.pid) for event in events if event.pid}
        return blame.culprit(events, blame.running(), parents) if events else ""

    def _report(
        self,
        site: str,
        action: str,
        who: str,
        steps: tuple[str, ...],
        message: str,
        seconds: float | None = None,
    ) -> None:
        stamp = self._now().isoformat(timespec="milliseconds")
        seconds = None if seconds is None else round(seconds, 3)
        shown = steps[:_SHOWN_STEPS]
        self._status.reports.append(Report(stamp, site, action, who, shown, message, seconds))
        log.warning(
            "event=drift site=%s action=%s who=%r steps=%d first=%r message=%r seconds=%s",
            site, action, who, len(steps), steps[0] if steps else "", message, seconds,
        )  # fmt: skip

    def _name(self, found: tuple[Dropper, ...]) -> None:
        for dropper in found:
            if dropper not in self._status.foreign:
                log.warning("event=foreign-drop what=%r", str(dropper))
        for dropper in self._status.foreign:
            if dropper not in found:
                log.info("event=foreign-drop-gone what=%r", str(dropper))
        self._status.foreign = found


def _watch_now() -> Watch:
    """It hears first and then reads which links there are: none is made in between."""
    watch = Watch({}, frozenset())
    try:
        with contextlib.closing(nl.Socket()) as sock:
            for link in rtnl.dump_links(sock):
                watch.reader.names[link.index] = link.name
                if link.alias.startswith(ALIAS_PREFIX) or link.group == LINK_GROUP:
                    watch.reader.stamped.add(link.index)
    except OSError:
        watch.close()
        raise
    return watch


def _interest(sites: Iterable[Site]) -> Interest:
    """Links that are not ours and that we put to use."""
    links = set()
    for site in sites:
        if site.underlay:
            links.add(site.underlay.interface)
        links |= {*site.closed}
        for _tenant, _name, network in site.networks():
            links |= {port.interface for port in network.on(site.here)}
            if network.vlan:
                links.add(network.vlan.uplink)
    return Interest(frozenset(links))


def _ours(target: Target) -> Ours:
    sites = list(target.wanted().values())
    state = target.state()
    links = {link.name for link in state.links} | _interest(sites).links
    prefixes = [p for site in sites for _t, _n, network in site.networks() for p in network.prefix]
    return Ours(frozenset(links), tuple(prefixes))
