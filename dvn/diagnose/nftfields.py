"""The headers that rules look into: where each field stands, how wide it is, what its values are.

Offsets in bits from the link, network or transport header: RFC 791, 792, 826, 4443, 8200, 9293,
768, IEEE 802.3 and 802.1Q; the names are nft(8)'s.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Bits at an offset from a header, and the type of the value."""

    offset: int
    length: int
    type: str


def _at(offset: int, length: int, type_: str = "integer") -> Place:
    return Place(offset, length, type_)


_PORTS = {"sport": _at(0, 16, "inet_service"), "dport": _at(16, 16, "inet_service")}
_ICMP = {
    "code": _at(8, 8, "icmp_code"),
    "checksum": _at(16, 16),
    "id": _at(32, 16),
    "sequence": _at(48, 16),
    "mtu": _at(48, 16),
}

FIELDS: dict[str, dict[str, Place]] = {
    "ether": {
        "daddr": _at(0, 48, "ether_addr"),
        "saddr": _at(48, 48, "ether_addr"),
        "type": _at(96, 16, "ether_type"),
    },
    "vlan": {
        "pcp": _at(112, 3),
        "dei": _at(115, 1),
        "cfi": _at(115, 1),
        "id": _at(116, 12),
        "type": _at(128, 16, "ether_type"),
    },
    "arp": {
        "htype": _at(0, 16),
        "ptype": _at(16, 16, "ether_type"),
        "hlen": _at(32, 8),
        "plen": _at(40, 8),
        "operation": _at(48, 16, "arp_op"),
        "saddr ether": _at(64, 48, "ether_addr"),
        "saddr ip": _at(112, 32, "ipv4_addr"),
        "daddr ether": _at(144, 48, "ether_addr"),
        "daddr ip": _at(192, 32, "ipv4_addr"),
        "saddr": _at(0, 0),
        "daddr": _at(0, 0),
    },
    "ip": {
        "version": _at(0, 4),
        "hdrlength": _at(4, 4),
        "dscp": _at(8, 6, "dscp"),
        "ecn": _at(14, 2),
        "length": _at(16, 16),
        "id": _at(32, 16),
        "frag-off": _at(48, 16),
        "ttl": _at(64, 8),
        "protocol": _at(72, 8, "inet_proto"),
        "checksum": _at(80, 16),
        "saddr": _at(96, 32, "ipv4_addr"),
        "daddr": _at(128, 32, "ipv4_addr"),
    },
    "ip6": {
        "version": _at(0, 4),
        "dscp": _at(4, 6, "dscp"),
        "ecn": _at(10, 2),
        "flowlabel": _at(12, 20),
        "length": _at(32, 16),
        "nexthdr": _at(48, 8, "inet_proto"),
        "hoplimit": _at(56, 8),
        "saddr": _at(64, 128, "ipv6_addr"),
        "daddr": _at(192, 128, "ipv6_addr"),
    },
    "tcp": {
        **_PORTS,
        "sequence": _at(32, 32),
        "ackseq": _at(64, 32),
        "doff": _at(96, 4),
        "flags": _at(104, 8, "tcp_flag"),
        "window": _at(112, 16),
        "checksum": _at(128, 16),
        "urgptr": _at(144, 16),
    },
    "udp": {**_PORTS, "length": _at(32, 16), "checksum": _at(48, 16)},
    "th": dict(_PORTS),
    "icmp": {"type": _at(0, 8, "icmp_type"), **_ICMP, "gateway": _at(32, 32)},
    "icmpv6": {
        "type": _at(0, 8, "icmpv6_type"),
        **_ICMP,
        "mtu": _at(32, 32),
        "parameter-problem": _at(32, 32),
        "max-delay": _at(32, 16),
        "taddr": _at(64, 128, "ipv6_addr"),
        "daddr": _at(192, 128, "ipv6_addr"),
    },
    "gre": {"flags": _at(0, 13), "version": _at(13, 3), "protocol": _at(16, 16, "ether_type")},
}

BASES = {
    "ether": "ll", "vlan": "ll", "arp": "nh", "ip": "nh", "ip6": "nh",
    "tcp": "th", "udp": "th", "th": "th", "icmp": "th", "icmpv6": "th", "gre": "th",
}  # fmt: skip

# Bits from the beginning of the IPv6 extension header.
EXTENSIONS: dict[str, dict[str, Place]] = {
    "hbh": {"nexthdr": _at(0, 8, "inet_proto"), "hdrlength": _at(8, 8)},
    "dst": {"nexthdr": _at(0, 8, "inet_proto"), "hdrlength": _at(8, 8)},
    "rt": {
        "nexthdr": _at(0, 8, "inet_proto"),
        "hdrlength": _at(8, 8),
        "type": _at(16, 8),
        "seg-left": _at(24, 8),
    },
    "frag": {
        "nexthdr": _at(0, 8, "inet_proto"),
        "reserved": _at(8, 8),
        "frag-off": _at(16, 13),
        "reserved2": _at(29, 2),
        "more-fragments": _at(31, 1),
        "id": _at(32, 32),
    },
}
EXTENSION_NUMBERS = {"hbh": 0, "rt": 43, "frag": 44, "dst": 60, "mh": 135, "ah": 51}

META_KEYS = frozenset(
    [
        "iif",
        "oif",
        "iifname",
        "oifname",
        "iifgroup",
        "oifgroup",
        "iiftype",
        "oiftype",
        "iifkind",
        "oifkind",
        "sdif",
        "sdifname",
        "nfproto",
        "protocol",
        "l4proto",
        "mark",
        "length",
        "pkttype",
        "ibrname",
        "obrname",
        "priority",
        "skuid",
        "skgid",
        "ipsec",
    ]
)
META_TYPES = {
    "iif": "ifname", "oif": "ifname", "iifname": "ifname", "oifname": "ifname", "sdif": "ifname",
    "sdifname": "ifname", "ibrname": "ifname", "obrname": "ifname", "iifgroup": "devgroup",
    "oifgroup": "devgroup", "iifkind": "ifname", "oifkind": "ifname", "nfproto": "nf_proto",
    "protocol": "ether_type", "l4proto": "inet_proto", "mark": "mark", "pkttype": "pkt_type",
    "ipsec": "boolean",
}  # fmt: skip

CT_KEYS = frozenset(
    [
        "state",
        "status",
        "mark",
        "zone",
        "direction",
        "saddr",
        "daddr",
        "protocol",
        "proto-src",
        "proto-dst",
        "id",
        "label",
        "expiration",
        "helper",
        "l3proto",
    ]
)
CT_TYPES = {
    "state": "ct_state", "status": "ct_status", "direction": "ct_dir", "mark": "mark",
    "zone": "integer", "ip saddr": "ipv4_addr", "ip daddr": "ipv4_addr", "ip6 saddr": "ipv6_addr",
    "ip6 daddr": "ipv6_addr", "protocol": "inet_proto", "proto-src": "inet_service",
    "proto-dst": "inet_service", "l3proto": "nf_proto",
}  # fmt: skip
