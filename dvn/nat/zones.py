"""What may cross between networks, the site and the internet: closed by default, by sets.

The rules are the same for one network and for four thousand; only sets grow. They speak about our
bridges alone: packets that neither come from nor go to one of them are not looked at.

The *site* is every private address (RFC 1918, RFC 6598, RFC 4193, link-local) and `site_prefixes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from dvn import addresses
from dvn.kernel.state import (
    LINK_GROUP,
    Element,
    Host,
    KernelState,
    NftChain,
    NftRule,
    NftSet,
    NftTable,
    table_name,
)
from dvn.spec import Network, Site
from dvn.values import Prefix

PRIVATE4 = tuple(
    IPv4Network(text)
    for text in ("10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16")
)
PRIVATE6 = tuple(IPv6Network(text) for text in ("fc00::/7", "fe80::/10"))

_SYN = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"

_FORWARD = (
    NftRule.of(
        "iifname . oifname @same accept",
        "bridged frames that br_netfilter shows here; the bridge tables judge them",
    ),
    NftRule.of("iifname @networks jump leaving", "from a network"),
    NftRule.of("oifname @networks jump entering", "to a network"),
    # Our other sites' networks are known by the group of their bridges.
    NftRule.of(
        f"meta nfproto ipv4 iifname @opened4 oifgroup != {LINK_GROUP} counter drop",
        "forwarding here was switched on for the networks alone (IPv4)",
    ),
    NftRule.of(
        f"meta nfproto @opened6 iifgroup != {LINK_GROUP} oifgroup != {LINK_GROUP} counter drop",
        "forwarding was switched on for the networks alone (IPv6)",
    ),
)

# The source check comes before any accept: an established flow is no licence to spoof.
_SOURCE = (
    NftRule.of(
        "meta nfproto ipv4 iifname . ip saddr != @sources4 counter drop",
        "a network sends from its own IPv4 prefix only",
    ),
    NftRule.of(
        "meta nfproto ipv6 iifname . ip6 saddr != @sources6 counter drop",
        "a network sends from its own IPv6 prefix only",
    ),
)
_LEAVING = (
    *_SOURCE,
    NftRule.of("oifname @networks counter drop", "no network reaches another"),
    NftRule.of("ct state established,related accept", "replies"),
    NftRule.of("ct state invalid counter drop", "no part of any connection"),
    NftRule.of("iifname @open accept", "access: open"),
    NftRule.of(
        "iifname @nat4 oifname @outside ip daddr != @site4 accept",
        "access: closed - the internet by NAT, not the site",
    ),
    NftRule.of(
        "iifname @nat6 oifname @outside ip6 daddr != @site6 accept",
        "access: closed - the internet by NAT, not the site",
    ),
    NftRule.of("counter drop", "closed by default"),
)
_ENTERING = (
    NftRule.of("ct state established,related accept", "replies"),
    NftRule.of(
        "iifname != @outside oifname @open ct state new accept",
        "access: open - the site may start connections, the internet not",
    ),
    NftRule.of("counter drop", "closed by default"),
)
_INPUT = (NftRule.of("iifname @networks jump gateway", "to this host itself"),)
_GATEWAY = (
    NftRule.of(
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept",
        "neighbour discovery, also link-local",
    ),
    *_SOURCE,
    NftRule.of("ct state established,related accept", "replies"),
    NftRule.of(
        "iifname . ip daddr @gateways4 icmp type echo-request accept", "the gateway answers ping"
    ),
    NftRule.of(
        "iifname . ip6 daddr @gateways6 icmpv6 type echo-request accept",
        "the gateway answers ping",
    ),
    NftRule.of(
        "iifname . ip daddr @gateways4 iifname . meta l4proto . th dport @services accept",
        "services offered to the network",
    ),
    NftRule.of(
        "iifname . ip6 daddr @gateways6 iifname . meta l4proto . th dport @services accept",
        "services offered to the network",
    ),
    NftRule.of("counter drop", "the gateway's own services are closed by default"),
)
_OUTPUT = (
    NftRule.of(
        # RFC 792: 8 octets of ICMP, then the packet in question; octet 9 of that is its protocol.
        "oifname @outside icmp type destination-unreachable @th,136,8 47 counter drop",
        "nobody is told which GRE tunnels are not there",
    ),
)
_MSS = (
    NftRule.of(f"iifname @networks {_SYN}", "TCP from a network fits the path both ways"),
    NftRule.of(f"oifname @networks {_SYN}", "TCP to a network fits the path both ways"),
)

_CHAINS = (
    NftChain("mss", _MSS, "filter", "forward", -150, "accept"),
    NftChain("forward", _FORWARD, "filter", "forward", 0, "accept"),
    NftChain("leaving", _LEAVING),
    NftChain("entering", _ENTERING),
    NftChain("input", _INPUT, "filter", "input", 0, "accept"),
    NftChain("gateway", _GATEWAY),
    NftChain("output", _OUTPUT, "filter", "output", 0, "accept"),
)


def compile_zones(site: Site, host: Host) -> KernelState:
    """The filter table's chains and sets for all networks of the site."""
    rows = [
        (addresses.bridge_name(tenant, name), network) for tenant, name, network in site.networks()
    ]
    if not rows:
        return KernelState()
    bridges = [bridge for bridge, _ in rows]
    outside = frozenset({(site.underlay.interface,)} if site.underlay else set())
    natted = [
        (bridge, address.version)
        for bridge, network in rows
        if network.nat and network.access == "closed"
        for address in network.nat.snat
    ]
    sets = (
        _names("networks", bridges),
        NftSet(
            "same", ("ifname", "ifname"), frozenset((b, b) for b in {*bridges, *_foreign(host)})
        ),
        _names("open", (bridge for bridge, network in rows if network.access == "open")),
        _names("nat4", (bridge for bridge, version in natted if version == 4)),
        _names("nat6", (bridge for bridge, version in natted if version == 6)),
        NftSet("outside", ("ifname",), outside),
        _site_set("site4", "ipv4_addr", PRIVATE4, site.site_prefixes),
        _site_set("site6", "ipv6_addr", PRIVATE6, site.site_prefixes),
        NftSet("sources4", ("ifname", "ipv4_addr"), _sources(rows, 4), interval=True),
        NftSet("sources6", ("ifname", "ipv6_addr"), _sources(rows, 6), interval=True),
        NftSet("gateways4", ("ifname", "ipv4_addr"), _gateways(rows, 4)),
        NftSet("gateways6", ("ifname", "ipv6_addr"), _gateways(rows, 6)),
        NftSet("services", ("ifname", "inet_proto", "inet_service"), _services(rows)),
    )
    return KernelState(tables=(NftTable("inet", table_name(site.site), sets, _CHAINS),))


