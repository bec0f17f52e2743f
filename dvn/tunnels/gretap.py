"""Keyed gretap devices, and the MSS clamp of what is bridged through them.

Outer packets may be fragmented (`nopmtudisc`, `ignore-df`). With the don't-fragment bit a frame
that meets a narrower path is lost without a word: for bridged traffic the kernel has nobody to send
"packet too big" to (net/ipv4/ip_tunnel.c, tnl_update_pmtu needs a route of the inner packet), and
many paths swallow ICMP anyway. Fragments are slow, a stall is worse; where the path carries the
declared MTU there are none. The outer TTL is 64, not the inner one: an inner TTL of 1 (multicast,
traceroute) must survive the way through the internet.
"""

from __future__ import annotations

from dvn import addresses
from dvn.kernel.state import (
    Element,
    Gretap,
    KernelState,
    Link,
    NftChain,
    NftRule,
    NftSet,
    NftTable,
    alias,
    table_name,
)
from dvn.passes import EMPTY, Context, Pass
from dvn.spec import Site, Tunnel
from dvn.tunnels.dynamic import DYNAMIC, FIXED, TUNNELS
from dvn.tunnels.mtu import network_mtu, tcp_mss

OUTER_TTL = 64


def _tunnel(context: Context, tunnel: Tunnel) -> KernelState:
    """A port of its network's bridge. The kernel itself lets in only packets from the remote, to
    the local address, with the key (ip_tunnel_lookup)."""
    site = context.site
    local = site.local_of(tunnel)
    if local is None:  # checks refuse it
        return EMPTY
    name = addresses.tunnel_name(tunnel.tenant, tunnel.name)
    kind = DYNAMIC if tunnel.dynamic else FIXED
    link = Link(
        name=name,
        alias=alias(site.site, kind, tunnel.tenant, tunnel.name),
        params=Gretap(str(local), str(tunnel.remote), tunnel.key, ttl=OUTER_TTL),
        mtu=network_mtu(site, context.host),
        master=addresses.bridge_name(tunnel.tenant, tunnel.network),
    )
    return KernelState(links=(link,), tables=(_table(site, frozenset({(name,)})),))


def _frame(context: Context) -> KernelState:
    """Clamp the MSS of bridged TCP, both directions, both families.

    A machine on the site's VLAN has an MTU of 1500 and no router on its way to a borrowed one, so
    nobody would tell it that the tunnel carries less. In nft's bridge family: whether br_netfilter
    is loaded makes no difference. The kernel only ever lowers an MSS here.
    """
    if context.site.underlay is None:
        return EMPTY
    mtu = network_mtu(context.site, context.host)
    rules = []
    for direction, words in (("iifname", "from"), ("oifname", "into")):
        for version, ethertype in ((4, "ip"), (6, "ip6")):
            mss = tcp_mss(mtu, version)
            rules.append(
                NftRule.of(
                    f"{direction} @tunnels ether type {ethertype} "
                    f"tcp flags & (syn | rst) == syn tcp option maxseg size set {mss}",
                    f"TCP {words} a tunnel fits {mtu} bytes",
                )
            )
    chain = NftChain("mss", tuple(rules), "filter", "forward", -250, "accept")
    return KernelState(tables=(_table(context.site, frozenset(), chain),))


def _table(site: Site, names: frozenset[Element], *chains: NftChain) -> NftTable:
    return NftTable("bridge", table_name(site.site), (NftSet(TUNNELS, ("ifname",), names),), chains)


TUNNELS_PASS = Pass("tunnels", frame=_frame, tunnel=_tunnel)
