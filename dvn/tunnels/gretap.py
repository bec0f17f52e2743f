"""Keyed GRE devices, and the MSS clamp of what is bridged through them.

Outer packets may be fragmented (`nopmtudisc`, `ignore-df`). With the don't-fragment bit a frame
that meets a narrower path is lost without a word: for bridged traffic the kernel has nobody to send
"packet too big" to (net/ipv4/ip_tunnel.c, tnl_update_pmtu needs a route of the inner packet), and
many paths swallow ICMP anyway. Fragments are slow, a stall is worse; where the path carries the
declared MTU there are none. IPv6 has no fragments on the way: there the path's MTU has to be known
(tunnels/paths.py). The outer TTL is 64, not the inner one: an inner TTL of 1 (multicast,
traceroute) must survive the way through the internet.
"""

from __future__ import annotations

from dvn import addresses
from dvn.kernel.fou import FouPort
from dvn.kernel.state import (
    Element,
    Fou,
    GreKind,
    Gretap,
    KernelState,
    Link,
    NftChain,
    NftRule,
    NftSet,
    NftTable,
    alias,
    table_name,
    without_ipv6,
)
from dvn.kernel.things import Thing
from dvn.passes import EMPTY, Context, Pass
from dvn.spec import Site, Tunnel
from dvn.tunnels.choice import carried
from dvn.tunnels.dynamic import DYNAMIC, FIXED, MSS, TUNNELS
from dvn.tunnels.mtu import tcp_mss, tunnel_mtu

OUTER_TTL = 64


def gre_params(site: Site, tunnel: Tunnel, transport: str, own_key: str = "") -> Gretap | None:
    """The GRE device of a tunnel that travels by `transport`; `own_key` is this host's WireGuard
    public key. None if something it needs is missing, which checks refuse."""
    fou, through = None, None
    if transport == "wireguard":
        identity = site.underlay.wireguard if site.underlay else None
        if not (identity and own_key and tunnel.peer_key):
            return None
        local = str(addresses.wireguard_inner(own_key))
        remote = str(addresses.wireguard_inner(tunnel.peer_key))
        through = addresses.wireguard_name(identity.port)
    else:
        outer = site.local_of(tunnel)
        if outer is None or tunnel.remote is None:
            return None
        local, remote = str(outer), str(tunnel.remote)
        if transport == "fou" and site.underlay:
            fou = Fou(site.underlay.fou_port, tunnel.port or site.underlay.fou_port)
    kinds: dict[str, tuple[GreKind, GreKind]] = {
        "gretap": ("gretap", "ip6gretap"),
        "gre": ("gre", "ip6gre"),
    }
    kind = kinds[tunnel.type][":" in local]
    return Gretap(local, remote, tunnel.key, ttl=OUTER_TTL, fou=fou, through=through, kind=kind)


def _tunnel(context: Context, tunnel: Tunnel) -> KernelState:
    """A port of its network's bridge. The kernel itself lets in only packets from the remote, to
    the local address, with the key (ip_tunnel_lookup)."""
    site, host = context.site, context.host
    transport = carried(host, tunnel)
    params = gre_params(site, tunnel, transport, context.own_key) if transport else None
    if params is None:
        return EMPTY
    name = addresses.tunnel_name(tunnel.tenant, tunnel.name)
    kind = DYNAMIC if tunnel.dynamic else FIXED
    mtu = tunnel_mtu(site, host, tunnel)
    link = Link(
        name=name,
        alias=alias(site.site, kind, tunnel.tenant, tunnel.name),
        params=params,
        mtu=mtu,
        master=addresses.bridge_name(tunnel.tenant, tunnel.network),
        # Where every host has a tunnel to every other, what came by one goes on by none.
        isolated=tunnel.beyond is not None and tunnel.beyond.mesh,
    )
    things: tuple[Thing, ...] = ()
    if params.fou:
        things = (FouPort(params.fou.sport, 6 if ":" in params.local else 4),)
    table = NftTable("bridge", table_name(site.site), tunnel_sets({name: mtu}))
    return KernelState(links=(link,), sysctls=(without_ipv6(name),), tables=(table,), things=things)


def tunnel_sets(mtus: dict[str, int]) -> tuple[NftSet, ...]:
    """The tunnel devices, and the largest TCP segment each carries."""
    return (
        NftSet(TUNNELS, ("ifname",), frozenset((name,) for name in mtus)),
        *(
            NftSet(
                set_,
                ("ifname",),
                _segments(mtus, version),
                "integer",
                typeof="iifname : tcp option maxseg size",
            )
            for version, set_ in MSS.items()
        ),
    )


def _segments(mtus: dict[str, int], version: int) -> frozenset[Element]:
    return frozenset((name, str(tcp_mss(mtu, version))) for name, mtu in mtus.items())


def _frame(context: Context) -> KernelState:
    """Clamp the MSS of bridged TCP, both directions, both families.

    A machine on the site's VLAN has an MTU of 1500 and no router on its way to a borrowed one, so
    nobody would tell it that the tunnel carries less. In nft's bridge family: whether br_netfilter
    is loaded makes no difference. The kernel only ever lowers an MSS here.
    """
    if context.site.underlay is None:
        return EMPTY
    rules = tuple(
        NftRule.of(
            # No element, no match: an older kernel (6.1) has no other lookup in a map.
            f"ether type {ethertype} "
            f"tcp flags & (syn | rst) == syn tcp option maxseg size set {direction} "
            f"map @{MSS[version]}",
            f"TCP {words} a tunnel fits it",
        )
        for direction, words in (("iifname", "from"), ("oifname", "into"))
        for version, ethertype in ((4, "ip"), (6, "ip6"))
    )
    chain = NftChain("mss", rules, "filter", "forward", -250, "accept")
    name = table_name(context.site.site)
    return KernelState(tables=(NftTable("bridge", name, tunnel_sets({}), (chain,)),))


TUNNELS_PASS = Pass("tunnels", frame=_frame, tunnel=_tunnel)
