"""A kernel in memory: does every step, remembers, and fails where it is told to.

It refuses what the real one refuses (a name or slot taken, a master that is not there, a port on
an uplink that is down, a set still missing), so that a plan in the wrong order fails here too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from dvn.allocate import number_of
from dvn.kernel.driver import KernelError, LinkCounters, RuleCounter, StepError
from dvn.kernel.nftcommands import (
    AddChain,
    AddElements,
    AddRule,
    AddSet,
    AddTable,
    DelElements,
    DelTable,
    FlushChain,
    LoadTable,
    NftCommand,
    TableId,
)
from dvn.kernel.state import (
    Address,
    Bridge,
    ForeignRouting,
    Host,
    HostLink,
    KernelState,
    Link,
    NftSet,
    NftTable,
    Port,
    Sysctl,
    View,
    Vlan,
    Vrf,
    table_name,
)
from dvn.kernel.steps import (
    AddAddress,
    AddLink,
    DelAddress,
    DelLink,
    DelThing,
    Enslave,
    NftChange,
    PutThing,
    RaiseLink,
    SetLink,
    SetSysctl,
    Step,
    Writes,
)
from dvn.kernel.things import Thing
from dvn.nat.driver import own_rules
from dvn.nat.things import Rule


@dataclass
class FakeKernel:
    """`fail(step)` says whether this step is to fail; None: none does."""

    foreign: dict[str, HostLink] = field(default_factory=dict)
    foreign_addresses: set[str] = field(default_factory=set)
    links: dict[str, Link] = field(default_factory=dict)
    masters: dict[str, str] = field(default_factory=dict)  # of foreign links
    addresses: set[Address] = field(default_factory=set)
    values: dict[str, str] = field(default_factory=dict)
    tables: dict[TableId, NftTable] = field(default_factory=dict)
    things: dict[tuple[object, ...], Thing] = field(default_factory=dict)
    foreign_routing: ForeignRouting = field(default_factory=ForeignRouting)
    fail: Callable[[Step], bool] | None = None
    done: list[Step] = field(default_factory=list)
    _looked: tuple[object, ...] = ()
    _seen: tuple[object, ...] = ()

    def exclusive(self) -> AbstractContextManager[None]:
        return nullcontext()

    def look(self, site: str) -> View:
        own = {n: link for n, link in self.links.items() if _site(link) == site}
        others = tuple(table for key, table in self.tables.items() if key[1] != table_name(site))
        taken = {p for table in others for s in table.sets if s.data for e in s.elements for p in e}
        state = KernelState(
            links=tuple(own.values()),
            ports=tuple(Port(name, m) for name, m in self.masters.items() if m in own),
            addresses=tuple(
                address
                for address in sorted(self.addresses, key=str)
                if address.link in own
                or (address.link in self.foreign and address.address.split("/")[0] not in taken)
            ),
            tables=tuple(table for key, table in self.tables.items() if key[1] == table_name(site)),
            raised=frozenset(name for name, link in self.foreign.items() if link.up),
            things=tuple(self._things(site, own)),
        )
        self._looked = self._all()
        host_links = dict(self.foreign)
        for name, link in self.links.items():
            host_links[name] = HostLink(
                name, link.params.kind, link.mtu, link.up, True, _site(link), link.master,
                link.params.slot(),
            )  # fmt: skip
        host = Host(
            host_links,
            frozenset(self.foreign_addresses),
            numbers=self._numbers(),
            foreign_routing=self.foreign_routing,
        )
        return View(host, state, others)

    def _things(self, site: str, own: Mapping[str, Link]) -> Iterator[Thing]:
        tables = {
            link.params.table
            for name, link in self.links.items()
            if isinstance(link.params, Vrf) and name not in own
        }
        yield from own_rules((t for t in self.things.values() if isinstance(t, Rule)), tables)
        for thing in self.things.values():
            here = thing.link is None or thing.link in own or thing.link in self.foreign
            if here and not isinstance(thing, Rule) and getattr(thing, "site", site) == site:
                yield thing

    def _numbers(self) -> dict[tuple[str, str, str], int]:
        found = {}
        for link in self.links.values():
            number = number_of(link.params.table) if isinstance(link.params, Vrf) else None
            if number is not None:
                _dvn, site, _kind, names = link.alias.split(":", 3)
                tenant, _, network = names.partition("/")
                found[site, tenant, network] = number
        return found

    def sites(self) -> tuple[str, ...]:
        return tuple(sorted({_site(link) for link in self.links.values()}))

    def sysctls(self, keys: Iterable[str]) -> tuple[Sysctl, ...]:
        return tuple(Sysctl(key, self.values[key]) for key in keys if key in self.values)

    def listings(self, tables: Iterable[NftTable]) -> tuple[NftTable, ...]:
        return tuple(replace(table, listing="as it was") for table in tables)

    def tunnels(self) -> tuple[LinkCounters, ...]:
        return ()

    def passed(self) -> Mapping[str, tuple[int, int, int, int]]:
        return {}

    def dropped(self, tables: Iterable[NftTable]) -> tuple[RuleCounter, ...]:
        return ()

    def rely(self) -> None:
        self._seen = self._looked

    def undisturbed(self) -> bool:
        return self._seen == self._all()

    def glance(self, names: Collection[str]) -> KernelState:
        return KernelState(
            links=tuple(link for name, link in self.links.items() if name in names),
            ports=tuple(Port(n, m) for n, m in self.masters.items() if n in names),
            addresses=tuple(a for a in self.addresses if a.link in self.links and a.link in names),
        )

    def _all(self) -> tuple[object, ...]:
        """Everything that others can change, as it is now."""
        return (
            dict(self.foreign), set(self.foreign_addresses), dict(self.links), dict(self.masters),
            set(self.addresses), dict(self.tables), dict(self.things),
        )  # fmt: skip

    def carry_out(self, steps: Sequence[Step]) -> Writes:
        undisturbed = self.undisturbed()
        writes = Writes()
        for step in steps:
            try:
                writes += self.perform(step)
            except KernelError as error:
                raise StepError(str(error), step) from error
        if undisturbed:
            self._seen = self._all()
        return writes

    def perform(self, step: Step) -> Writes:
        if self.fail is not None and self.fail(step):
            raise KernelError("told to fail")
        writes = self._perform(step)
        self.done.append(step)
        return writes

    def _perform(self, step: Step) -> Writes:
        match step:
            case NftChange(commands):
                tables = dict(self.tables)
                for command in commands:
                    _nft(tables, command)
                self.tables = tables
                return Writes(nft=len(commands))
            case SetSysctl(key, value):
                device = key.split("/")[3] if "/conf/" in key else "all"
                if device != "all" and device not in self.links and device not in self.foreign:
                    raise KernelError(f"{key}: no such file")
                self.values[key] = value
                return Writes(sysctl=1)
            case PutThing(thing, before):
                self._put(thing, before)
            case DelThing(Rule(shared=True)):
                pass
            case DelThing(thing):
                self.things.pop((thing.kind, *thing.key), None)
            case AddLink(link):
                self._add(link)
            case SetLink(link, changes):
                self._set(link, changes)
            case RaiseLink(name):
                self._raise(name)
            case DelLink(link):
                self._delete(link.name)
            case Enslave(name, master):
                if name not in self.foreign or (master and master not in self.links):
                    raise KernelError(f"{name} or {master} is not there")
                self.masters.pop(name, None)
                if master:
                    self.masters[name] = master
            case AddAddress(link_name, address):
                if link_name not in self.links and link_name not in self.foreign:
                    raise KernelError(f"{link_name} is not there")
                self.addresses.add(Address(link_name, address))
            case DelAddress(link_name, address):
                self.addresses.discard(Address(link_name, address))
        return Writes(netlink=1)

    def _put(self, thing: Thing, before: Thing | None) -> None:
        key = (thing.kind, *thing.key)
        if thing.link and thing.link not in self.links and thing.link not in self.foreign:
            raise KernelError(f"{thing.link} is not there")
        if self.things.get(key) not in (before, thing):
            raise KernelError(f"{thing.kind} {thing}: not as it was thought to be")
        self.things[key] = thing

    def _add(self, link: Link) -> None:
        if link.name in self.links or link.name in self.foreign:
            raise KernelError(f"{link.name} exists")
        self._check(link)
        self.links[link.name] = replace(link, up=False)
        for key in ("forwarding", "rp_filter", "arp_ignore"):
            self.values[f"net/ipv4/conf/{link.name}/{key}"] = "0"

    def _check(self, link: Link) -> None:
        master = Vrf if isinstance(link.params, Bridge) else Bridge
        if link.master and not isinstance(
            getattr(self.links.get(link.master), "params", 0), master
        ):
            raise KernelError(f"{link.name}: its master {link.master} is not there")
        if isinstance(link.params, Vlan) and link.params.parent not in self.foreign:
            raise KernelError(f"{link.name}: {link.params.parent} is not there")
        slot = link.params.slot()
        for other in self.links.values():
            if slot and other.name != link.name and other.params.slot() == slot:
                raise KernelError(f"{link.name}: {other.name} has these ends or this id")

    def _set(self, link: Link, changes: tuple[str, ...]) -> None:
        have = self.links.get(link.name)
        if have is None:
            raise KernelError(f"{link.name} is not there")
        new = replace(have, **{change: getattr(link, change) for change in changes})
        self._check(new)
        self.links[link.name] = new
        if "master" in changes and isinstance(link.params, Bridge):  # goes down and up
            self.addresses = {
                a for a in self.addresses if a.link != link.name or ":" not in a.address
            }

    def _raise(self, name: str) -> None:
        if name in self.foreign:
            self.foreign[name] = replace(self.foreign[name], up=True)
            return
        link = self.links.get(name)
        if link is None:
            raise KernelError(f"{name} is not there")
        if isinstance(link.params, Vlan) and not self.foreign[link.params.parent].up:
            raise KernelError(f"{name}: network is down")
        self.links[name] = replace(link, up=True)

    def _delete(self, name: str) -> None:
        if name not in self.links:
            return
        del self.links[name]
        self.masters = {n: m for n, m in self.masters.items() if m != name}
        for other, link in self.links.items():
            if link.master == name:
                self.links[other] = replace(link, master=None)
        self.addresses = {address for address in self.addresses if address.link != name}
        self.things = {key: each for key, each in self.things.items() if each.link != name}
        self.values = {k: v for k, v in self.values.items() if f"/{name}/" not in k}


def _site(link: Link) -> str:
    return link.alias.split(":")[1]


def _nft(tables: dict[TableId, NftTable], command: NftCommand) -> None:
    if isinstance(command, LoadTable):
        tables[(command.table.family, command.table.name)] = command.table
        return
    key = command.table
    if isinstance(command, AddTable):
        tables.setdefault(key, NftTable(key[0], key[1]))  # type: ignore[arg-type]
        return
    if key not in tables:
        raise KernelError(f"no table {key}")
    table = tables[key]
    match command:
        case DelTable():
            del tables[key]
        case AddSet(_table, set_):
            tables[key] = replace(table, sets=(*table.sets, set_))
        case AddElements(_table, set_, elements):
            have = _set_of(table, set_)
            keys = {have.key(element) for element in have.elements}
            for element in elements:
                if element not in have.elements and have.key(element) in keys:
                    raise KernelError(f"element {element} is in the way")
            _replace_set(tables, key, replace(have, elements=have.elements | elements))
        case DelElements(_table, set_, elements):
            have = _set_of(table, set_)
            if not elements <= have.elements:
                raise KernelError("no such element")
            _replace_set(tables, key, replace(have, elements=have.elements - elements))
        case AddChain(_table, chain):
            tables[key] = replace(table, chains=(*table.chains, chain))
        case FlushChain(_table, name, _why):
            chains = tuple(replace(c, rules=()) if c.name == name else c for c in table.chains)
            tables[key] = replace(table, chains=chains)
        case AddRule(_table, name, rule):
            if name not in {chain.name for chain in table.chains}:
                raise KernelError(f"no chain {name}")
            chains = tuple(
                replace(c, rules=(*c.rules, rule)) if c.name == name else c for c in table.chains
            )
            tables[key] = replace(table, chains=chains)


def _set_of(table: NftTable, set_: NftSet) -> NftSet:
    for have in table.sets:
        if have.name == set_.name:
            return have
    raise KernelError(f"no set {set_.name}")


def _replace_set(tables: dict[TableId, NftTable], key: TableId, new: NftSet) -> None:
    table = tables[key]
    sets = tuple(new if have.name == new.name else have for have in table.sets)
    tables[key] = replace(table, sets=sets)
