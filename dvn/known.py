"""What an engine knows to be in the kernel, so that a change costs what it changes. Pure.

A network's part of a compile never looks at other networks (passes.py). So a change to some of
4,000 is the difference between two small states: what those some made before, and what they make
now. Beside that only one thing must be known: what else holds the things they share, such as an
outside address or an element of a set. tests/dvn/test_known.py holds the result against compiling
and comparing everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from dvn.compile import context_of, frames_of, marked, parts_of
from dvn.hostcheck import host_problems
from dvn.kernel.diff import diff
from dvn.kernel.nftcommands import AddElements, DelElements
from dvn.kernel.state import (
    Address,
    Element,
    KernelState,
    Link,
    NftTable,
    Port,
    Sysctl,
    merge,
)
from dvn.kernel.steps import NftChange, Plan, SetSysctl
from dvn.passes import Context, NetworkOf, networks_of
from dvn.problems import SpecError
from dvn.spec import Site, Tenant, Tunnel
from dvn.vlans import forwarding

_GROWN = 8  # how many times the first row later ones may be


class NotByParts(Exception):  # noqa: N818 - not a mistake: the whole must be looked at
    """The change touches what does not belong to single networks."""


@dataclass(frozen=True)
class Difference:
    """The networks and tunnels that are not the same in two sites."""

    before: tuple[NetworkOf | Tunnel, ...]
    after: tuple[NetworkOf | Tunnel, ...]


def difference(old: Site, new: Site) -> Difference:
    """Raises NotByParts if more differs than networks and tunnels."""
    if _frame(old) != _frame(new):
        raise NotByParts("what a site has once")
    before: list[NetworkOf | Tunnel] = []
    after: list[NetworkOf | Tunnel] = []
    for name in {**old.tenants, **new.tenants}:
        one, two = old.tenants.get(name), new.tenants.get(name)
        if one is two:
            continue
        have, want = _owned(old, name, one), _owned(new, name, two)
        before += [each for key, each in have.items() if want.get(key) != each]
        after += [each for key, each in want.items() if have.get(key) != each]
    return Difference(tuple(before), tuple(after))


def _frame(site: Site) -> list[object]:
    return [getattr(site, name) for name in type(site).model_fields if name != "tenants"]


def _owned(
    site: Site, name: str, tenant: Tenant | None
) -> Mapping[tuple[str, str], NetworkOf | Tunnel]:
    if tenant is None:
        return {}
    alone = site.model_copy(update={"tenants": {name: tenant}})
    found: dict[tuple[str, str], NetworkOf | Tunnel] = {}
    found |= {("network", each.name): each for each in networks_of(alone)}
    found |= {("tunnel", each.name): each for each in alone.tunnels()}
    return found


@dataclass(frozen=True)
class Change:
    """A change by parts: what to do, and what to know when it is done."""

    plan: Plan
    before: KernelState
    after: KernelState
    context: Context
    gone: Counter[Hashable]
    come: Counter[Hashable]

    def names(self) -> frozenset[str]:
        """The links that it is about, ours and others that are our ports."""
        states = (self.before, self.after)
        links = {link.name for state in states for link in state.links}
        return frozenset(links | {port.name for state in states for port in state.ports})


class Known:
    """A site, and the state that it was compiled to and that the kernel is in."""

    def __init__(self, context: Context, counted: Counter[Hashable] | None = None) -> None:
        self.context = context
        self._counted = counted

    @property
    def site(self) -> Site:
        return self.context.site

    @property
    def _held(self) -> Counter[Hashable]:
        """How many parts hold each thing; counted when the first change comes."""
        if self._counted is None:
            self._counted = _count(parts_of(self.context))
        return self._counted

    def change(self, site: Site) -> Change:
        """What changes with `site`. Raises NotByParts, SpecError (this host cannot hold it)."""
        found = difference(self.site, site)
        if not found.before and not found.after:
            raise NotByParts("nothing differs")
        context = context_of(site, self.context.host, self.context)
        frames = list(frames_of(context))
        if not frames or not any(frames_of(self.context)):
            raise NotByParts("the first network, or the last")
        self._check(site, found.after)
        old = list(parts_of(self.context, found.before))
        new = list(parts_of(context, found.after))
        gone, come = _count(old), _count(new)
        # What others hold was there and stays there.
        held = self._held
        frames.append(_state_of((a for a in {**gone, **come} if held[a] > gone[a]), frames))
        before, after = (marked(merge([*frames, *parts]), site.site) for parts in (old, new))
        before = replace(before, raised=before.raised | self._up(after.raised))
        plan = diff(before, after)
        _by_parts(plan, before, after)
        return Change(plan, before, after, context, gone, come)

    def done(self, change: Change) -> None:
        """The kernel is as `change` says."""
        self.context = change.context
        held = self._held
        for atom, count in change.come.items():
            held[atom] += count
        for atom, count in change.gone.items():
            held[atom] -= count
            if not held[atom]:
                del held[atom]

    def state(self) -> KernelState:
        """All that the kernel is known to hold of the site, as compile makes it."""
        frames = list(frames_of(self.context))
        return marked(merge([*frames, _state_of(self._held, frames)]), self.site.site)

    def _check(self, site: Site, changed: Iterable[NetworkOf | Tunnel]) -> None:
        """Whether the host can hold what changed."""
        some: dict[str, dict[str, dict[str, object]]] = {}
        for each in changed:
            fields = some.setdefault(each.tenant, {"networks": {}, "tunnels": {}})
            if isinstance(each, Tunnel):
                if each.psk_file or each.transport == "auto":
                    raise NotByParts("a secret in a file, or a path that is measured")
                if each.beyond:  # it follows from its network's ports
                    networks = site.tenants[each.tenant].networks
                    fields["networks"][each.network] = networks[each.network]
                    continue
                fields["tunnels"][each.name] = site.tenants[each.tenant].tunnels[each.name]
            else:
                fields["networks"][each.name] = each.network
        tenants = {n: site.tenants[n].model_copy(update=fields) for n, fields in some.items()}
        small = site.model_copy(update={"tenants": tenants})
        problems, notes = host_problems(small, self.context.host)
        if problems:
            raise SpecError(problems)
        if notes:
            raise NotByParts("an interface that is not there")
        needed = {switch.key for switch in forwarding.switches(small, self.context.host)}
        if not needed <= self.context.host.sysctls.keys():
            raise NotByParts("a switch that nobody has looked at")

    def _up(self, names: Iterable[str]) -> frozenset[str]:
        links = self.context.host.links
        return frozenset(name for name in names if name in links and links[name].up)


class Growth:
    """A site that is made from nothing, some networks at a time: the plans for the next are worked
    out while the kernel is busy with the last."""

    def __init__(self, context: Context, observed: KernelState) -> None:
        self._context = context
        host = context.host.sysctls.items()
        self._there = replace(observed, sysctls=tuple(Sysctl(key, value) for key, value in host))
        self._frames = list(frames_of(context))
        self._parts: list[KernelState] = []
        self.held: Counter[Hashable] = Counter()

    def plans(self, row: int) -> Iterator[Plan]:
        """The plans of `row` networks with their tunnels, then twice as many and so on, to be done
        one after the other: the kernel begins early, and each plan's end, when it waits for us,
        comes seldom."""
        tunnels: dict[tuple[str, str], list[Tunnel]] = {}
        for tunnel in self._context.site.tunnels():
            tunnels.setdefault((tunnel.tenant, tunnel.network), []).append(tunnel)
        networks = networks_of(self._context.site)
        start, most = 0, row * _GROWN
        while start < len(networks):
            some: list[NetworkOf | Tunnel] = []
            for each in networks[start : start + row]:
                some += [each, *tunnels.get((each.tenant, each.name), ())]
            yield self._plan(list(parts_of(self._context, some)))
            start, row = start + row, min(2 * row, most)

    def _plan(self, parts: list[KernelState]) -> Plan:
        name = self._context.site.site
        come = _count(parts)
        shared = _state_of((atom for atom in come if atom in self.held), self._frames)
        before = self._there
        if self._parts:
            before = marked(merge([self._there, *self._frames, shared]), name)
        after = marked(merge([*self._frames, shared, *parts]), name)
        self.held.update(come)
        self._parts += parts
        return diff(before, after)

    def state(self) -> KernelState:
        """All of it, when it is done."""
        return marked(merge([*self._frames, *self._parts]), self._context.site.site)


def _by_parts(plan: Plan, before: KernelState, after: KernelState) -> None:
    """Raises NotByParts where interfaces of others are switched, or rules rewritten."""
    own = {*before.by_name, *after.by_name}
    for step in plan.steps:
        if isinstance(step, SetSysctl) and not own & set(step.key.split("/")):
            raise NotByParts(step.key)
        if isinstance(step, NftChange):
            for command in step.commands:
                if (
                    not isinstance(command, AddElements | DelElements)
                    or command.set.name in forwarding.SETS
                ):
                    raise NotByParts(command.shown())


def _count(parts: Iterable[KernelState]) -> Counter[Hashable]:
    """How many parts hold each thing."""
    found: Counter[Hashable] = Counter()
    for part in parts:
        found.update(_atoms(part))
    return found


def _atoms(state: KernelState) -> Iterator[Hashable]:
    """What a state consists of: links and so on themselves, raised links by name, elements."""
    yield from state.links
    yield from state.ports
    yield from state.addresses
    yield from state.sysctls
    yield from state.raised
    yield from cast(tuple[Hashable, ...], state.things)
    for table in state.tables:
        for set_ in table.sets:
            for element in set_.elements:
                yield (table.family, table.name, set_.name, element)


def _state_of(atoms: Iterable[Hashable], frames: Iterable[KernelState]) -> KernelState:
    """The state that consists of them; the frames say of what type sets are."""
    kinds: dict[type, list[Any]] = {}
    for atom in atoms:
        kinds.setdefault(type(atom), []).append(atom)
    known = {
        (table.family, table.name, set_.name): set_.frame()
        for frame in frames
        for table in frame.tables
        for set_ in table.sets
    }
    elements: dict[tuple[Any, str, str], set[Element]] = {}
    for family, table, name, element in kinds.pop(tuple, []):
        elements.setdefault((family, table, name), set()).add(element)
    return KernelState(
        links=tuple(kinds.pop(Link, ())),
        ports=tuple(kinds.pop(Port, ())),
        addresses=tuple(kinds.pop(Address, ())),
        sysctls=tuple(kinds.pop(Sysctl, ())),
        raised=frozenset(kinds.pop(str, ())),
        things=tuple(thing for things in kinds.values() for thing in things),
        tables=tuple(
            NftTable(key[0], key[1], (replace(known[key], elements=frozenset(each)),))
            for key, each in elements.items()
        ),
    )
