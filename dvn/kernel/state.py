"""What we want in the kernel, or found there: frozen objects that compare by meaning.

Everything that is ours says so: links by ifalias (`dvn:SITE:...`) and link group, addresses on
other people's links by their protocol number, nft tables by name and marker set. A restart with an
empty memory knows its own things by these, and touches nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, TypeAlias

from dvn.kernel.things import Thing

ALIAS_PREFIX = "dvn:"
# The group is set in the message that creates a link, the alias only after it: a link that has our
# group and no alias was left by a kill in between, and is ours as well. ("dvn" in ASCII.)
LINK_GROUP = 0x64766E
ADDRESS_PROTOCOL = 0xD4  # IFA_PROTO (Linux 5.18), unassigned in linux/if_addr.h
OWNER_SET = "owner"


def alias(site: str, kind: str, *names: str) -> str:
    """The ifalias of one of our links: `dvn:cnaf:tunnel:cms/bari`."""
    return f"{ALIAS_PREFIX}{site}:{kind}:{'/'.join(names)}"


def table_name(site: str) -> str:
    return f"dvn-{site}"


@dataclass(frozen=True)
class Bridge:
    """No spanning tree, no delay, no multicast snooping: a plain segment."""

    kind: Literal["bridge"] = "bridge"

    def slot(self) -> tuple[object, ...] | None:
        return None


@dataclass(frozen=True)
class Vlan:
    """802.1Q sub-device of `parent`."""

    parent: str
    id: int
    kind: Literal["vlan"] = "vlan"

    def slot(self) -> tuple[object, ...] | None:
        return ("vlan", self.parent, self.id)


@dataclass(frozen=True)
class Fou:
    """Foo over UDP around the GRE packet (linux/if_tunnel.h, TUNNEL_ENCAP_FOU): its UDP ports."""

    sport: int
    dport: int


GreKind: TypeAlias = Literal["gretap", "ip6gretap", "gre", "ip6gre"]


@dataclass(frozen=True)
class Gretap:
    """Ethernet (gretap, ip6gretap) or IP (gre, ip6gre) in GRE with a key, between fixed ends.

    `ttl` of the outer header; `pmtudisc` false and `ignore_df` true let the outer IPv4 packet be
    fragmented (tunnels/gretap.py says why; IPv6 has neither). `through`: the device its packets
    leave by, such as a WireGuard one.
    """

    local: str
    remote: str
    key: int
    ttl: int = 64
    pmtudisc: bool = False
    ignore_df: bool = True
    fou: Fou | None = None
    through: str | None = None
    kind: GreKind = "gretap"

    def slot(self) -> tuple[object, ...] | None:
        through = (self.through,) if self.through else ()
        return (self.kind, self.local, self.remote, self.key, *through)


@dataclass(frozen=True)
class Ifb:
    """Where what comes in by another device is queued (dvn/rates)."""

    kind: Literal["ifb"] = "ifb"

    def slot(self) -> tuple[object, ...] | None:
        return None


@dataclass(frozen=True)
class WireguardLink:
    """A WireGuard device; its keys and peers are a thing of their own (kernel/wireguard.py)."""

    kind: Literal["wireguard"] = "wireguard"

    def slot(self) -> tuple[object, ...] | None:
        return None


@dataclass(frozen=True)
class Vrf:
    """The router of a network: what comes from its bridge is routed by `table` (vrf.rst)."""

    table: int
    kind: Literal["vrf"] = "vrf"

    def slot(self) -> tuple[object, ...] | None:
        return ("vrf", self.table)


Params: TypeAlias = Bridge | Vlan | Gretap | Ifb | WireguardLink | Vrf


@dataclass(frozen=True)
class Link:
    """A device of ours. `slot` of its params is what the kernel lets only one device have."""

    name: str
    alias: str
    params: Params
    mtu: int
    up: bool = True
    master: str | None = None
    mac: str | None = None  # None in a desired link: whatever the kernel chose
    isolated: bool = False  # as a bridge port: frames of other isolated ports do not leave here
    link_local: bool = False  # IPv6 link-local address generation (the slow part of the kernel)


@dataclass(frozen=True)
class Port:
    """Somebody else's link that is enslaved to a bridge of ours."""

    name: str
    master: str


@dataclass(frozen=True)
class Address:
    """`10.9.0.1/24` on `link`; on a link that is not ours it carries our protocol number."""

    link: str
    address: str


SWITCH6 = "disable_ipv6"


@dataclass(frozen=True)
class Sysctl:
    """`key` as the path below /proc/sys."""

    key: str
    value: str