def _foreign(host: Host) -> Iterator[str]:
    """Bridges of others: what br_netfilter shows of their frames is not forwarded by us."""
    return (link.name for link in host.links.values() if link.kind == "bridge" and not link.ours)


def _names(name: str, bridges: Iterable[str]) -> NftSet:
    return NftSet(name, ("ifname",), frozenset((bridge,) for bridge in bridges))


def _site_set(name: str, kind: str, private: tuple[Prefix, ...], more: Iterable[Prefix]) -> NftSet:
    version = private[0].version
    ranges = [*private, *(prefix for prefix in more if prefix.version == version)]
    # Interval sets take no overlaps.
    collapsed = collapse_addresses(ranges)  # type: ignore[type-var]
    return NftSet(name, (kind,), frozenset((str(p),) for p in collapsed), interval=True)


def _sources(rows: list[tuple[str, Network]], version: int) -> frozenset[Element]:
    return frozenset(
        (bridge, str(prefix))
        for bridge, network in rows
        for prefix in network.prefix
        if prefix.version == version
    )


def _gateways(rows: list[tuple[str, Network]], version: int) -> frozenset[Element]:
    return frozenset(
        (bridge, str(gateway.ip))
        for bridge, network in rows
        for gateway in network.gateways()
        if gateway.version == version
    )


def _services(rows: list[tuple[str, Network]]) -> frozenset[Element]:
    return frozenset(
        (bridge, *service.split("/")) for bridge, network in rows for service in network.services
    )
