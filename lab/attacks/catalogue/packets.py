"""Packets of every kind that the catalogue sends, made with scapy.

Only the modules that are needed: `scapy.all` takes four times as long to import.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address, ip_address
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP, in4_chksum
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
    in6_chksum,
)
from scapy.layers.l2 import ARP, GRE, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from lab.attacks.catalogue.draft import Packet, Tag
from lab.attacks.ground import version_of

BROADCAST = "ff:ff:ff:ff:ff:ff"
TCP_SERVICE, UDP_SERVICE = 5001, 5002


def ip(source: str, target: str, **fields: Any) -> Packet:
    """An IP header of the addresses' family; `proto` is called so in both."""
    if version_of(source) == 4:
        return IP(src=source, dst=target, **fields)
    if "proto" in fields:
        fields["nh"] = fields.pop("proto")
    return IPv6(src=source, dst=target, **fields)


def ether(source: str, target: str, payload: Packet, **fields: Any) -> Packet:
    return Ether(src=source, dst=target, **fields) / payload


def _numbered(protocol: int, head: bytes = b"") -> Callable[[str, str, Tag], Packet]:
    def make(source: str, target: str, tag: Tag) -> Packet:
        return ip(source, target, proto=protocol) / Raw(head + tag.data)

    return make


def tcp(source: str, target: str, tag: Tag, port: int = TCP_SERVICE, flags: str = "S") -> Packet:
    segment = TCP(sport=tag.port, dport=port, flags=flags, seq=1000)
    return ip(source, target) / segment / Raw(tag.data)


def udp(source: str, target: str, tag: Tag, port: int = UDP_SERVICE) -> Packet:
    return ip(source, target) / UDP(sport=tag.port, dport=port) / Raw(tag.data)


def echo(source: str, target: str, tag: Tag) -> Packet:
    if version_of(source) == 4:
        return ip(source, target) / ICMP(type=8, id=tag.port) / Raw(tag.data)
    return ip(source, target) / ICMPv6EchoRequest(id=tag.port, data=tag.data)


def _sctp(source: str, target: str, tag: Tag) -> Packet:
    """INIT with a parameter that receivers skip (RFC 9260, 3.3.2 and 3.2.1): any other first chunk
    is no connection for conntrack."""
    parameter = struct.pack("!HH", 0xC0FF, 4 + len(tag.data)) + tag.data
    body = struct.pack("!IIHHI", 1, 65535, 1, 1, 1) + parameter
    chunk = struct.pack("!BBH", 1, 0, 4 + len(body)) + body
    return ip(source, target) / SCTP(sport=tag.port, dport=5003, tag=0) / Raw(chunk)


def _dccp(source: str, target: str, tag: Tag) -> Packet:
    """REQUEST (RFC 4340, 5.1 and 12.2)."""
    head = struct.pack("!HHBBHBBHII", tag.port, 5004, 5, 0, 0, 1, 0, 0, 1, 0)
    return _summed(ip(source, target, proto=33), 33, head + tag.data)


def _udplite(source: str, target: str, tag: Tag) -> Packet:
    """RFC 3828: all of it is covered by the checksum, which is not optional."""
    return _summed(
        ip(source, target, proto=136), 136, struct.pack("!HHHH", tag.port, 5002, 0, 0) + tag.data
    )


def _summed(head: Packet, protocol: int, body: bytes) -> Packet:
    """The transport's checksum, at octet 6, over the pseudo header too."""
    of = in4_chksum if head.version == 4 else in6_chksum
    return head / Raw(body[:6] + struct.pack("!H", of(protocol, head, body)) + body[8:])


def _gre(source: str, target: str, tag: Tag) -> Packet:
    return ip(source, target) / GRE(proto=0x0800) / Raw(tag.data)


def _in_ip(source: str, target: str, tag: Tag) -> Packet:
    """The inner packet goes to the same target: a decapsulating host would take it."""
    inner = udp(source, target, tag)
    return ip(source, target, proto=4 if version_of(source) == 4 else 41) / inner


def _six_in_four(source: str, target: str, tag: Tag) -> Packet:
    return ip(source, target, proto=41) / udp("2002::1", "2002::2", tag)


