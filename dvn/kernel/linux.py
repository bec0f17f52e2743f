"""The kernel this process runs on: route netlink, libnftables, /proc/sys."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeAlias

from dvn.allocate import number_of
from dvn.kernel import conntrack, fou, rtnl
from dvn.kernel import netlink as nl
from dvn.kernel.batch import Batch, words
from dvn.kernel.driver import KernelError, LinkCounters, RuleCounter, StepError
from dvn.kernel.evidence import Evidence
from dvn.kernel.ipsec import IpsecDriver
from dvn.kernel.nft import Nft
from dvn.kernel.nftcommands import AddTable, DelTable, FlushChain, LoadTable
from dvn.kernel.rtnl import RawAddress, RawLink
from dvn.kernel.state import (
    ADDRESS_PROTOCOL,
    ALIAS_PREFIX,
    LINK_GROUP,
    Address,
    Gretap,
    Host,
    HostLink,
    HostLinks,
    KernelState,
    Link,
    NftTable,
    Port,
    Sysctl,
    View,
    Vrf,
    table_name,
)
from dvn.kernel.steps import (
    AddAddress,
    AddLink,
    CutConnections,
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
from dvn.kernel.things import GroupDriver, IndexOf, PackedDriver, Sight, Thing, ThingDriver
from dvn.kernel.wireguard import WireguardDriver
from dvn.nat import driver as routing
from dvn.nat.things import Rule
from dvn.rates.driver import RatesDriver
from dvn.services.driver import ServicesDriver

_LOCK = Path("/run/dvn/kernel.lock")
_NO_LINKS = frozenset({"", "all", "default"})  # in a sysctl's place for a link
_LOCK_WAIT_S, _LOCK_POLL_S = 20.0, 0.02
_MANY = 500  # steps of a plan that is worth a thread
_CAP_NET_ADMIN, _CAPABILITY_VERSION_3 = 12, 0x20080522


PACKED: tuple[PackedDriver, ...] = (RatesDriver(), routing.RoutingDriver())
GROUPED: tuple[GroupDriver, ...] = (ServicesDriver(),)
DRIVERS: tuple[ThingDriver, ...] = (WireguardDriver(), fou.FouDriver(), IpsecDriver())


_Tables: TypeAlias = tuple[tuple[NftTable, ...], list[NftTable], frozenset[tuple[str, str]]]


class LinuxKernel:
    """Opens its sockets on first use, in the namespace of the thread that uses it first."""

    def __init__(self) -> None:
        self._open_socket: nl.Socket | None = None
        self._open_nft: Nft | None = None
        self._open_conntrack: nl.Socket | None = None
        self._open_evidence: Evidence | None = None
        self._read: tuple[str, int, _Tables] | None = None
        self._made: dict[int, tuple[RawLink, tuple[str | None, str | None], Link]] = {}
        self._looked: dict[str, RawLink] = {}
        self._names: dict[int, str] = {}

    @property
    def _socket(self) -> nl.Socket:
        if self._open_socket is None:
            self._open_socket = nl.Socket()
        return self._open_socket

    @property
    def _nft(self) -> Nft:
        if self._open_nft is None:
            if not may_change_networks():  # libnftables would write to standard error by itself
                raise KernelError("reading nftables needs root (CAP_NET_ADMIN): use sudo")
            self._open_nft = Nft()
        return self._open_nft

    @property
    def _conntrack(self) -> nl.Socket:
        # It lives on: closing one of this protocol waits until nf_tables has put away what the
        # last transaction removed (nft_rcv_nl_event in the kernel), some 15 ms.
        if self._open_conntrack is None:
            self._open_conntrack = nl.Socket(nl.NETLINK_NETFILTER)
        return self._open_conntrack

    @property
    def _evidence(self) -> Evidence:
        if self._open_evidence is None:
            self._open_evidence = Evidence()
        return self._open_evidence

    def close(self) -> None:
        if self._open_socket:
            self._open_socket.close()
        if self._open_nft:
            self._open_nft.close()
        if self._open_conntrack:
            self._open_conntrack.close()
        if self._open_evidence:
            self._open_evidence.close()
        self._open_evidence = None
        self._open_conntrack = None
        self._open_socket = self._open_nft = None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """A lock between processes, such as the command line and the daemon's agent; the kernel
        lets it go with the process that holds it."""
        try:
            _LOCK.parent.mkdir(parents=True, exist_ok=True)
            file = _LOCK.open("a")
        except OSError as error:
            raise _refused(error) from error
        with file:
            end = time.monotonic() + _LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise KernelError(
                            f"another process has held {_LOCK} for {_LOCK_WAIT_S:.0f} s; "
                            "is a dvn command or agent stuck?"
                        ) from None
                    time.sleep(_LOCK_POLL_S)
            yield

    # -- reading

    def look(self, site: str) -> View:
        self._evidence.begin()
        generation = self._generation()
        links, addresses = self._dumps()
        names = {link.index: link.name for link in links}
        self._looked, self._names = {link.name: link for link in links}, names
        sites = {link.index: _site_of(link) for link in links}
        own = {i for i, name in sites.items() if name == site}
        own |= {link.index for link in links if _unstamped(link)}
        bridges = {link.index for link in links if link.kind == "bridge" and link.index in own}
        tables, others, foreign_tables = self._tables_at(site, generation)
        # An address on somebody else's link bears our mark but not the site's: it is the site's
        # whose map translates to it, or nobody's, and then whoever looks may clear it away.
        taken = {
            part
            for table in others
            for s in table.sets
            if s.data
            for element in s.elements
            for part in element
        }
        routers = {link.name: link for link in links if link.kind == "vrf"}
        tables_of = {name: _table_of(link) for name, link in routers.items()}
        rules = self._rules()
        state = KernelState(
            links=self._own_links(links, names, own),
            ports=tuple(
                Port(link.name, names[link.master])
                for link in links
                if link.master in bridges and not _is_ours(link)
            ),
            addresses=tuple(
                Address(names[address.index], address.address)
                for address in addresses
                if _own_address(address, own, taken)
            ),
            tables=tables,
            raised=frozenset(link.name for link in links if link.up and link.index not in own),
            things=self._things(
                Sight(
                    site,
                    names=names,
                    indexes={link.name: link.index for link in links},
                    own=frozenset(link.name for link in links if link.index in own),
                    queues={link.name: link.queue for link in links},
                    links=links,
                    rules=rules,
                    others_tables=frozenset(
                        tables_of[name]
                        for name, link in routers.items()
                        if _is_ours(link) and link.index not in own
                    ),
                )
            ),
        )
        host = Host(
            links=_HostLinks(self._looked, names),
            addresses=frozenset(
                address.address.split("/")[0]
                for address in addresses
                if address.index not in own and address.protocol != ADDRESS_PROTOCOL
            ),
            foreign_tables=foreign_tables,
            bridge_meta=self._nft.knows_bridges(),
            numbers=_numbers(routers.values()),
            foreign_routing=routing.foreign_routing(
                rules,
                [(name, tables_of[name]) for name, link in routers.items() if not _is_ours(link)],
            ),
        )
        self._evidence.saw(links, addresses, generation)
        return View(host, state, tuple(others))

    def _own_links(
        self, links: Iterable[RawLink], names: dict[int, str], own: Collection[int]
    ) -> tuple[Link, ...]:
        """The links with these indexes; those that are as they were are the same objects."""
        before, self._made = self._made, {}
        found: list[Link] = []
        for raw in links:
            if raw.index not in own:
                continue
            ends = (names.get(raw.master), names.get(raw.parent))
            known = before.get(raw.index)
            if known is None or known[0] != raw or known[1] != ends:
                known = (raw, ends, _link(raw, names))
            found.append(known[2])
            # Its own name for a third link is read anew each time.
            if not isinstance(known[2].params, Gretap) or known[2].params.through is None:
                self._made[raw.index] = known
        return tuple(found)

    def rely(self) -> None:
        self._evidence.rely()

    def undisturbed(self) -> bool:
        return self._evidence.holds(self._generation())

    def glance(self, names: Collection[str]) -> KernelState:
        self._evidence.own(names)
        try:
            links = rtnl.get_links(self._socket, sorted(names))
            there = [link for link in links.values() if link]
            own = {link.index for link in there if _is_ours(link)}
            addresses = [a for i in own for a in rtnl.dump_addresses(self._socket, i)]
        except OSError as error:
            raise _refused(error) from error
        reread: dict[int, RawLink | None] = {link.index: link for link in there}
        for name, link in links.items():
            before = self._looked.pop(name, None)
            if before:
                reread.setdefault(before.index, None)
                self._names.pop(before.index, None)
            if link:
                self._looked[name] = link
                self._names[link.index] = name
        self._evidence.reread(reread, addresses)
        known = self._names
        return KernelState(
            links=tuple(_link(link, known) for link in there if link.index in own),
            ports=tuple(
                Port(link.name, known[link.master])
                for link in there
                if link.master and link.index not in own
            ),
            addresses=tuple(
                Address(known[a.index], a.address) for a in addresses if _own_address(a, own, set())
            ),
        )

    def _generation(self) -> int:
        try:
            return self._nft.generation()
        except OSError as error:
            raise _refused(error) from error

    def _rules(self) -> tuple[tuple[Rule | None, int, int, int], ...]:
        try:
            return routing.dump_rules(self._socket)
        except OSError as error:
            raise _refused(error) from error

    def _things(self, sight: Sight) -> tuple[Thing, ...]:
        try:
            drivers = (*PACKED, *GROUPED, *DRIVERS)
            return tuple(t for each in drivers for t in each.observe(self._socket, sight))
        except OSError as error:
            raise _refused(error) from error

    def sites(self) -> tuple[str, ...]:
        links, _addresses = self._dumps()
        found = {_site_of(link) for link in links}
        found |= {
            name.removeprefix(table_name("")) for _f, name, table in self._our_tables() if table
        }
        return tuple(sorted(found - {""}))

    def _our_tables(self) -> list[tuple[str, str, NftTable | None]]:
        """Tables with a name of ours; None if they have no marker of ours."""
        try:
            return [
                (family, name, self._nft.table(family, name))
                for family, name in self._nft.table_names()
                if name.startswith(table_name(""))
            ]
        except OSError as error:
            raise _refused(error) from error

    def sysctls(self, keys: Iterable[str]) -> tuple[Sysctl, ...]:
        found = []
        for key in keys:
            if self._is_gone(key):
                continue
            known = self._conf(key)
            try:
                value = _read(f"/proc/sys/{key}") if known is None else known
            except OSError:
                continue
            found.append(Sysctl(key, value))
        return tuple(found)

    def _is_gone(self, key: str) -> bool:
        """Whether it is of a link that the last look did not find."""
        name = _parts_of(key)[1]
        return bool(self._looked) and name not in self._looked and name not in _NO_LINKS

    def _conf(self, key: str) -> str | None:
        """A sysctl of a link as the last look read it along with the link, of which there are
        thousands; None of others."""
        version, name, word = _parts_of(key)
        link = self._looked.get(name)
        value = rtnl.conf_of(link, version, word) if link else None
        return None if value is None else str(value)

    def listings(self, tables: Iterable[NftTable]) -> tuple[NftTable, ...]:
        return tuple(
            replace(table, listing=self._nft.listing(table.family, table.name)) for table in tables
        )

    def tunnels(self) -> tuple[LinkCounters, ...]:
        try:
            links = rtnl.dump_links(self._socket, stats=True)
        except OSError as error:
            raise _refused(error) from error
        found = []
        for link in links:
            params = rtnl.params_of(link, str)
            if link.alias.count(":") < 3 or not _site_of(link) or not isinstance(params, Gretap):
                continue
            rx_packets, tx_packets, rx_bytes, tx_bytes = link.stats or (0, 0, 0, 0)
            found.append(
                LinkCounters(
                    link.name, link.alias, link.up, params.local, params.remote, params.key,
                    rx_packets, tx_packets, rx_bytes, tx_bytes,
                )
            )  # fmt: skip
        return tuple(found)

    def passed(self) -> Mapping[str, tuple[int, int, int, int]]:
        try:
            links = rtnl.dump_links(self._socket, stats=True)
        except OSError as error:
            raise _refused(error) from error
        return {link.name: link.stats for link in links if link.stats}

    def dropped(self, tables: Iterable[NftTable]) -> tuple[RuleCounter, ...]:
        return tuple(
            RuleCounter(f"{table.family} {table.name}", *found)
            for table in tables
            for found in self._nft.dropped(table.family, table.name)
        )

    def _dumps(self) -> tuple[list[RawLink], list[RawAddress]]:
        try:
            return rtnl.dump_links(self._socket), rtnl.dump_addresses(self._socket)
        except OSError as error:
            raise _refused(error) from error

    def _tables_at(self, site: str, generation: int) -> _Tables:
        """What `_tables` reads; nothing is read again while nobody has changed the ruleset."""
        if self._read is None or self._read[:2] != (site, generation):
            read = self._tables(site)
            self._read = (site, generation, read) if self._generation() == generation else None
            return read
        return self._read[2]

    def _tables(self, site: str) -> _Tables:
        """The site's tables, those of our other sites, and foreign ones that have its name."""
        ours: list[NftTable] = []
        others: list[NftTable] = []
        foreign = set()
        for family, name, table in self._our_tables():
            if table is None:
                foreign.add((family, name))
            elif name == table_name(site):
                ours.append(table)
            else:
                others.append(table)
        return tuple(ours), others, frozenset(foreign)

    # -- writing

    def perform(self, step: Step) -> Writes:
        return self.carry_out([step])

    def carry_out(self, steps: Sequence[Step]) -> Writes:
        with Batch(self._socket) as batch:
            writes = self._carry_out(steps, batch)
            return writes + batch.writes

    def _carry_out(self, steps: Sequence[Step], batch: Batch) -> Writes:
        writes = Writes()
        group: list[PutThing | DelThing] = []
        beside: Future[Writes] | None = None
        for step in steps:
            # Links are made down: while they are, thousands of elements may still be on their way
            # into the filters. Everything else waits for those.
            if beside and not isinstance(step, AddLink):
                writes += beside.result()
                beside = None
            if isinstance(step, PutThing | DelThing) and _grouped(step.thing):
                batch.send()
                group.append(step)
                continue
            if group:
                writes += _change(group)
                group = []
            if isinstance(step, NftChange) and len(steps) > _MANY:
                batch.send()
                beside = batch.beside(partial(self._by_itself, step))
            else:
                writes += self._put_to(batch, step)
        if beside:
            writes += beside.result()
        batch.send()
        return writes + _change(group)

    def _put_to(self, batch: Batch, step: Step) -> Writes:
        """A step is collected to be sent, or done; what was written if it was."""
        if isinstance(step, DelLink):
            batch.add_removal(step)
            return Writes()
        if isinstance(step, SetSysctl) and batch.add_sysctl(step):
            return Writes()
        try:
            requests = self._requests(step, batch.index_of)
        except OSError as error:
            raise StepError(words(error), step) from error
        if requests is not None:
            batch.add(step, requests)
            return Writes()
        batch.send_before(step)
        return self._by_itself(step)

    def _by_itself(self, step: Step) -> Writes:
        """A step that is not route netlink messages. Raises StepError."""
        try:
            return self._perform(step)
        except OSError as error:
            raise StepError(words(error), step) from error
        except KernelError as error:
            raise StepError(str(error), step) from error

    def _perform(self, step: Step) -> Writes:
        match step:
            case NftChange():
                transactions = self._nft.run(step.commands)
                self._evidence.wrote(transactions, self._nft.generation())
                self._forget(step)
                return Writes(nft=len(step.commands))
            case SetSysctl(key, value):
                _write(f"/proc/sys/{key}", value)
                return Writes(sysctl=1)
            case CutConnections(flows):
                return Writes(netlink=conntrack.flush(self._conntrack, flows))
            case PutThing(thing, before):
                return Writes(netlink=_driver(thing).put(self._socket, thing, before))
            case DelThing(thing):
                return Writes(netlink=_driver(thing).remove(self._socket, thing))
            case _:
                raise TypeError(f"no way to do {step!r}")

    def _forget(self, step: NftChange) -> None:
        """What was just written is the truth: compare later looks with the next one."""
        for command in step.commands:
            match command:
                case FlushChain(table, chain, _why):
                    self._nft.forget(*table, chain)
                case DelTable(table) | AddTable(table):
                    self._nft.forget(*table)
                case LoadTable(listed):
                    self._nft.forget(listed.family, listed.name)

    def _requests(self, step: Step, index_of: IndexOf) -> list[nl.Request] | None:
        """The route netlink messages of a step; None if it is done by other means."""
        match step:
            case AddLink(link) | SetLink(link, _) if _in_udp(link):
                fou.load(six=link.params.kind.startswith("ip6"))
        match step:
            case AddLink(link):
                return rtnl.create(link, index_of)
            case SetLink(link, changes):
                return rtnl.change(link, changes, index_of)
            case RaiseLink(name):
                return [rtnl.up(name)]
            case Enslave(name, master):
                return [rtnl.enslave(name, index_of(master) if master else 0)]
            case AddAddress(link_name, address):
                return [rtnl.add_address(index_of(link_name), address)]
            case PutThing(thing, before):
                packed = _packed(thing)
                return packed.requests(thing, before, index_of) if packed else None
            case DelAddress() | DelThing():
                return self._removal(step, index_of)
            case _:
                return None

    def _removal(self, step: DelAddress | DelThing, index_of: IndexOf) -> list[nl.Request] | None:
        try:
            match step:
                case DelAddress(link_name, address):
                    return [rtnl.del_address(index_of(link_name), address)]
                case DelThing(thing):
                    packed = _packed(thing)
                    return packed.removal(thing, index_of) if packed else None
        except nl.NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
            return []  # it went with its link


