"""What may come in through a port or a tunnel: rules in nft's bridge family.

They stand at prerouting, before the bridge learns or forwards: frames to the gateway and frames to
other machines meet the same checks, whether br_netfilter is loaded or not. Nothing is accepted
before its source is checked. What is allowed is named, and the rest dropped, also where a header
cannot be read: a rule that cannot load a field does not match (nft_payload.c), so that `!= drop`
alone would let truncated headers pass. Later fragments are told apart before any field of the
transport header is looked at: kernels differ in what they read there.

The rules are the same for one network and for 4,000; sets and maps (claims.py) do the work. The
packet mark holds the network's number meanwhile, because nothing else can stand in a set's key
beside an address, and is 0 afterwards. The uplink, behind which the site's own switches guard
their ports, may send from other prefixes, serve DHCP and announce routers; nobody at all may be
the gateway, or whom another port or tunnel is pinned to.
docs/explanation/isolation.md gives each rule's reason and source.
"""

from __future__ import annotations

from collections.abc import Iterable

from dvn import prefixsets
from dvn.kernel.state import LINK_GROUP, KernelState, NftChain, NftRule, NftTable, table_name
from dvn.passes import Context, Pass
from dvn.vlans import claims

FILTER, FIRST = "filter", -300
# Cloud metadata services: AWS (EC2 user guide), Alibaba, Azure's host (168.63.129.16); IPv6 of AWS,
# Google and OpenStack. AWS' own IPv4 address, and most clouds', is in 169.254.0.0/16.
METADATA4 = "{ 100.100.100.200, 168.63.129.16 }"
METADATA6 = "{ fd00:ec2::254, fd20:ce::254, fe80::a9fe:a9fe }"
# Devices that take every GRE packet nobody else takes (VU#199397), once somebody sets them up.
FALLBACKS = '{ "gre0", "gretap0", "erspan0", "ip6gre0", "ip6tnl0", "sit0", "tunl0" }'

_UPLINK = NftRule.of("iifname @uplinks return", "the site's own switches guard what is behind them")
# Most packets are these; what would be asked after them concerns others.
SHORT_CUTS = (
    NftRule.of("ip version 4 meta l4proto tcp return", "TCP"),
    NftRule.of("ip6 nexthdr tcp return", "TCP"),
)


def _source(field: str, version: int, nobody: str = "") -> tuple[NftRule, ...]:
    """Whether this port may send from this address; what may goes back to the caller. `nobody`: the
    chain for who has no address yet."""
    unspecified = "::" if version == 6 else "0.0.0.0"
    special = []
    if nobody:
        why = "before there is an address"
        special.append(NftRule.of(f"{field} {unspecified} goto {nobody}", why))
    if version == 6:
        why = "link-local addresses make themselves"
        special.append(NftRule.of(f"{field} fe80::/10 return", why))
    return (
        NftRule.of(f"iifname . {field} @port{version} return", "its own"),
        NftRule.of(
            f"meta mark . {field} @owned{version} counter drop",
            f"the gateway's IPv{version} address, or pinned to another port, or nobody's",
        ),
        *special,
        NftRule.of(
            f"iifname @pinned{version} counter drop",
            f"pinned to other IPv{version} addresses than this",
        ),
        _UPLINK,
        NftRule.of(
            f"meta mark . {prefixsets.masked(field, version)} "
            f"@{prefixsets.exact('prefix', version)} return",
            "of the network's prefix, of the usual length",
        ),
        NftRule.of(f"meta mark . {field} @prefix{version} return", "of the network's prefix"),
        NftRule.of("counter drop", f"IPv{version} source outside the network's prefix"),
    )


_ISOLATION = (
    # A lookup that finds nothing ends the rule: foreign frames keep their mark, and go on.
    NftRule.of(
        "meta mark set iifname map @network_of jump frame",
        "through a port, tunnel or uplink: the network's number, for the sets",
    ),
)
# Only where the kernel knows a frame's bridge here (CONFIG_NFT_BRIDGE_META).
_UNKNOWN_IN = NftRule.of(
    "meta ibrname @bridges iifname != @members counter drop",
    "from an interface in our bridge that nobody declared",
)
_UNKNOWN_OUT = NftRule.of(
    "meta obrname @bridges oifname != @members counter drop",
    "to an interface in our bridge that nobody declared",
)
_UNKNOWN = (
    NftRule.of("iifname @members goto known", "from whom we know"),
    NftRule.of(
        "oifname @members counter drop", "from an interface in our bridge that nobody declared"
    ),
)
_KNOWN = (
    NftRule.of(
        "oifname != @members counter drop", "to an interface in our bridge that nobody declared"
    ),
)