PROTOCOLS4: Mapping[str, Callable[[str, str, Tag], Packet]] = {
    "tcp": tcp,
    "udp": udp,
    "icmp": echo,
    "sctp": _sctp,
    "gre": _gre,
    "esp": _numbered(50, b"\0\0\x12\x34\0\0\0\1"),
    "ah": _numbered(51, b"\x3b\4\0\0\0\0\x12\x34\0\0\0\1" + bytes(12)),
    "igmp": _numbered(2, b"\x16\0\x09\x04\xe0\0\0\xfb"),
    "ipip": _in_ip,
    "6in4": _six_in_four,
    "udplite": _udplite,
    "dccp": _dccp,
    "ospf": _numbered(89, b"\2\1\0\x2c"),
    "vrrp": _numbered(112, b"\x21\1\x64\1"),
    "experimental": _numbered(253),
}
PROTOCOLS6: Mapping[str, Callable[[str, str, Tag], Packet]] = {
    "tcp": tcp,
    "udp": udp,
    "icmp": echo,
    "sctp": _sctp,
    "gre": _gre,
    "esp": _numbered(50, b"\0\0\x12\x34\0\0\0\1"),
    "ip6ip6": _in_ip,
    "4in6": _numbered(4, b"\x45"),
    "udplite": _udplite,
    "nonext": _numbered(59),
    "experimental": _numbered(253),
}


def protocols(version: int) -> Mapping[str, Callable[[str, str, Tag], Packet]]:
    return PROTOCOLS4 if version == 4 else PROTOCOLS6


# Protocols that do not get through a NAT: conntrack cannot follow the first, and checks the
# second's checksum as if it were UDP's (net/netfilter/nf_conntrack_proto_udp.c, udplite_error).
UNTRACKED = frozenset({PROTOCOLS6["nonext"], _udplite})
# Those that several machines can speak to one host from one public address; without ports there is
# only one flow for all of them.
PORTED = frozenset({tcp, udp, echo, _sctp})


def arp(
    ether_source: str, sender_mac: str, sender: str, target: str, tag: Tag, *,
    op: int = 2, ether_target: str = BROADCAST,
) -> Packet:  # fmt: skip
    """The marker is in the padding of the frame."""
    body = ARP(op=op, hwsrc=sender_mac, psrc=sender, hwdst="00:00:00:00:00:00", pdst=target)
    return ether(ether_source, ether_target, body / Raw(tag.data))


def _option(tag: Tag) -> Packet:
    """The marker in an option for experiments (RFC 4727): length in units of 8 octets."""
    return ICMPv6NDOptUnknown(type=253, len=3, data=tag.data + bytes(6))


def advert(
    source: str, about: str, mac: str, tag: Tag, target: str = "ff02::1", *,
    before: Packet = None, after: Packet = None,
) -> Packet:  # fmt: skip
    """A neighbour advertisement that overrides what is known (RFC 4861, 4.4); other options may
    stand around the one with the MAC address."""
    body = ICMPv6ND_NA(tgt=about, R=0, S=0, O=1)
    for each in (before, ICMPv6NDOptDstLLAddr(lladdr=mac), after):
        body = body if each is None else body / each
    return IPv6(src=source, dst=target, hlim=255) / body / _option(tag)


def solicit(source: str, about: str, mac: str, tag: Tag) -> Packet:
    """A neighbour solicitation to the target's solicited-node address (RFC 4861, 4.3), without a
    MAC address for duplicate address detection (RFC 4862, 5.4.2)."""
    body = ICMPv6ND_NS(tgt=about)
    if mac:
        body = body / ICMPv6NDOptSrcLLAddr(lladdr=mac)
    return IPv6(src=source, dst=solicited(about), hlim=255) / body / _option(tag)


def solicited(address: str) -> str:
    """RFC 4291, 2.7.1."""
    low = int(IPv6Address(address)) & 0xFFFFFF
    return str(IPv6Address(int(IPv6Address("ff02::1:ff00:0")) | low))


def option(tag: Tag) -> Packet:
    """The marker as the last option of any neighbour discovery message."""
    return _option(tag)


def multicast_mac(address: str) -> str:
    """RFC 1112, 6.4 and RFC 2464, 7."""
    packed = ip_address(address).packed
    if len(packed) == 4:
        return f"01:00:5e:{packed[1] & 0x7F:02x}:{packed[2]:02x}:{packed[3]:02x}"
    return "33:33:" + ":".join(f"{octet:02x}" for octet in packed[-4:])
