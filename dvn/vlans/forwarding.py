"""Forwarding: switched on where our networks need it, remembered, and of no use to anybody else.

A switch of an interface that is not ours, or of the whole host, lets foreign packets through as
well. What we switched on stands in sets of our nft table, whose rules drop what neither comes from
nor goes to a network (nat/zones.py); those sets are also the memory of what to switch back. Where
somebody else had switched it on, it stands in no set: foreign traffic stays as it was.

The order: the set's element before the switch, the switch back before the element goes (diff.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from dvn.kernel.nftcommands import AddElements, DelElements
from dvn.kernel.state import Element, Host, KernelState, NftSet, NftTable, Sysctl, grown, table_name
from dvn.kernel.steps import NftChange, Plan
from dvn.passes import EMPTY, Context, NetworkOf, Pass
from dvn.spec import Network, Site

OPENED4, OPENED6, ADVERTS, ACCEPTED = "opened4", "opened6", "adverts", "accepted"
SETS = (OPENED4, ADVERTS, OPENED6, ACCEPTED)  # in the order of switching on


_FRAMES = {
    OPENED4: NftSet(OPENED4, ("ifname",)),
    OPENED6: NftSet(OPENED6, ("nf_proto",)),
    ADVERTS: NftSet(ADVERTS, ("ifname",)),
    ACCEPTED: NftSet(ACCEPTED, ("inet_proto",)),
}


@dataclass(frozen=True)
class Switch:
    """A sysctl that is not ours: its value before, the one we need, and its place in our memory."""

    key: str
    off: str
    on: str
    set: str
    element: Element


def _forwarding4(interface: str) -> Switch:
    return Switch(f"net/ipv4/conf/{interface}/forwarding", "0", "1", OPENED4, (interface,))


# IPv6 has one switch for all interfaces (net/ipv6/ip6_output.c, ip6_forward).
_FORWARDING6 = Switch("net/ipv6/conf/all/forwarding", "0", "1", OPENED6, ("ipv6",))


def _adverts(interface: str) -> Switch:
    """A host that forwards ignores router advertisements unless told to heed them all the same
    (accept_ra 2): without this it would lose its own IPv6 default route."""
    return Switch(f"net/ipv6/conf/{interface}/accept_ra", "1", "2", ADVERTS, (interface,))


def _accept(protocol: str) -> Switch:
    """Whether sockets that are bound to no device serve what comes by a router (vrf.rst): without
    this the gateway's own services, and its own connections to machines of a network, would not
    work. The input chain decides who may use them (nat/zones.py)."""
    return Switch(f"net/ipv4/{protocol}_l3mdev_accept", "0", "1", ACCEPTED, (protocol,))


def switches(site: Site, host: Host) -> tuple[Switch, ...]:
    """What the site's networks need, in the order of switching on; nothing where they are only
    bridged."""
    if site.here is not None:
        return ()
    found: dict[str, Switch] = {}
    for _tenant, _name, network in site.networks():
        found |= {switch.key: switch for switch in _switches(site, host, network)}
    return tuple(sorted(found.values(), key=_order))


def _order(switch: Switch) -> tuple[int, str]:
    return (SETS.index(switch.set), switch.key)


def _switches(site: Site, host: Host, network: Network) -> Iterator[Switch]:
    """What one network needs."""
    families = [version for version in (4, 6) if _leaves(network, version)]
    interfaces = []
    if families and site.underlay:
        interfaces.append(site.underlay.interface)
    if families and network.vlan and network.access == "open":
        interfaces.append(network.vlan.uplink)
    there = [name for name in interfaces if name in host.links]
    yield from (_forwarding4(name) for name in there)
    if 6 in families:
        yield from (_adverts(name) for name in there)
        yield _FORWARDING6
    yield from (_accept("tcp"), _accept("udp"))


def _leaves(network: Network, version: int) -> bool:
    """Whether packets of this family may leave the network."""
    if not any(prefix.version == version for prefix in network.prefix):
        return False
    nat = network.nat
    translated = nat is not None and (nat.leaves(version) or nat.enters(version))
    return network.access == "open" or translated


def _frame(context: Context) -> KernelState:
    name = table_name(context.site.site)
    return KernelState(tables=(NftTable("inet", name, tuple(_FRAMES.values())),))


def _network(context: Context, owned: NetworkOf) -> KernelState:
    """The switches of one network, and the memory of those that were off."""
    wanted = [
        switch
        for switch in _switches(context.site, context.host, owned.network)
        if not _refused(switch, context.host)
    ]
    return _state(context, wanted) if wanted else EMPTY


def _state(context: Context, wanted: Iterable[Switch]) -> KernelState:
    wanted = sorted(wanted, key=_order)
    elements: dict[str, set[Element]] = {}
    for switch in wanted:
        if _is_ours(switch, context.host):
            elements.setdefault(switch.set, set()).add(switch.element)
    table = NftTable("inet", table_name(context.site.site), grown(_FRAMES, elements))
    return KernelState(
        sysctls=tuple(Sysctl(switch.key, switch.on) for switch in wanted), tables=(table,)
    )


def _refused(switch: Switch, host: Host) -> bool:
    """Router advertisements are kept only where they were heeded, or have been kept by us; a host
    that forwarded without us heeded none."""
    if switch.set != ADVERTS:
        return False
    if not _is_ours(_FORWARDING6, host):
        return True
    value = host.sysctls.get(switch.key)
    return value != switch.off and not (value == switch.on and switch.key in host.switched)


def _is_ours(switch: Switch, host: Host) -> bool:
    return host.sysctls.get(switch.key) != switch.on or switch.key in host.switched


def remembered(tables: Iterable[NftTable]) -> Iterator[Switch]:
    """What the sets of our tables say that we switched, in the order of switching back."""
    made = {ADVERTS: _adverts, OPENED4: _forwarding4, ACCEPTED: _accept}
    found = [
        (s.name, element)
        for table in tables
        for s in table.sets
        if s.name in SETS  # the others may hold thousands
        for element in s.elements
    ]
    if (OPENED6, _FORWARDING6.element) in found:
        yield _FORWARDING6
    for name, element in sorted(found):
        if name in made:
            yield made[name](element[0])


def switches_in(plan: Plan) -> bool:
    """Whether the plan changes what our sets say that we switched."""
    return any(
        isinstance(command, AddElements | DelElements) and command.set.name in SETS
        for step in plan.steps
        if isinstance(step, NftChange)
        for command in step.commands
    )


def switched_back(
    observed: KernelState, desired: KernelState, elsewhere: frozenset[str], now: Mapping[str, str]
) -> tuple[Sysctl, ...]:
    """The values to restore: of what `observed` remembers and `desired` needs no more.

    Left as it is: what another site of ours switched on too (`elsewhere`, keys), and what has not
    our value any more (`now`).
    """
    needed = {switch.key for switch in remembered(desired.tables)} | set(desired.sysctl_values)
    return tuple(
        Sysctl(switch.key, switch.off)
        for switch in remembered(observed.tables)
        if switch.key not in needed | elsewhere and now.get(switch.key) == switch.on
    )


FORWARDING = Pass("forwarding", frame=_frame, network=_network, routed=True)