def without_ipv6(link: str) -> Sysctl:
    """No IPv6 of the host's own on a link; what is bridged through it is not concerned.

    Otherwise each that goes up gets a route for ff00::/8, and the kernel compares it with those of
    all others (net/ipv6/ip6_fib.c, fib6_add_rt2node): a third of the time of 4,000 networks.
    """
    return Sysctl(f"net/ipv6/conf/{link}/{SWITCH6}", "1")


@dataclass(frozen=True)
class NftRule:
    """A rule in nft's words. What the kernel shows of it compares by comment, which carries a
    digest of the text: the listing is never byte for byte what was written."""

    comment: str
    text: str = field(default="", compare=False)

    @staticmethod
    def of(text: str, why: str) -> NftRule:
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return NftRule(f"{why[:100]} [{digest}]", text)


@dataclass(frozen=True)
class NftChain:
    """`hook` is "" for a chain that is only jumped to. Policy is accept: foreign traffic passes."""

    name: str
    rules: tuple[NftRule, ...] = ()
    type: str = ""
    hook: str = ""
    priority: int = 0
    policy: str = ""

    def frame(self) -> NftChain:
        return replace(self, rules=())


Element: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class NftSet:
    """A set, or a map if `data` names a type. An element is its key's parts, then the value.

    `typeof`: the key (of a map, `KEY : VALUE`) in nft's words, where `type` cannot say how long its
    integers are.
    """

    name: str
    type: tuple[str, ...]
    elements: frozenset[Element] = frozenset()
    data: str = ""
    interval: bool = False
    comment: str = ""
    typeof: str = field(default="", compare=False)

    def frame(self) -> NftSet:
        return self.filled(frozenset()) if self.elements else self

    def filled(self, elements: frozenset[Element]) -> NftSet:
        """The same set with these elements; thousands of networks each fill some."""
        # What dataclasses.replace does, a few times faster.
        copy = object.__new__(NftSet)
        copy.__dict__.update(self.__dict__, elements=elements)
        return copy

    def key(self, element: Element) -> Element:
        return element[: len(self.type)]


def grown(
    frames: Mapping[str, NftSet], elements: Mapping[str, Collection[Element]]
) -> tuple[NftSet, ...]:
    """Of some sets by their names, those that get elements, and with them: what one network of
    thousands adds."""
    return tuple(frames[name].filled(frozenset(some)) for name, some in elements.items() if some)


@dataclass(frozen=True)
class NftTable:
    family: Literal["inet", "bridge"]
    name: str
    sets: tuple[NftSet, ...] = ()
    chains: tuple[NftChain, ...] = ()
    listing: str = field(default="", compare=False, repr=False)  # nft's own text, to put it back

    def frame(self) -> tuple[frozenset[NftSet], frozenset[NftChain]]:
        """What cannot change while the table stands: everything but rules and elements."""
        return (
            frozenset(s.frame() for s in self.sets),
            frozenset(c.frame() for c in self.chains),
        )


@dataclass(frozen=True)
class KernelState:
    """The objects of one site. In a desired state `raised` names other people's links that must be
    up (never taken down by us); in an observed one, those that are."""

    links: tuple[Link, ...] = ()
    ports: tuple[Port, ...] = ()
    addresses: tuple[Address, ...] = ()
    sysctls: tuple[Sysctl, ...] = ()
    tables: tuple[NftTable, ...] = ()
    raised: frozenset[str] = frozenset()
    things: tuple[Thing, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, Link]:
        return {link.name: link for link in self.links}

    @cached_property
    def sysctl_values(self) -> Mapping[str, str]:
        return {sysctl.key: sysctl.value for sysctl in self.sysctls}


def merge(parts: Iterable[KernelState]) -> KernelState:
    """One state of the parts that the passes made.

    Parts of one nft table become one table; of one set, its elements together. What two networks
    both need, such as an outside address, is there once.
    """
    links: list[Link] = []
    ports: list[Port] = []
    addresses: dict[Address, None] = {}
    sysctls: dict[str, Sysctl] = {}
    tables: dict[tuple[Literal["inet", "bridge"], str], _Tables] = {}
    raised: set[str] = set()
    things: dict[tuple[object, ...], Thing] = {}
    for part in parts:
        links += part.links
        ports += part.ports
        raised |= part.raised
        for address in part.addresses:
            addresses[address] = None
        for sysctl in part.sysctls:
            sysctls[sysctl.key] = sysctl
        for thing in part.things:
            things[thing.kind, *thing.key] = thing
        for table in part.tables:
            whole = tables.get((table.family, table.name))
            if whole is None:
                whole = tables[table.family, table.name] = _Tables()
            whole.add(table)
    return KernelState(
        tuple(links),
        tuple(ports),
        tuple(addresses),
        tuple(sysctls.values()),
        tuple(parts_.table(family, name) for (family, name), parts_ in tables.items()),
        frozenset(raised),
        tuple(things.values()),
    )