# br_netfilter shows them to conntrack, which holds fragments back until they are whole, and to
# everybody's NAT: not what is untracked (nf_defrag_ipv4.c, nf_conntrack_core.c). What the kernel
# calls `host` here is for the gateway's own MAC address (br_handle_frame).
ONLY_BRIDGED = NftRule.of("meta pkttype != host notrack", "only bridged: no connection of ours")
_FRAME = (
    NftRule.of("jump checks", "all of it"),
    ONLY_BRIDGED,
    NftRule.of("meta mark set 0", "the mark is nobody's again"),
)
_CHECKS = (
    NftRule.of("jump mac_source", "source MAC address"),
    NftRule.of(
        "ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 counter drop",
        "STP, LLDP and other link-local multicast",
    ),
    NftRule.of(
        "ether type vmap { arp : goto arp_frame, ip : goto ipv4_packet, ip6 : goto ipv6_packet }",
        "each by its kind",
    ),
    NftRule.of("counter drop", "neither ARP, IPv4 nor IPv6: tags, LLC/SNAP, anything"),
)
_MAC_SOURCE = (
    NftRule.of("iifname . ether saddr @port_mac return", "its own"),
    NftRule.of(
        "meta mark . ether saddr @owned_mac counter drop",
        "the gateway's MAC address, or pinned to another port",
    ),
    NftRule.of("iifname @pinned_mac counter drop", "pinned to another MAC address than this"),
)

_ARP_FRAME = (
    NftRule.of(
        "arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp operation { request, reply } "
        "goto arp_sender",
        "requests and replies for IPv4 over Ethernet",
    ),
    NftRule.of("counter drop", "any other ARP"),
)
_ARP_SENDER = (
    NftRule.of(
        "meta mark . arp saddr ether @owned_mac iifname . arp saddr ether != @port_mac "
        "counter drop",
        "ARP for the gateway's MAC address, or one pinned to another port",
    ),
    NftRule.of(
        "iifname @pinned_mac iifname . arp saddr ether != @port_mac counter drop",
        "ARP for another MAC address than its own",
    ),
    NftRule.of(
        "arp operation request arp saddr ip 0.0.0.0 goto arp_probe", "a probe claims its target"
    ),
    *_source("arp saddr ip", 4),
)
_ARP_PROBE = (
    NftRule.of("iifname . arp daddr ip @port4 return", "its own"),
    NftRule.of(
        "meta mark . arp daddr ip @owned4 counter drop", "a probe for somebody else's address"
    ),
    NftRule.of("iifname @pinned4 counter drop", "a probe for another address than its own"),
)

_IPV4_PACKET = (
    NftRule.of("jump ipv4_source", "source address"),
    NftRule.of("ip daddr 169.254.0.0/16 counter drop", "link-local, metadata services"),
    NftRule.of(f"ip daddr {METADATA4} counter drop", "metadata services"),
    SHORT_CUTS[0],
    _UPLINK,
    NftRule.of(
        "ip frag-off & 0x1fff != 0 meta l4proto 0-255 return",
        "a later fragment; the first is looked at",
    ),
    NftRule.of("meta l4proto icmp goto icmp_packet", "ICMP"),
    NftRule.of("udp dport 68 counter drop", "a DHCP server that nobody declared"),
    NftRule.of("ip version 4 meta l4proto 0-255 return", "a whole IPv4 header"),
    NftRule.of("counter drop", "no whole IPv4 header"),
)
_IPV4_UNSPECIFIED = (
    NftRule.of(
        "ip daddr 255.255.255.255 udp sport 68 udp dport 67 goto dhcp_request",
        "asks for an address",
    ),
    _UPLINK,
    NftRule.of("counter drop", "no source address"),
)
_DHCP_REQUEST = (
    NftRule.of(
        "iifname @pinned_mac iifname . @th,288,48 != @nd_port_mac counter drop",
        "DHCP for another MAC address than its own",
    ),
)
_ICMP_PACKET = (
    NftRule.of(
        "icmp type { echo-request, echo-reply, destination-unreachable, time-exceeded, "
        "parameter-problem } return",
        "echo and errors",
    ),
    NftRule.of("counter drop", "ICMP redirects, router advertisements and the like"),
)

