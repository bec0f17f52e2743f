"""Ports: interfaces of this host in a network, and what they may claim to be.

A port that declares a MAC or an address may send from no other. In nft's bridge family at
prerouting: frames to the gateway and frames to other ports meet the same check, first of all.
"""

from __future__ import annotations

from dataclasses import replace

from dvn.kernel.state import (
    Element,
    KernelState,
    NftChain,
    NftRule,
    NftSet,
    NftTable,
    Port,
    table_name,
)
from dvn.passes import EMPTY, Context, NetworkOf, Pass

_RULES = (
    NftRule.of(
        "iifname @port_with_mac iifname . ether saddr != @port_mac counter drop",
        "a port sends from its own MAC address only",
    ),
    NftRule.of(
        "iifname @port_with_address4 ether type ip iifname . ip saddr != @port_address4 "
        "counter drop",
        "a port sends from its own IPv4 address only",
    ),
    NftRule.of(
        "iifname @port_with_address4 ether type arp iifname . arp saddr ip != @port_address4 "
        "counter drop",
        "a port answers ARP for its own address only",
    ),
    NftRule.of(
        "iifname @port_with_address6 ether type ip6 ip6 saddr != { ::, fe80::/10 } "
        "iifname . ip6 saddr != @port_address6 counter drop",
        "a port sends from its own IPv6 address only",
    ),
)


# name of the set, types of its key
_SETS = (
    ("port_with_mac", ("ifname",)),
    ("port_mac", ("ifname", "ether_addr")),
    ("port_with_address4", ("ifname",)),
    ("port_address4", ("ifname", "ipv4_addr")),
    ("port_with_address6", ("ifname",)),
    ("port_address6", ("ifname", "ipv6_addr")),
)


def _frame(context: Context) -> KernelState:
    return _state(context, {}, (NftChain("spoof", _RULES, "filter", "prerouting", -300, "accept"),))


def _ports(context: Context, owned: NetworkOf) -> KernelState:
    """Enslave each declared interface that is there, and pin it to what it declared."""
    there = [p for p in owned.network.ports if p.interface in context.host.links]
    if not there:
        return EMPTY
    elements: dict[str, set[Element]] = {}
    for port in there:
        if port.mac:
            elements.setdefault("port_with_mac", set()).add((port.interface,))
            elements.setdefault("port_mac", set()).add((port.interface, port.mac))
        if port.address:
            version = port.address.version
            elements.setdefault(f"port_with_address{version}", set()).add((port.interface,))
            elements.setdefault(f"port_address{version}", set()).add(
                (port.interface, str(port.address))
            )
    state = _state(context, elements, ())
    return replace(
        state,
        ports=tuple(Port(port.interface, owned.bridge) for port in there),
        raised=frozenset(port.interface for port in there),
    )


def _state(
    context: Context, elements: dict[str, set[Element]], chains: tuple[NftChain, ...]
) -> KernelState:
    sets = tuple(NftSet(name, kind, frozenset(elements.get(name, ()))) for name, kind in _SETS)
    return KernelState(tables=(NftTable("bridge", table_name(context.site.site), sets, chains),))


PORTS = Pass("ports", frame=_frame, network=_ports)
