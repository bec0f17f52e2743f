"""What may cross between networks, the site and the internet: closed by default, by sets.

The rules are the same for one network and for four thousand; only sets grow. They speak about our
bridges alone: packets that neither come from nor go to one of them are not looked at. What comes
from a network shows here as its *router's* (VRF), what goes to one as its *bridge's*; neighbour
discovery is the bridge's both ways.

The *site* is every private address (RFC 1918, RFC 6598, RFC 4193, link-local) and `site_prefixes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from dvn import prefixsets
from dvn.allocate import mark_of
from dvn.kernel.state import (
    LINK_GROUP,
    Element,
    Host,
    KernelState,
    NftChain,
    NftRule,
    NftSet,
    NftTable,
    grown,
    table_name,
)
from dvn.passes import Context, NetworkOf, Pass
from dvn.services.compile import served
from dvn.spec import Network
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

# The source check comes before any accept: an established flow is no licence to spoof, nor is
# another network's.
_SOURCE = (
    NftRule.of(
        f"meta nfproto ipv4 iifname . {prefixsets.masked('ip saddr', 4)} "
        f"!= @{prefixsets.exact('sources', 4)} iifname . ip saddr != @sources4 counter drop",
        "a network sends from its own IPv4 prefix only",
    ),
    NftRule.of(
        f"meta nfproto ipv6 iifname . {prefixsets.masked('ip6 saddr', 6)} "
        f"!= @{prefixsets.exact('sources', 6)} iifname . ip6 saddr != @sources6 counter drop",
        "a network sends from its own IPv6 prefix only",
    ),
    NftRule.of(
        "iifname . ct mark != @owns counter drop", "a connection of another network is not joined"
    ),
)
_LEAVING = (
    *_SOURCE,
    NftRule.of("iifname . oifname @joined jump crossing", "to a network that a policy joins"),
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
    NftRule.of(
        "iifname . ip saddr @single_from4 oifname @outside ip daddr != @site4 accept",
        "a machine with its own address outside",
    ),
    NftRule.of(
        "iifname . ip6 saddr @single_from6 oifname @outside ip6 daddr != @site6 accept",
        "a machine with its own address outside",
    ),
    NftRule.of("counter drop", "closed by default"),
)
_CROSSING = (
    NftRule.of("ct state established,related accept", "replies"),
    NftRule.of("iifname . oifname @may_start ct state new accept", "a policy: everything"),
    NftRule.of(
        "iifname . oifname . meta l4proto . th dport @may_use ct state new accept",
        "a policy: these services",
    ),
)
_ENTERING = (
    NftRule.of(
        "oifname . ct mark != @owns counter drop", "a connection of another network is not joined"
    ),
    NftRule.of("ct state established,related accept", "replies"),
    # RFC 2827 for what comes in. Only open networks' addresses are the site's as well; those of a
    # closed one may belong to somebody else out there.
    NftRule.of("ip saddr @inside4 counter drop", "an address of the inside, from outside"),
    NftRule.of("ip6 saddr @inside6 counter drop", "an address of the inside, from outside"),
    NftRule.of(
        "ct status dnat iifname @outside ip saddr != @site4 ct state new accept",
        "a forwarded port, or a machine's own address: from the internet",
    ),
    NftRule.of(
        "ct status dnat iifname @outside ip6 saddr != @site6 ct state new accept",
        "a forwarded port, or a machine's own address: from the internet",
    ),
    NftRule.of(
        "ct status dnat oifname @open ct state new accept",
        "access: open - from the site, too",
    ),
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
    # Before there is an address of the network; who has one asks with it.
    NftRule.of(
        "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 "
        "iifname . meta l4proto . th dport @services accept",
        "DHCP, where it is served",
    ),
    NftRule.of(
        "iifname @advertised ip6 saddr fe80::/10 ip6 daddr ff02::1:2 "
        "udp sport 546 udp dport 547 accept",
        "DHCPv6, where it is served",
    ),
    NftRule.of(
        "iifname @advertised icmpv6 type nd-router-solicit ip6 hoplimit 255 accept",
        "the question for routers, where there is one that answers",
    ),
    *_SOURCE,
    NftRule.of(
        "ip daddr 255.255.255.255 udp sport 68 udp dport 67 "
        "iifname . meta l4proto . th dport @services accept",
        "DHCP of who lost its server",
    ),
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
    NftChain("crossing", _CROSSING),
    NftChain("entering", _ENTERING),
    NftChain("input", _INPUT, "filter", "input", 0, "accept"),
    NftChain("gateway", _GATEWAY),
    NftChain("output", _OUTPUT, "filter", "output", 0, "accept"),
)


def _frame(context: Context) -> KernelState:
    """Chains, and the sets that no network grows; those of the networks are empty here."""
    site = context.site
    outside = frozenset({(site.underlay.interface,)} if site.underlay else set())
    sets = (
        NftSet("outside", ("ifname",), outside),
        _site_set("site4", "ipv4_addr", PRIVATE4, site.site_prefixes),
        _site_set("site6", "ipv6_addr", PRIVATE6, site.site_prefixes),
        *_SETS.values(),
        _SETS["same"].filled(frozenset((name, name) for name in _foreign(context.host))),
        # Who is in no network may send nothing: its packets have nobody's source.
        _SETS["networks"].filled(frozenset((name,) for name in site.closed)),
    )
    return KernelState(tables=(NftTable("inet", table_name(site.site), sets, _CHAINS),))


def _network(context: Context, owned: NetworkOf) -> KernelState:
    """What the sets hold of one network."""
    bridge, router, network = owned.bridge, owned.router, owned.network
    if context.site.here is not None:
        # Only bridged here: nothing of it is for this host, or goes through it in any other way.
        only = (
            _SETS["networks"].filled(frozenset({(bridge,)})),
            _SETS["same"].filled(frozenset({(bridge, bridge)})),
        )
        return KernelState(tables=(NftTable("inet", table_name(context.site.site), only),))
    mark = str(mark_of(context.numbers[owned.tenant, owned.name]))
    both: set[Element] = {(bridge,), (router,)}
    elements: dict[str, set[Element]] = {
        "networks": both,
        "same": {(bridge, bridge)},
        "owns": {(bridge, mark), (router, mark)},
    }
    if network.access == "open":
        elements["open"] = both
        for prefix in network.prefix:
            elements.setdefault(f"inside{prefix.version}", set()).add((str(prefix),))
    for prefix in network.prefix:
        where, written = prefixsets.place("sources", prefix)
        elements.setdefault(where, set()).add((router, written))
    for version in (4, 6):
        elements[f"gateways{version}"] = {
            (router, str(own.ip)) for own in network.gateways() if own.version == version
        }
        if network.access == "closed" and network.nat:
            if _translated(network, version):
                elements[f"nat{version}"] = {(router,)}
            elements[f"single_from{version}"] = {
                (router, str(inside))
                for inside in network.nat.one_to_one
                if inside.version == version
            }
    offered = (*network.services, *served(network))
    elements["services"] = {(router, *service.split("/")) for service in offered}
    if "udp/547" in served(network):
        elements["advertised"] = both
    sets = grown(_SETS, elements)
    return KernelState(tables=(NftTable("inet", table_name(context.site.site), sets),))


def _translated(network: Network, version: int) -> bool:
    here = any(prefix.version == version for prefix in network.prefix)
    return here and network.nat is not None and network.nat.translates(version)


# name of the set, types of its key, whether a part of the key is a prefix
_GROWN: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("networks", ("ifname",), False),
    ("same", ("ifname", "ifname"), False),
    ("open", ("ifname",), False),
    ("nat4", ("ifname",), False),
    ("nat6", ("ifname",), False),
    ("inside4", ("ipv4_addr",), True),
    ("inside6", ("ipv6_addr",), True),
    ("single_from4", ("ifname", "ipv4_addr"), False),
    ("single_from6", ("ifname", "ipv6_addr"), False),
    ("owns", ("ifname", "mark"), False),
    ("sources4", ("ifname", "ipv4_addr"), True),
    ("sources6", ("ifname", "ipv6_addr"), True),
    (prefixsets.exact("sources", 4), ("ifname", "ipv4_addr"), False),
    (prefixsets.exact("sources", 6), ("ifname", "ipv6_addr"), False),
    ("gateways4", ("ifname", "ipv4_addr"), False),
    ("gateways6", ("ifname", "ipv6_addr"), False),
    ("services", ("ifname", "inet_proto", "inet_service"), False),
    ("advertised", ("ifname",), False),
)
_SETS = {name: NftSet(name, kind, interval=interval) for name, kind, interval in _GROWN}


def _foreign(host: Host) -> Iterator[str]:
    """Bridges of others: what br_netfilter shows of their frames is not forwarded by us."""
    return (link.name for link in host.links_by_site.get(None, ()) if link.kind == "bridge")


def _site_set(name: str, kind: str, private: tuple[Prefix, ...], more: Iterable[Prefix]) -> NftSet:
    version = private[0].version
    ranges = [*private, *(prefix for prefix in more if prefix.version == version)]
    # Interval sets take no overlaps.
    collapsed = collapse_addresses(ranges)  # type: ignore[type-var]
    return NftSet(name, (kind,), frozenset((str(p),) for p in collapsed), interval=True)


ZONES = Pass("zones", frame=_frame, network=_network)