_IPV6_PACKET = (
    NftRule.of("jump ipv6_source", "source address"),
    NftRule.of(f"ip6 daddr {METADATA6} counter drop", "metadata services"),
    SHORT_CUTS[1],
    NftRule.of(
        "frag frag-off != 0 meta l4proto 0-255 return", "a later fragment; the first is looked at"
    ),
    NftRule.of("meta l4proto ipv6-icmp goto icmpv6_packet", "ICMPv6, also behind other headers"),
    _UPLINK,
    NftRule.of("udp dport 546 counter drop", "a DHCPv6 server that nobody declared"),
    NftRule.of("@th,24,8 0-255 return", "a whole chain of headers, also in a first fragment"),
    NftRule.of("counter drop", "no whole chain of IPv6 headers"),
)
_IPV6_UNSPECIFIED = (
    NftRule.of(
        "ip6 daddr ff02::/16 icmpv6 type { mld-listener-report, mld2-listener-report, "
        "nd-router-solicit } return",
        "multicast reports and the question for routers",
    ),
    NftRule.of(
        "ip6 daddr ff02::/16 icmpv6 type nd-neighbor-solicit exthdr frag missing goto nd_target",
        "duplicate address detection claims its target",
    ),
    NftRule.of("counter drop", "no source address"),
)
_ICMPV6_PACKET = (
    NftRule.of(
        "icmpv6 type { 133-137 } exthdr frag exists counter drop",
        "neighbour discovery is never fragmented",
    ),
    NftRule.of(
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } goto nd_packet",
        "neighbour discovery",
    ),
    NftRule.of(
        "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, "
        "echo-request, echo-reply, mld-listener-report, mld-listener-done, mld2-listener-report, "
        "nd-router-solicit } return",
        "echo, errors, multicast reports",
    ),
    NftRule.of("iifname @uplinks icmpv6 type 0-255 return", "the site's own routers"),
    NftRule.of("counter drop", "router advertisements, redirects and the like"),
)
# Options begin 24 bytes into the message (RFC 4861, 4.3 and 4.4): type, length, MAC address.
_ND_PACKET = (
    NftRule.of(
        "@th,192,8 { 1, 2 } meta mark . @th,208,48 @nd_owned_mac "
        "iifname . @th,208,48 != @nd_port_mac counter drop",
        "ND with the gateway's MAC address, or one pinned to another port",
    ),
    NftRule.of(
        "iifname @pinned_mac @th,192,8 { 1, 2 } iifname . @th,208,48 != @nd_port_mac counter drop",
        "ND with another MAC address than its own",
    ),
    NftRule.of(
        "iifname @pinned_mac @th,192,8 != { 1, 2 } ip6 length > 32 counter drop",
        "ND with options before the MAC address",
    ),
    NftRule.of(
        "iifname @pinned_mac @th,256,8 { 1, 2 } counter drop", "ND with a second MAC address"
    ),
    NftRule.of("icmpv6 type nd-neighbor-solicit return", "a question"),
    NftRule.of("goto nd_target", "an answer claims its target"),
)
# The target is 8 bytes into the message, 16 long.
_ND_TARGET = (
    NftRule.of("iifname . @th,64,128 @nd_port6 return", "its own"),
    NftRule.of(
        "meta mark . @th,64,128 @nd_owned6 counter drop",
        "ND for the gateway's address, or one pinned to another port",
    ),
    NftRule.of("@th,64,10 0x3fa return", "link-local addresses make themselves"),
    NftRule.of("iifname @pinned6 counter drop", "ND for another address than its own"),
    NftRule.of("@th,184,8 0-255 return", "a whole target"),
    NftRule.of("counter drop", "no whole target"),
)

CHAINS = (
    NftChain("frame", _FRAME),
    NftChain("checks", _CHECKS),
    NftChain("mac_source", _MAC_SOURCE),
    NftChain("arp_frame", _ARP_FRAME),
    NftChain("arp_sender", _ARP_SENDER),
    NftChain("arp_probe", _ARP_PROBE),
    NftChain("ipv4_packet", _IPV4_PACKET),
    NftChain("ipv4_source", _source("ip saddr", 4, "ipv4_unspecified")),
    NftChain("ipv4_unspecified", _IPV4_UNSPECIFIED),
    NftChain("dhcp_request", _DHCP_REQUEST),
    NftChain("icmp_packet", _ICMP_PACKET),
    NftChain("ipv6_packet", _IPV6_PACKET),
    NftChain("ipv6_source", _source("ip6 saddr", 6, "ipv6_unspecified")),
    NftChain("ipv6_unspecified", _IPV6_UNSPECIFIED),
    NftChain("icmpv6_packet", _ICMPV6_PACKET),
    NftChain("nd_packet", _ND_PACKET),
    NftChain("nd_target", _ND_TARGET),
)
_FALLBACK = (
    NftRule.of(
        f"iifname {FALLBACKS} oifgroup {LINK_GROUP} counter drop",
        "to a network through a tunnel that takes packets from anybody",
    ),
)


def _frame(context: Context) -> KernelState:
    name = table_name(context.site.site)
    bridge = NftTable("bridge", name, claims.SETS, tuple(_bridge_chains(context)))
    fallback = NftChain("fallback", _FALLBACK, FILTER, "forward", -10, "accept")
    return KernelState(tables=(bridge, NftTable("inet", name, chains=(fallback,))))


def _bridge_chains(context: Context) -> Iterable[NftChain]:
    yield from CHAINS
    known = context.host.bridge_meta
    rules = (_UNKNOWN_IN, *_ISOLATION) if known else _ISOLATION
    yield NftChain("isolation", rules, FILTER, "prerouting", FIRST, "accept")
    yield NftChain("known", _KNOWN)
    yield NftChain("unknown", _UNKNOWN, FILTER, "forward", FIRST, "accept")
    out = (_UNKNOWN_OUT,) if known else ()
    yield NftChain("unknown_out", out, FILTER, "output", FIRST, "accept")


ISOLATION = Pass(
    "isolation", frame=_frame, network=claims.network_claims, tunnel=claims.tunnel_claims
)