def _grouped(thing: Thing) -> GroupDriver | None:
    return next((driver for driver in GROUPED if thing.kind in driver.kinds), None)


def _change(steps: Sequence[PutThing | DelThing]) -> Writes:
    """Steps that follow each other, of drivers that do many at once."""
    writes = 0
    for driver in GROUPED:
        mine = [step for step in steps if step.thing.kind in driver.kinds]
        put = [step.thing for step in mine if isinstance(step, PutThing)]
        gone = [step.thing for step in mine if isinstance(step, DelThing)]
        try:
            writes += driver.change(put, gone) if mine else 0
        except OSError as error:
            raise StepError(words(error), mine[0]) from error
    return Writes(netlink=writes)


def _in_udp(link: Link) -> bool:
    return isinstance(link.params, Gretap) and link.params.fou is not None


@lru_cache(1 << 16)
def _parts_of(key: str) -> tuple[str, str, str]:
    """(version, link, name) of a sysctl of a link; of another, nobody's link."""
    parts = key.split("/")
    if len(parts) == 5 and parts[2] == "conf":
        return parts[1], parts[3], parts[4]
    return "", "", ""


def _read(path: str) -> str:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, 4096).decode().strip()
    finally:
        os.close(file)


def _write(path: str, value: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, value.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(file)


def _packed(thing: Thing) -> PackedDriver | None:
    return next((driver for driver in PACKED if thing.kind in driver.kinds), None)


def _driver(thing: Thing) -> ThingDriver:
    return next(driver for driver in DRIVERS if thing.kind in driver.kinds)


def may_change_networks() -> bool:
    """Whether this thread has CAP_NET_ADMIN in effect (capget(2), version 3 of its structures)."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # two times effective, permitted, inheritable
    if ctypes.CDLL(None).capget(header, sets) != 0:
        return False
    return bool(sets[0] >> _CAP_NET_ADMIN & 1)


def _refused(error: OSError) -> KernelError:
    return KernelError(words(error))


def _site_of(link: RawLink) -> str:
    """The site a link of ours is stamped with; "" if it is not ours."""
    parts = link.alias.split(":", 2)
    return parts[1] if len(parts) == 3 and link.alias.startswith(ALIAS_PREFIX) else ""


def _table_of(link: RawLink) -> int:
    params = rtnl.params_of(link, str)
    return params.table if isinstance(params, Vrf) else 0


def _numbers(routers: Iterable[RawLink]) -> dict[tuple[str, str, str], int]:
    """{(site, tenant, network): number} of the routers that are ours."""
    found = {}
    for link in routers:
        number = number_of(_table_of(link))
        if _site_of(link) and link.alias.count(":") >= 3 and number is not None:
            _dvn, site, _kind, name = link.alias.split(":", 3)
            tenant, _, network = name.partition("/")
            found[site, tenant, network] = number
    return found


def _unstamped(link: RawLink) -> bool:
    """Ours, made by a process that was killed before it wrote the alias."""
    return link.group == LINK_GROUP and not link.alias


def _is_ours(link: RawLink) -> bool:
    return bool(_site_of(link)) or _unstamped(link)


def _own_address(address: RawAddress, own: set[int], taken: set[str]) -> bool:
    if address.index in own:
        # The kernel's own link-local addresses are not ours.
        return address.scope != rtnl.RT_SCOPE_LINK or address.protocol == ADDRESS_PROTOCOL
    return address.protocol == ADDRESS_PROTOCOL and address.address.split("/")[0] not in taken


def _link(link: RawLink, names: dict[int, str]) -> Link:
    params = rtnl.params_of(link, _namer(names))
    if params is None:  # ours by its stamp, but of a kind we do not make: will be removed
        params = Gretap("0.0.0.0", "0.0.0.0", 0)
    return Link(
        name=link.name,
        alias=link.alias,
        params=params,
        mtu=link.mtu,
        up=link.up,
        master=names.get(link.master) if link.master else None,
        mac=link.mac,
        isolated=link.kind in ("gretap", "ip6gretap") and link.isolated,
        link_local=link.link_local,
    )


def _namer(names: dict[int, str]) -> Callable[[int], str]:
    return lambda index: names.get(index, f"#{index}")


class _HostLinks(HostLinks):
    """The links of a look."""

    def __init__(self, links: Mapping[str, RawLink], names: Mapping[int, str]) -> None:
        # The kernel's own memory of links changes with each glance; a look stays what it was.
        self._links, self._names = dict(links), dict(names)
        self._made: dict[str, HostLink] = {}

    def __getitem__(self, name: str) -> HostLink:
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = _host_link(self._links[name], self._names)
        return made

    def others(self, site: str) -> dict[str, HostLink]:
        return {name: self[name] for name, raw in self._links.items() if _site_of(raw) != site}

    def __iter__(self) -> Iterator[str]:
        return iter(self._links)

    def __len__(self) -> int:
        return len(self._links)


def _host_link(link: RawLink, names: dict[int, str]) -> HostLink:
    params = rtnl.params_of(link, _namer(names))
    return HostLink(
        name=link.name,
        kind=link.kind,
        mtu=link.mtu,
        up=link.up,
        ours=_is_ours(link),
        site=_site_of(link),
        master=names.get(link.master) if link.master else None,
        slot=params.slot() if params else None,
        queue=link.queue,
    )
