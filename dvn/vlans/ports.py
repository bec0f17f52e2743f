"""Ports: interfaces of this host in a network, and what they may claim to be.

A port that declares a MAC or an address may send from no other. In nft's bridge family at
prerouting: frames to the gateway and frames to other ports meet the same check, first of all.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from dvn import addresses
from dvn.kernel.state import (
    Element,
    Host,
    KernelState,
    NftChain,
    NftRule,
    NftSet,
    NftTable,
    Port,
    table_name,
)
from dvn.spec import Site

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


def compile_ports(site: Site, host: Host) -> KernelState:
    """Enslave each declared interface that is there, and pin it to what it declared."""
    ports: list[Port] = []
    macs: set[Element] = set()
    four: set[Element] = set()
    six: set[Element] = set()
    declared = False
    for tenant, name, network in site.networks():
        for port in network.ports:
            declared = True
            if port.interface not in host.links:
                continue
            ports.append(Port(port.interface, addresses.bridge_name(tenant, name)))
            if port.mac:
                macs.add((port.interface, port.mac))
            if isinstance(port.address, IPv4Address):
                four.add((port.interface, str(port.address)))
            elif port.address:
                six.add((port.interface, str(port.address)))
    raised = frozenset(port.name for port in ports)
    tables = (_table(site, macs, four, six),) if declared else ()
    return KernelState(ports=tuple(ports), tables=tables, raised=raised)


def _table(site: Site, macs: set[Element], four: set[Element], six: set[Element]) -> NftTable:
    def names(pairs: set[Element]) -> frozenset[Element]:
        return frozenset((interface,) for interface, _value in pairs)

    return NftTable(
        "bridge",
        table_name(site.site),
        sets=(
            NftSet("port_with_mac", ("ifname",), names(macs)),
            NftSet("port_mac", ("ifname", "ether_addr"), frozenset(macs)),
            NftSet("port_with_address4", ("ifname",), names(four)),
            NftSet("port_address4", ("ifname", "ipv4_addr"), frozenset(four)),
            NftSet("port_with_address6", ("ifname",), names(six)),
            NftSet("port_address6", ("ifname", "ipv6_addr"), frozenset(six)),
        ),
        chains=(NftChain("spoof", _RULES, "filter", "prerouting", -300, "accept"),),
    )
