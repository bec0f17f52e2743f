"""apply, try, confirm, undo: a change of a site from the intention to what is kept of it.

Whoever does it (command line, guard, agent) does it through these; nothing here lives longer than a
call. What has to survive a kill is in the files of pending.py and history.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dvn import addresses
from dvn.change import snapshot
from dvn.change.files import ChangeError
from dvn.change.history import DONE, History, Revision, static_site, whoami
from dvn.change.pending import Pending, PendingStore, State, boot_id, boot_time
from dvn.change.verify import Heard, LivePackets, Machine, Packets, lost, still_wanted
from dvn.engine import ApplyError, Engine
from dvn.kernel.driver import KernelError
from dvn.kernel.state import KernelState
from dvn.problems import SpecError
from dvn.spec import Site
from dvn.status import Applied

_NAMED = 3


@dataclass(frozen=True)
class Wish:
    """A site that somebody wants, with where it comes from."""

    site: Site
    source: str
    text: str = ""


@dataclass(frozen=True)
class Done:
    """`heard`: how many answered before the change, and still do. `revision` 0: none was needed."""

    applied: Applied
    heard: int
    revision: int


class BrokeError(ApplyError):
    """Somebody who answered before the change did not after it; `lost` names them."""

    def __init__(self, silent: tuple[str, ...], *, undone: bool, how: str) -> None:
        names = "; ".join(silent[:_NAMED])
        more = f" and {len(silent) - _NAMED} more" if len(silent) > _NAMED else ""
        super().__init__(f"the change silenced {names}{more}; {how}", undone=undone)
        self.lost = silent


class Changes:
    """`packets` None: no look at the wire. `now` is for people, `clock` decides."""

    def __init__(
        self,
        engine: Engine,
        root: Path,
        *,
        packets: Packets | None = None,
        clock: Callable[[], float] = boot_time,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        boot: Callable[[], str] = boot_id,
    ) -> None:
        self.engine = engine
        self.root = root
        self.history = History(root)
        self.pending = PendingStore(root)
        self._packets = packets
        self._clock = clock
        self._now = now
        self.boot = boot

    def apply(self, wish: Wish, *, keep_dynamic: bool = True) -> Done:
        """Make the kernel so, look on the wire what came of it, and keep it as a revision.

        Raises what Engine.apply does, BrokeError if it silenced somebody (it is undone then), and
        ChangeError if another change of the site waits to be confirmed.
        """
        site = wish.site.site
        self.pending.refuse(site)
        if not self.engine.plan(wish.site, keep_dynamic=keep_dynamic):
            applied = self.engine.apply(wish.site, keep_dynamic=keep_dynamic)
            return Done(applied, 0, self.keep(wish, applied.steps))
        with self.pending.guarding(site):
            pending = self.begin(wish, timeout=0, state="applying", keep_dynamic=keep_dynamic)
            done = self.carry_out(pending, wish.site, keep_dynamic=keep_dynamic)
            number = self.keep(wish, done.applied.steps)
            self.pending.end(site)
        return Done(done.applied, done.heard, number)

    def begin(
        self,
        wish: Wish,
        *,
        timeout: float,
        watch: str | None = None,
        state: State = "trying",
        keep_dynamic: bool = True,
    ) -> Pending:
        """Write down what is about to be done and what to go back to; nothing is changed yet. From
        now on the agent repairs nothing of the site.

        Raises SpecError, KernelError, ChangeError.
        """
        site = wish.site.site
        plan = self.engine.plan(wish.site, keep_dynamic=keep_dynamic)
        before = self.engine.before(wish.site, keep_dynamic=keep_dynamic)
        pending = Pending(
            site=site,
            who=whoami(),
            source=wish.source,
            text=wish.text,
            spec=static_site(wish.site).model_dump(mode="json"),
            plan=plan.lines(),
            started=self._stamp(),
            timeout=timeout,
            deadline=self._clock() + timeout,
            boot=self.boot(),
            before=snapshot.to_json(before),
            watch=watch,
            state=state,
        )
        self.pending.begin(pending)
        return pending

    def carry_out(
        self, pending: Pending, site: Site | None = None, *, keep_dynamic: bool = True
    ) -> Done:
        """Do what was begun; `site` unless it is the pending one, such as one with leases. If it
        fails or silences somebody it is undone at once, and the exception says so."""
        wanted = site or pending.site_spec()
        try:
            heard = self._listen(wanted, pending.snapshot())
            applied = self.engine.apply(wanted, keep_dynamic=keep_dynamic)
        except (SpecError, ApplyError, KernelError) as error:
            self.undo(pending.site, f"it failed: {error}")
            raise
        silent = self._silent(pending.site, heard)
        if silent:
            undone, how = self._put_back(pending.site, silent)
            raise BrokeError(silent, undone=undone, how=how)
        return Done(applied, len(heard), 0)

    def confirm(self, site: str) -> Revision:
        """Keep what is tried. ChangeError if nothing waits, or it is being undone."""
        with self.pending.deciding(site):
            pending = self.pending.get(site)
            if pending is None:
                raise ChangeError(f"no change of site {site} waits to be confirmed")
            if pending.state == "applying":
                raise ChangeError(f"{pending.who} is changing site {site} for good at this moment")
            if pending.state == "undoing":
                raise ChangeError(f"too late: the change is being undone, {pending.reason}")
            kept = self.history.add(self._revision_of(pending, DONE))
            self.pending.end(site)
        return kept

    def undo(self, site: str, reason: str) -> Revision | None:
        """Go back to what was before the trial; None if there is none (any more).

        Raises ApplyError or KernelError if the kernel would not; then it is tried again by the
        guard, the agent, or the next command.
        """
        with self.pending.deciding(site):
            pending = self.pending.get(site)
            if pending is None:
                return None
            if pending.state != "undoing":
                pending = self.pending.undoing(pending, reason)
            self.engine.restore(site, pending.snapshot())
            kept = self.history.add(self._revision_of(pending, f"undone: {pending.reason}"))
            self.pending.end(site)
        return kept

    def verdict(self, pending: Pending) -> str:
        """Why a waiting change has to be undone now; "" if it may wait on. Pure but for clocks."""
        if pending.state == "undoing":
            return pending.reason
        if pending.state == "applying":
            return "the command was killed in the middle of it"
        if self._clock() >= pending.deadline:
            return f"nobody confirmed it within {pending.timeout:g} s"
        return ""

    def recover(self, site: str, *, guarded: bool) -> Revision | None:
        """Finish what a killed process left: undo a trial whose time is over, or whose undoing was
        begun. `guarded`: a guard lives and will do it. None if there was nothing to do."""
        pending = self.pending.get(site)
        if pending is None:
            return None
        if pending.boot != self.boot():
            with self.pending.deciding(site):
                if self.pending.get(site) is None:
                    return None
                kept = self.history.add(
                    self._revision_of(
                        pending, "gone: this machine was restarted before it was kept"
                    )
                )
                self.pending.end(site)
            return kept
        reason = self.verdict(pending)
        if guarded or not reason:
            return None
        return self.undo(site, reason)

    def rollback(self, site: str, number: int) -> Wish:
        """The revision as something to apply. ChangeError, SpecError."""
        revision = self.history.get(site, number)
        if revision is None:
            raise ChangeError(f"site {site} has no revision {number}: see dvn history {site}")
        return Wish(revision.site_spec(), f"revision {number}", revision.text)

    def destroy(self, site: str, source: str) -> Applied:
        """Remove the site, and write down that it is to be gone: nobody puts it back."""
        nothing = Wish(Site.model_validate({"site": site}), source)
        with self.pending.guarding(site):
            self.begin(nothing, timeout=0, state="applying", keep_dynamic=False)
            try:
                applied = self.engine.destroy(site)
            except (ApplyError, KernelError):
                self.pending.end(site)
                raise
            if applied.steps or self.history.current(site):
                self.keep(nothing, applied.steps)
            self.pending.end(site)
        return applied

    # --

    def _listen(self, site: Site, state: KernelState) -> Heard:
        if self._packets is None:
            return Heard()
        declared = list(_declared(site))
        current = self.history.current(site.site)
        if current is not None:
            # One of another version of this software: then the kernel's own table has to do.
            with contextlib.suppress(SpecError):
                declared += _declared(current.site_spec())
        return self._packets.listen(state, declared)

    def _silent(self, site: str, heard: Heard) -> tuple[str, ...]:
        if self._packets is None or not len(heard):
            return ()
        state = self.engine.show(site)
        wanted = still_wanted(heard, state)
        return lost(wanted, self._packets.again(wanted, state))

    def _put_back(self, site: str, silent: tuple[str, ...]) -> tuple[bool, str]:
        try:
            self.undo(site, f"it silenced {silent[0]}")
        except (ApplyError, KernelError) as error:
            return False, f"and it could not be undone: {error}"
        return True, "what was done is undone"

    def keep(self, wish: Wish, plan: tuple[str, ...]) -> int:
        """Write down a site that was applied, unless it is in force already. Its number."""
        current = self.history.current(wish.site.site)
        spec = static_site(wish.site).model_dump(mode="json")
        if current and current.spec == spec and wish.text in ("", current.text):
            return current.number
        return self._keep(wish, plan, DONE)

    def _keep(self, wish: Wish, plan: tuple[str, ...], result: str) -> int:
        return self.history.add(
            Revision(
                site=wish.site.site,
                time=self._stamp(),
                who=whoami(),
                source=wish.source,
                text=wish.text,
                spec=static_site(wish.site).model_dump(mode="json"),
                plan=plan,
                result=result,
                boot=self.boot(),
            )
        ).number

    def _revision_of(self, pending: Pending, result: str) -> Revision:
        return Revision(
            site=pending.site,
            time=self._stamp(),
            who=pending.who,
            source=pending.source,
            text=pending.text,
            spec=pending.spec,
            plan=pending.plan,
            result=result,
            boot=pending.boot,
        )

    def _stamp(self) -> str:
        return self._now().isoformat(timespec="seconds")


def changes_on_this_host(engine: Engine, root: Path, *, probe: bool = True) -> Changes:
    return Changes(engine, root, packets=LivePackets() if probe else None)


def _declared(site: Site) -> Iterator[Machine]:
    """Machines that the file names, whether or not the kernel has talked to them."""
    for tenant, name, network in site.networks():
        for port in network.ports:
            for address in _addresses_of(port):
                yield Machine(addresses.bridge_name(tenant, name), address, port.interface)


def _addresses_of(port: object) -> Iterator[str]:
    """One address or several."""
    value = getattr(port, "address", None)
    for address in value if isinstance(value, tuple) else (value,):
        if address is not None:
            yield str(address)
