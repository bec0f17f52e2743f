"""Source NAT by one map: a network's prefix to the address it has outside.

Toward the site (see zones.py) a network keeps its own addresses; toward the internet it has the
declared one. That address must be on the host for replies to come back: where it is not, it is
added to the underlay's interface, marked by its address protocol as ours.
"""

from __future__ import annotations

from dvn.kernel.state import (
    Address,
    Element,
    Host,
    KernelState,
    NftChain,
    NftRule,
    NftSet,
    NftTable,
    table_name,
)
from dvn.spec import Site

_RULES = (
    NftRule.of("oifname @networks return", "between networks nothing is translated"),
    NftRule.of("ip daddr @site4 return", "the site sees the real address"),
    NftRule.of("ip6 daddr @site6 return", "the site sees the real address"),
    NftRule.of("snat ip to ip saddr map @snat4", "the address a network has outside"),
    NftRule.of("snat ip6 to ip6 saddr map @snat6", "the address a network has outside"),
)


def compile_snat(site: Site, host: Host) -> KernelState:
    """The NAT chain, its maps, and the addresses they translate to."""
    four: set[Element] = set()
    six: set[Element] = set()
    found: dict[str, Address] = {}
    for _tenant, _name, network in site.networks():
        for address in network.nat.snat if network.nat else ():
            for prefix in network.prefix:
                if prefix.version == address.version:
                    (four if address.version == 4 else six).add((str(prefix), str(address)))
            if site.underlay and str(address) not in host.addresses:
                length = 32 if address.version == 4 else 128
                found[str(address)] = Address(site.underlay.interface, f"{address}/{length}")
    if not next(site.networks(), None):
        return KernelState()
    table = NftTable(
        "inet",
        table_name(site.site),
        sets=(
            NftSet("snat4", ("ipv4_addr",), frozenset(four), "ipv4_addr", interval=True),
            NftSet("snat6", ("ipv6_addr",), frozenset(six), "ipv6_addr", interval=True),
        ),
        chains=(NftChain("postrouting", _RULES, "nat", "postrouting", 100, "accept"),),
    )
    return KernelState(tables=(table,), addresses=tuple(found.values()))