class _Tables:
    """The parts of one table, put together."""

    def __init__(self) -> None:
        self._sets: dict[str, tuple[NftSet, set[Element]]] = {}
        self._chains: list[NftChain] = []

    def add(self, table: NftTable) -> None:
        self._chains += table.chains
        for each in table.sets:
            have = self._sets.get(each.name)
            if have is None:
                have = self._sets[each.name] = (each, set())
            if each.elements:
                have[1].update(each.elements)

    def table(self, family: Literal["inet", "bridge"], name: str) -> NftTable:
        sets = (first.filled(frozenset(all_)) for first, all_ in self._sets.values())
        return NftTable(family, name, tuple(sets), tuple(self._chains))


@dataclass(frozen=True)
class HostLink:
    """A link of this host, ours or not, as far as compile needs to know it."""

    name: str
    kind: str
    mtu: int
    up: bool
    ours: bool
    site: str = ""  # whose it is, if ours
    master: str | None = None
    slot: tuple[object, ...] | None = None
    queue: str = ""  # kind of its root queue (tc(8))


@dataclass(frozen=True)
class Secret:
    """What may be known of a secret in a file: a digest, the public half of a private key, and
    what is wrong with the file ("" if nothing is)."""

    digest: str = ""
    public: str = ""
    wrong: str = ""


@dataclass(frozen=True)
class ForeignRouting:
    """Routing that others set up: who uses which table, and the preferences of their rules."""

    tables: Mapping[int, str] = field(default_factory=dict)  # table: what uses it, in words
    preferences: frozenset[int] = frozenset()


class HostLinks(Mapping[str, HostLink]):
    """Links that are turned into values only when they are asked for: there may be thousands."""

    def others(self, site: str) -> dict[str, HostLink]:
        """Those that are not the site's."""
        raise NotImplementedError


@dataclass(frozen=True)
class Host:
    """Facts about the host that compile depends on: its links, and addresses that are not ours."""

    links: Mapping[str, HostLink] = field(default_factory=dict)
    addresses: frozenset[str] = frozenset()
    foreign_tables: frozenset[tuple[str, str]] = frozenset()  # with our name, without our marker
    sysctls: Mapping[str, str] = field(default_factory=dict)  # of others' interfaces we may switch
    switched: frozenset[str] = frozenset()  # those that a site of ours switched, by key
    bridge_meta: bool = False  # whether nft can tell which bridge a frame is in
    secrets: Mapping[str, Secret] = field(default_factory=dict)  # by the path of their file
    paths: Mapping[str, int] = field(default_factory=dict)  # measured path MTU, by tenant/tunnel
    chosen: Mapping[str, str] = field(default_factory=dict)  # transport of auto tunnels, likewise
    # Numbers (dvn/allocate.py) by site, tenant and network, as the routers there say.
    numbers: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    foreign_routing: ForeignRouting = ForeignRouting()

    @cached_property
    def numbers_by_site(self) -> Mapping[str, frozenset[int]]:
        found: dict[str, set[int]] = {}
        for (site, _tenant, _network), number in self.numbers.items():
            found.setdefault(site, set()).add(number)
        return {site: frozenset(numbers) for site, numbers in found.items()}

    @cached_property
    def links_by_site(self) -> Mapping[str | None, tuple[HostLink, ...]]:
        """Looked through once, not at each change of one network; None: those that are not ours."""
        found: dict[str | None, list[HostLink]] = {}
        for link in self.links.values():
            found.setdefault(link.site if link.ours else None, []).append(link)
        return {site: tuple(links) for site, links in found.items()}

    def others_numbers(self, site: str) -> frozenset[int]:
        """Those of our other sites."""
        others = (numbers for name, numbers in self.numbers_by_site.items() if name != site)
        return frozenset[int]().union(*others)

    def facts(self, site: str) -> Host:
        """The host without the site's own links: what its compile depends on."""
        if isinstance(self.links, HostLinks):
            return replace(self, links=self.links.others(site))
        others = {name: link for name, link in self.links.items() if link.site != site}
        return replace(self, links=others)


@dataclass(frozen=True)
class View:
    """One look at the kernel: the host, and what is there of one site (sysctls apart)."""

    host: Host
    state: KernelState
    others: tuple[NftTable, ...] = ()  # tables of our other sites
