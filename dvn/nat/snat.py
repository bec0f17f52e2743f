"""Source NAT by one map: a network's prefix to the address it has outside.

Toward the site (see zones.py) a network keeps its own addresses; toward the internet it has the
declared one. That address must be on the host for replies to come back: where it is not, it is
added to the underlay's interface, marked by its address protocol as ours.
"""

from __future__ import annotations

from collections.abc import Mapping

from dvn.kernel.state import (
    Address,
    Element,
    KernelState,
    NftChain,
    NftRule,
    NftSet,
    NftTable,
    table_name,
)
from dvn.passes import EMPTY, Context, NetworkOf, Pass
from dvn.spec import Site

_RULES = (
    NftRule.of("oifname @networks return", "between networks nothing is translated"),
    NftRule.of("ip daddr @site4 return", "the site sees the real address"),
    NftRule.of("ip6 daddr @site6 return", "the site sees the real address"),
    NftRule.of("snat ip to ip saddr map @snat4", "the address a network has outside"),
    NftRule.of("snat ip6 to ip6 saddr map @snat6", "the address a network has outside"),
)


def _frame(context: Context) -> KernelState:
    chain = NftChain("postrouting", _RULES, "nat", "postrouting", 100, "accept")
    return KernelState(tables=(_table(context.site, {4: set(), 6: set()}, chain),))


def _network(context: Context, owned: NetworkOf) -> KernelState:
    """Elements of the maps, and the addresses they translate to."""
    network, site = owned.network, context.site
    if network.nat is None:
        return EMPTY
    elements: dict[int, set[Element]] = {4: set(), 6: set()}
    found = []
    for address in network.nat.snat:
        for prefix in network.prefix:
            if prefix.version == address.version:
                elements[prefix.version].add((str(prefix), str(address)))
        if site.underlay and str(address) not in context.host.addresses:
            length = 32 if address.version == 4 else 128
            found.append(Address(site.underlay.interface, f"{address}/{length}"))
    return KernelState(addresses=tuple(found), tables=(_table(site, elements),))


def _table(site: Site, elements: Mapping[int, set[Element]], *chains: NftChain) -> NftTable:
    sets = tuple(
        NftSet(f"snat{version}", (kind,), frozenset(elements[version]), kind, interval=True)
        for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr"))
    )
    return NftTable("inet", table_name(site.site), sets, chains)


SNAT = Pass("snat", frame=_frame, network=_network)
