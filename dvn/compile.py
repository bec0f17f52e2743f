"""(site, host) -> KernelState, by named passes. Pure.

Each pass looks at the spec and at facts of the host, and returns objects (passes.py); `merge` puts
them together. A new feature is a new pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from dvn.allocate import allocate, number_of
from dvn.hostcheck import host_problems
from dvn.kernel.state import (
    OWNER_SET,
    Host,
    KernelState,
    NftSet,
    NftTable,
    alias,
    merge,
)
from dvn.nat.policy import POLICY
from dvn.nat.routers import ROUTERS
from dvn.nat.tracking import TRACKING
from dvn.nat.translation import TRANSLATION
from dvn.nat.zones import ZONES
from dvn.passes import Context, NetworkOf, Pass, networks_of
from dvn.problems import SpecError
from dvn.rates.compile import RATES
from dvn.services.compile import SERVICES
from dvn.spec import Site, Tunnel
from dvn.tunnels.choice import waiting
from dvn.tunnels.gretap import TUNNELS_PASS
from dvn.tunnels.ipsec import IPSEC
from dvn.tunnels.wireguard import WIREGUARD
from dvn.vlans.bridges import BRIDGES
from dvn.vlans.forwarding import FORWARDING
from dvn.vlans.isolation import ISOLATION
from dvn.vlans.linklocal import LINK_LOCAL
from dvn.vlans.ports import PORTS
from dvn.vlans.uplinks import UPLINKS

PASSES: tuple[Pass, ...] = (
    ROUTERS,
    BRIDGES,
    UPLINKS,
    PORTS,
    ISOLATION,
    WIREGUARD,
    IPSEC,
    TUNNELS_PASS,
    ZONES,
    TRACKING,
    TRANSLATION,
    POLICY,
    FORWARDING,
    RATES,
    LINK_LOCAL,
    SERVICES,
)


@dataclass(frozen=True)
class Compiled:
    """`notes`: what was left out: because its interface is not there (lenient compiles only), or
    because nobody knows yet what can carry it."""

    state: KernelState
    notes: tuple[str, ...] = ()
    context: Context | None = None


def compile_site(site: Site, host: Host, *, lenient: bool = False) -> Compiled:
    """The kernel objects that make `site` true on `host`.

    Raises SpecError (problems carry paths, no lines) if this host cannot hold it: an interface is
    missing, or something foreign has one of our names. `lenient` is for a daemon's loop: a port or
    uplink that is not there *now*, such as the tap of a VM that is off, is left out with a note.
    """
    context, notes = checked(site, host, lenient=lenient)
    state = merge([*frames_of(context), *parts_of(context)])
    return Compiled(marked(state, site.site), notes, context)


def checked(site: Site, host: Host, *, lenient: bool = False) -> tuple[Context, tuple[str, ...]]:
    """What the passes look at, of a site that the host can hold, and notes. Raises as
    compile_site does."""
    problems, notes = host_problems(site, host)
    if problems or (notes and not lenient):
        raise SpecError([*problems, *notes])
    return context_of(site, host), (*(str(note) for note in notes), *waiting(site, host))


def context_of(site: Site, host: Host, before: Context | None = None) -> Context:
    """What the passes look at. `before`: that of a site which this one is a change of."""
    numbers = numbers_of(site, host) if before is None else _numbers_after(site, before)
    return Context(site, host, numbers)


def frames_of(context: Context) -> Iterator[KernelState]:
    """What does not depend on how many networks there are; nothing of a site without any."""
    site = context.site
    if site.closed or any(tenant.networks for tenant in site.tenants.values()):
        yield from (each.frame(context) for each in PASSES if each.frame)


def parts_of(
    context: Context, some: Iterable[NetworkOf | Tunnel] | None = None
) -> Iterator[KernelState]:
    """What the networks and tunnels add, or `some` of them."""
    if some is None:
        some = (*networks_of(context.site), *context.site.tunnels())
    only_bridged = context.site.here is not None
    passes = [one for one in PASSES if not (only_bridged and one.routed)]
    of_networks = [one.network for one in passes if one.network]
    of_tunnels = [one.tunnel for one in PASSES if one.tunnel]
    for each in some:
        if isinstance(each, Tunnel):
            yield from (part(context, each) for part in of_tunnels)
        else:
            yield from (part(context, each) for part in of_networks)


def marked(state: KernelState, site: str) -> KernelState:
    """With the set in each table whose comment says whose it is."""
    return replace(state, tables=tuple(_marked(table, site) for table in state.tables))


def numbers_of(site: Site, host: Host) -> dict[tuple[str, str], int]:
    """The number of each network (allocate.py), from what the kernel says is taken."""
    held = {key[1:]: number for key, number in host.numbers.items() if key[0] == site.site}
    networks = ((tenant, name) for tenant, name, _network in site.networks())
    return allocate(networks, held, _not_ours(site, host))


def _numbers_after(site: Site, before: Context) -> Mapping[tuple[str, str], int]:
    """The same after a change of some tenants; those that stayed are not looked at."""
    old, new = before.site.tenants, site.tenants
    changed = [name for name in {**old, **new} if old.get(name) is not new.get(name)]
    had = {(name, key) for name in changed if name in old for key in old[name].networks}
    has = sorted((name, key) for name in changed if name in new for key in new[name].networks)
    if had == set(has):
        return before.numbers
    kept = {network: before.numbers[network] for network in has if network in had}
    numbers = dict(before.numbers)
    for network in had:
        del numbers[network]
    taken = {*before.numbers.values(), *_not_ours(site, before.host)}
    return numbers | allocate(has, kept, taken)


def _not_ours(site: Site, host: Host) -> set[int]:
    """Numbers of other sites, and those whose routing table others use."""
    tables = (number_of(table) for table in host.foreign_routing.tables)
    return {*host.others_numbers(site.site), *(number for number in tables if number is not None)}


def _marked(table: NftTable, site: str) -> NftTable:
    """The table with the set whose comment says whose it is (nft 1.0.6 does not show the comment
    of a table itself in JSON)."""
    marker = NftSet(OWNER_SET, ("ifname",), comment=alias(site, "table", table.family))
    return replace(table, sets=(marker, *table.sets))
