"""Router advertisements (RFC 4861, 4.2; options: MTU 4.6.4, prefix 4.6.2, RFC 8106 for DNS)."""

from __future__ import annotations

import struct
from ipaddress import IPv6Network

from dvn.services.config import Family, Service
from dvn.services.names import packed_name

ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT = 133, 134
ALL_NODES = "ff02::1"
HOP_LIMIT = 255  # nobody beyond the link can send one

INTERVAL_S = 200.0  # between unsolicited ones
LIFETIME_S = 1800
FIRST = 3  # the first few follow each other sooner (RFC 4861, 6.2.4)
FIRST_INTERVAL_S = 16.0
APART_S = 3.0  # at least between two to all nodes (6.2.6)

_MANAGED, _OTHER = 0x80, 0x40
_ON_LINK = 0x80
_FOREVER = 0xFFFFFFFF
_SOURCE_MAC, _PREFIX, _MTU, _RDNSS, _DNSSL = 1, 3, 5, 25, 31


def advertisement(service: Service, family: Family, lifetime: int = LIFETIME_S) -> bytes:
    """The message, its checksum left to the kernel. Addresses come by DHCPv6 and in no other way:
    each one in use is known here. `lifetime` 0: this router goes (6.2.5)."""
    prefix = IPv6Network((int(family.gateway), family.length), strict=False)
    parts = [
        struct.pack("!BBHBBHII", ROUTER_ADVERTISEMENT, 0, 0, 64, _MANAGED | _OTHER, lifetime, 0, 0),
        struct.pack("!BB", _SOURCE_MAC, 1) + bytes.fromhex(service.mac.replace(":", "")),
        struct.pack("!BBHI", _MTU, 1, 0, service.mtu),
        struct.pack("!BBBBIII", _PREFIX, 4, prefix.prefixlen, _ON_LINK, _FOREVER, _FOREVER, 0)
        + prefix.network_address.packed,
    ]
    if family.resolvers:
        size = 1 + 2 * len(family.resolvers)
        parts.append(struct.pack("!BBHI", _RDNSS, size, 0, lifetime))
        parts += [address.packed for address in family.resolvers]
    if service.domain:
        name = packed_name(service.domain)
        name += bytes(-len(name) % 8)
        parts.append(struct.pack("!BBHI", _DNSSL, 1 + len(name) // 8, 0, lifetime) + name)
    return b"".join(parts)
