"""plan, apply, verify, undo: the same way for a first start, a change, drift and the end.

Level-triggered: each call looks at the whole kernel, compares, and acts on the difference.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

from dvn import probe as probing
from dvn.change.memory import SwitchMemory
from dvn.compile import Compiled, checked, compile_site
from dvn.kernel.diff import diff
from dvn.kernel.driver import Kernel, KernelError, StepError
from dvn.kernel.linux import LinuxKernel
from dvn.kernel.nftcommands import DelTable, FlushChain
from dvn.kernel.state import Host, KernelState, NftTable, Sysctl, View
from dvn.kernel.steps import DelLink, NftChange, Plan, Step, Writes
from dvn.known import Change, Growth, Known, NotByParts
from dvn.passes import Context
from dvn.spec import Site
from dvn.status import Applied, Dropped, Passed, Probe, TunnelStatus
from dvn.tunnels import dynamic, paths
from dvn.tunnels.secrets import read_secrets
from dvn.vlans import forwarding

_ROW = 100
_LOOK_S = 60.0  # after which a change is an occasion to look at everything again
# Settings that we, or an operator, may have given to a link of ours.
_LINK_SETTINGS = tuple(
    f"net/{family}/conf/{{link}}/{name}"
    for family, names in (
        ("ipv4", "forwarding rp_filter arp_ignore accept_redirects send_redirects proxy_arp"),
        ("ipv6", "accept_ra accept_redirects forwarding disable_ipv6 proxy_ndp"),
    )
    for name in names.split()
)


class ApplyError(RuntimeError):
    """A step failed, or what is there afterwards is not what was wanted.

    `undone`: whether the kernel is again as it was before.
    """

    def __init__(self, message: str, *, undone: bool) -> None:
        super().__init__(message)
        self.undone = undone


@dataclass(frozen=True)
class _Look:
    observed: KernelState
    desired: KernelState
    notes: tuple[str, ...] = ()
    context: Context | None = None

    def plan(self) -> Plan:
        return diff(self.observed, self.desired)


class Engine:
    """`lenient`: leave out ports and uplinks that are not there, with a note (see compile).

    One that lives on, as the agent's does, remembers what it has verified: a change to some
    networks is then compared and written by itself (known.py), as long as the kernel announces
    nothing new. `memory`: of what we switched, for when somebody flushes the sets that say so.
    """

    def __init__(
        self,
        kernel: Kernel | None = None,
        *,
        lenient: bool = False,
        memory: SwitchMemory | None = None,
        clock: Callable[[], float] = time.monotonic,
        row: int = _ROW,
    ) -> None:
        self._kernel: Kernel = kernel or LinuxKernel()
        self._lenient = lenient
        self._memory = memory
        self._clock = clock
        self._row = row  # networks that are made together where there are none yet
        self._known: Known | None = None
        self._last: tuple[Site, Host, Compiled] | None = None
        self._looked = 0.0  # when all was looked at, by the clock

    def plan(self, site: Site, *, keep_dynamic: bool = False) -> Plan:
        """What apply would do. Raises SpecError (host), KernelError."""
        return self._look(site, keep_dynamic).plan()

    def apply(self, site: Site, *, keep_dynamic: bool = False) -> Applied:
        """Make the kernel as `site` says, and look whether it is.

        `keep_dynamic` is for who knows the file and not the leases: tunnels that leases brought
        stay (tunnels/dynamic.py).
        Raises SpecError if this host cannot hold it (nothing was changed), ApplyError if the
        kernel refused a step (what was done is undone), KernelError if it could not be read.
        """
        with self._kernel.exclusive(), _undisturbed():
            applied = None if keep_dynamic else self._apply_parts(site)
            return applied or self._apply_all(site, keep_dynamic)

    def _apply_all(self, site: Site, keep_dynamic: bool) -> Applied:
        """By a look at everything."""
        self._known = None
        looked = self._clock()
        view = self._kernel.look(site.site)
        host = self._host(site, view)
        if not keep_dynamic and self._from_nothing(site, view):
            applied = self._apply_rows(site, view, host)
            if applied is not None:
                self._looked = looked
                return applied
        look = self._compared(site, view, host, keep_dynamic)
        plan = look.plan()
        writes, before = self._execute(site.site, plan, look)
        if plan:
            self._verify(site.site, look, before)
        self._remember(site.site, look.desired.tables)
        if not (keep_dynamic or look.notes) and look.context is not None:
            self._known, self._looked = Known(look.context), looked
            self._kernel.rely()
        return _applied(plan, writes, look.notes)

    def _from_nothing(self, site: Site, view: View) -> bool:
        """Whether there is nothing yet of a site that is large."""
        state = view.state
        found = (*state.links, *state.ports, *state.addresses, *state.tables, *state.things)
        remembered = self._recalled(site.site, state).tables
        many = sum(len(tenant.networks) for tenant in site.tenants.values()) >= 2 * self._row
        return many and not found and not any(s.elements for t in remembered for s in t.sets)

    def _apply_rows(self, site: Site, view: View, host: Host) -> Applied | None:
        """A large site from nothing, some networks at a time: while the kernel makes those, which
        takes it longest, the next are compiled. None if it must be done otherwise."""
        context, notes = checked(site, host, lenient=self._lenient)
        if notes:
            return None
        growth = Growth(context, view.state)
        switches = tuple(Sysctl(key, value) for key, value in host.sysctls.items())
        before = replace(view.state, raised=frozenset(), sysctls=switches)
        writes, lines = Writes(), list[str]()
        doing: Future[Writes] | None = None
        try:
            with _attentive(), ThreadPoolExecutor(1, "kernel") as kernel:
                for plan in growth.plans(self._row):
                    if doing:
                        writes += doing.result()
                    doing = kernel.submit(self._kernel.carry_out, plan.steps)
                    lines += plan.lines()
                # All that is needed once the kernel is done is made while it is busy.
                desired = growth.state()
                grown = Known(context, growth.held)
                steps = tuple(lines)
                writes += doing.result() if doing else Writes()
        except StepError as error:
            undone, how = self._undo(site.site, before, growth.state())
            raise ApplyError(f"{_short(error.step)}: {error}; {how}", undone=undone) from error
        self._verify(site.site, _Look(view.state, desired), before)
        self._remember(site.site, desired.tables)
        self._known = grown
        self._kernel.rely()
        return replace(_applied(Plan(), writes, ()), steps=steps)

    def _apply_parts(self, site: Site) -> Applied | None:
        """By the networks and tunnels that changed since the last apply, where the kernel has been
        left alone; None where all of it must be looked at. A site that has not changed is applied
        in order to repair: that, too, is a look at everything."""
        known = self._known
        if known is None or known.site.site != site.site:
            return None
        if self._clock() - self._looked > _LOOK_S or not self._kernel.undisturbed():
            return None
        try:
            change = known.change(site)
        except NotByParts:
            return None
        self._known = None
        settings = self._kept(change.before, change.plan).sysctls
        try:
            writes = self._kernel.carry_out(change.plan.steps)
        except StepError as error:
            undone, how = self._undo_parts(known, change, settings)
            raise ApplyError(f"{_short(error.step)}: {error}; {how}", undone=undone) from error
        left = diff(self._touched(change), change.after)
        if left:
            undone, how = self._undo_parts(known, change, settings)
            raise _not_as_told(left, how, undone=undone)
        known.done(change)
        self._known = known
        if forwarding.switches_in(change.plan):
            self._remember(site.site, known.state().tables)
        return _applied(change.plan, writes, ())

    def _touched(self, change: Change) -> KernelState:
        """What a change was about, as it is: links are read again; nft answered for its part, and
        nobody changed that meanwhile, else `undisturbed` says so the next time."""
        seen = self._kernel.glance(change.names())
        ours = change.after.by_name
        others = (a for a in change.after.addresses if a.link not in ours)
        return replace(
            change.after,
            links=seen.links,
            ports=seen.ports,
            addresses=(*others, *seen.addresses),
            sysctls=self._kernel.sysctls([s.key for s in change.after.sysctls]),
        )

    def _undo_parts(
        self, known: Known, change: Change, settings: tuple[Sysctl, ...]
    ) -> tuple[bool, str]:
        before = replace(known.state(), raised=frozenset(), sysctls=settings)
        return self._undo(known.site.site, before, change.after)

    def destroy(self, site_name: str) -> Applied:
        """Remove everything that is stamped with the site's name. Raises as apply does."""
        with self._kernel.exclusive():
            self._known = None
            look = self._last_look(site_name)
            plan = look.plan()
            writes, _before = self._execute(site_name, plan, look)
            left = diff(self._kernel.look(site_name).state, KernelState())
            self._remember(site_name, ())
        if left:
            raise ApplyError(f"still there after destroy: {left.lines()[0]}", undone=False)
        return _applied(plan, writes, ())

    def before(self, site: Site, *, keep_dynamic: bool = False) -> KernelState:
        """What is there now of all that `site` would change, nft's listings too: what `restore`
        goes back to. Raises as plan does."""
        look = self._look(site, keep_dynamic)
        before = self._kept(look.observed, look.plan())
        return replace(before, tables=self._kernel.listings(before.tables))

    def restore(self, site_name: str, before: KernelState) -> Applied:
        """Back to what `before` returned, also from another process. Raises as apply does."""
        with self._kernel.exclusive():
            self._known = None
            plan = diff(self._now(site_name, before.sysctls), before)
            try:
                writes = self._kernel.carry_out(plan.steps)
            except StepError as error:
                raise ApplyError(f"{_short(error.step)}: {error}", undone=False) from error
            left = diff(self._now(site_name, before.sysctls), before)
            self._remember(site_name, before.tables)
        if left:
            raise ApplyError(f"still not as it was: {left.lines()[0]}", undone=False)
        return _applied(plan, writes, ())

    def show(self, site_name: str | None = None) -> KernelState:
        """What is in the kernel of one site, or of all."""
        names = (site_name,) if site_name else self._kernel.sites()
        states = [self._kernel.look(name).state for name in names]
        return KernelState(
            links=tuple(link for state in states for link in state.links),
            ports=tuple(port for state in states for port in state.ports),
            addresses=tuple(address for state in states for address in state.addresses),
            tables=tuple(table for state in states for table in state.tables),
            things=tuple(thing for state in states for thing in state.things),
            raised=frozenset(name for state in states for name in state.raised),
        )

    def tunnels(self, site_name: str | None = None) -> dict[str, TunnelStatus]:
        """Counters of each tunnel by `tenant/tunnel`."""
        found = {}
        for link in self._kernel.tunnels():
            _dvn, site, _kind, name = link.alias.split(":", 3)
            if site_name in (None, site):
                tenant, _, tunnel = name.partition("/")
                found[name] = TunnelStatus(
                    name=link.name,
                    tenant=tenant,
                    tunnel=tunnel,
                    local=link.local,
                    remote=link.remote,
                    key=link.key,
                    up=link.up,
                    rx_packets=link.rx_packets,
                    rx_bytes=link.rx_bytes,
                    tx_packets=link.tx_packets,
                    tx_bytes=link.tx_bytes,
                )
        return found

    def passed(self) -> dict[str, Passed]:
        """What each link of the host has counted."""
        return {
            name: Passed(rx, rx_bytes, tx, tx_bytes)
            for name, (rx, tx, rx_bytes, tx_bytes) in self._kernel.passed().items()
        }

    def dropped(self, tables: Iterable[NftTable]) -> tuple[Dropped, ...]:
        """What rules of ours have dropped, the busiest first."""
        found = [
            Dropped(one.table, one.chain, one.comment.rsplit(" [", 1)[0], one.packets, one.bytes)
            for one in self._kernel.dropped(tables)
            if one.packets
        ]
        return tuple(sorted(found, key=lambda one: (-one.packets, one.table, one.chain)))

    def probe(self, address: str, network: str, count: int = 1, timeout: float = 1.0) -> Probe:
        """Echo requests from a network's bridge; see dvn.probe."""
        return probing.probe(address, network, count, timeout)

    def compiled(self, site: Site) -> KernelState:
        """What `site` would be in this kernel, whatever is there now. Raises as plan does."""
        return self._look(site, keep_dynamic=True).desired

    def _look(self, site: Site, keep_dynamic: bool) -> _Look:
        view = self._kernel.look(site.site)
        return self._compared(site, view, self._host(site, view), keep_dynamic)

    def _host(self, site: Site, view: View) -> Host:
        """All that compile may know of the host."""
        host = self._with_sysctls(view, forwarding.switches(site, view.host))
        known = paths.load(site.site)
        return replace(
            host,
            secrets=read_secrets(site),
            paths={name: row.mtu for name, row in known.items() if row.mtu},
            chosen={name: row.transport for name, row in known.items() if row.transport},
        )

    def _compared(self, site: Site, view: View, host: Host, keep_dynamic: bool) -> _Look:
        compiled = self._compiled(site, host)
        back = forwarding.switched_back(
            self._recalled(site.site, view.state), compiled.state, _keys(view.others), host.sysctls
        )
        wanted = replace(compiled.state, sysctls=(*back, *compiled.state.sysctls))
        keys = [sysctl.key for sysctl in wanted.sysctls]
        observed = replace(view.state, sysctls=self._kernel.sysctls(keys))
        desired = dynamic.keep_dynamic(observed, wanted) if keep_dynamic else wanted
        return _Look(observed, desired, compiled.notes, compiled.context)

    def _compiled(self, site: Site, host: Host) -> Compiled:
        """compile_site of it; the last one's result if nothing that it looked at is another."""
        facts = host.facts(site.site)
        last = self._last
        if last is None or facts != last[1] or site != last[0]:
            compiled = compile_site(site, host, lenient=self._lenient)
            self._last = last = (site, facts, compiled)
        return last[2]

    def _last_look(self, site_name: str) -> _Look:
        """The look of a site that is to go: what we switched on for it goes off."""
        view = self._kernel.look(site_name)
        host = self._with_sysctls(view, ())
        was = self._recalled(site_name, view.state)
        back = forwarding.switched_back(was, KernelState(), _keys(view.others), host.sysctls)
        observed = self._kernel.sysctls([sysctl.key for sysctl in back])
        return _Look(replace(view.state, sysctls=observed), KernelState(sysctls=back))

    def _with_sysctls(self, view: View, more: Iterable[forwarding.Switch]) -> Host:
        """The host with what compile must know of the switches that are not ours."""
        ours = _keys((*view.state.tables, *view.others, *self._flushed(view)))
        values = self._kernel.sysctls(ours | {switch.key for switch in more})
        return replace(view.host, sysctls={s.key: s.value for s in values}, switched=ours)

    def _flushed(self, view: View) -> tuple[NftTable, ...]:
        """What is remembered of sites whose table somebody took away."""
        if self._memory is None:
            return ()
        there = {(t.family, t.name) for t in (*view.state.tables, *view.others)}
        return tuple(t for t in self._memory.tables() if (t.family, t.name) not in there)

    def _recalled(self, site_name: str, state: KernelState) -> KernelState:
        """`state`, and what its sets said before somebody flushed them."""
        if self._memory is None or any(table.family == "inet" for table in state.tables):
            return state
        return replace(state, tables=(*state.tables, self._memory.table(site_name)))

    def _remember(self, site_name: str, tables: Iterable[NftTable]) -> None:
        if self._memory is not None:
            self._memory.keep(site_name, tables)

    def _execute(self, site_name: str, plan: Plan, look: _Look) -> tuple[Writes, KernelState]:
        """Do the plan. Returns the writes made and what undo would go back to."""
        before = self._kept(look.observed, plan)
        before = replace(before, tables=self._listed(before.tables, plan))
        try:
            return self._kernel.carry_out(plan.steps), before
        except StepError as error:
            undone, how = self._undo(site_name, before, look.desired)
            raise ApplyError(f"{_short(error.step)}: {error}; {how}", undone=undone) from error

    def _kept(self, observed: KernelState, plan: Plan) -> KernelState:
        """`observed` as something to go back to from what `plan` does."""
        # Links that are not ours may go down meanwhile; undo must not set them up again.
        before = replace(observed, raised=frozenset())
        gone = [step.link.name for step in plan.steps if isinstance(step, DelLink)]
        if gone:  # the kernel forgets a link's settings with the link
            keys = [key.format(link=name) for name in gone for key in _LINK_SETTINGS]
            before = replace(before, sysctls=(*before.sysctls, *self._kernel.sysctls(keys)))
        return before

    def _now(self, site_name: str, sysctls: Iterable[Sysctl]) -> KernelState:
        state = self._kernel.look(site_name).state
        return replace(state, sysctls=self._kernel.sysctls([s.key for s in sysctls]))

    def _listed(self, tables: tuple[NftTable, ...], plan: Plan) -> tuple[NftTable, ...]:
        """The tables, with nft's own text of those whose rules the plan takes away: elements can
        be put back without, and there may be thousands."""
        rewritten = {
            command.table
            for step in plan.steps
            if isinstance(step, NftChange)
            for command in step.commands
            if isinstance(command, FlushChain | DelTable)
        }
        return tuple(
            self._kernel.listings([table])[0] if (table.family, table.name) in rewritten else table
            for table in tables
        )

    def _verify(self, site_name: str, look: _Look, before: KernelState) -> None:
        """Look again, and see whether the kernel is as it was told."""
        state = self._kernel.look(site_name).state
        keys = [sysctl.key for sysctl in look.desired.sysctls]
        left = diff(replace(state, sysctls=self._kernel.sysctls(keys)), look.desired)
        if left:
            undone, how = self._undo(site_name, before, look.desired)
            raise _not_as_told(left, how, undone=undone)

    def _undo(self, site_name: str, before: KernelState, desired: KernelState) -> tuple[bool, str]:
        """Back to `before`, by the difference between what is there now and what was."""
        try:
            now = self._now(site_name, (*before.sysctls, *desired.sysctls))
            self._kernel.carry_out(diff(now, before).steps)
        except KernelError as error:
            return False, f"and it could not be undone: {error}"
        return True, "what was done is undone"


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without searches for garbage: thousands of new objects that stay set off many, which find
    nothing and take a third of the time. Afterwards they count as old ones: else the next search,
    at once, would go through all of them."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.unfreeze()
        gc.enable()


@contextmanager
def _attentive() -> Iterator[None]:
    """A thread that the kernel has answered goes on at once, and not after 5 ms of another's work:
    it has the next for the kernel to do."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _keys(tables: Iterable[NftTable]) -> frozenset[str]:
    return frozenset(switch.key for switch in forwarding.remembered(tables))


def _not_as_told(left: Plan, how: str, *, undone: bool) -> ApplyError:
    what = "; ".join(left.lines()[:3])
    return ApplyError(f"the kernel is not as it was told: {what}; {how}", undone=undone)


def _short(step: Step) -> str:
    lines = str(step).splitlines()
    return lines[0] + (f" (and {len(lines) - 1} more)" if len(lines) > 1 else "")


def _applied(plan: Plan, writes: Writes, notes: tuple[str, ...]) -> Applied:
    return Applied(
        steps=plan.lines(),
        netlink_writes=writes.netlink,
        nft_writes=writes.nft,
        sysctl_writes=writes.sysctl,
        verified=True,
        notes=notes,
    )
