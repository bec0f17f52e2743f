"""Frames from a description: what `dvn explain` walks and what tests send, with good checksums."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from dvn.diagnose.frames import (
    ETH_P_ARP,
    ETH_P_IP,
    ETH_P_IP6,
    FRAGMENT,
    ICMP,
    ICMP6,
    TCP,
    UDP,
    Ip,
    Packet,
    mac_bytes,
)
from dvn.diagnose.nfttypes import NAMES
from dvn.diagnose.tracking import internet_sum, pseudo_header

BROADCAST = "ff:ff:ff:ff:ff:ff"
_FLAGS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32}
_ECHO = {4: "echo-request", 6: "echo-request"}


@dataclass(frozen=True)
class Described:
    """A packet in words. `protocol`: tcp, udp, icmp, icmpv6, arp, or a number. `flags` of TCP as
    letters (`SA`); `kind` of ICMP or ARP by nft's names; `offset` of a fragment in octets."""

    source: str
    destination: str
    protocol: str = "tcp"
    sport: int = 40000
    dport: int = 80
    flags: str = "S"
    kind: str = ""
    code: int = 0
    mss: int = 0
    ttl: int = 64
    mac: str = "02:00:00:00:00:02"
    to_mac: str = "02:00:00:00:00:01"
    tags: tuple[int, ...] = ()
    payload: bytes = b""
    offset: int = 0
    more: bool = False
    dont_fragment: bool = False
    extensions: bytes = b""  # IPv6: complete extension headers; the first's number is `next_header`
    next_header: int = -1
    target_mac: str = ""  # ARP and ND: the sender's MAC inside; `mac` unless given
    state: str = ""


def build(what: Described) -> Packet:
    """The frame. ValueError for addresses of two families, or an unknown protocol or kind."""
    if what.protocol == "arp":
        body, ethertype = _arp(what), ETH_P_ARP
    else:
        source, to = ip_address(what.source), ip_address(what.destination)
        if isinstance(source, IPv4Address) and isinstance(to, IPv4Address):
            body, ethertype = _ipv4(what, source, to), ETH_P_IP
        elif isinstance(source, IPv6Address) and isinstance(to, IPv6Address):
            body, ethertype = _ipv6(what, source, to), ETH_P_IP6
        else:
            raise ValueError(f"{source} and {to} are of two families")
    head = mac_bytes(what.to_mac) + mac_bytes(what.mac)
    tags = b"".join(struct.pack("!HH", 0x8100, tag) for tag in what.tags)
    return Packet(head + tags + ethertype.to_bytes(2, "big") + body, what.state)


def protocol_number(name: str, version: int) -> int:
    if name == "icmp" and version == 6:
        name = "icmpv6"
    known = NAMES["inet_proto"].get(name)
    if known is not None:
        return known
    if name.isdigit() and int(name) < 256:
        return int(name)
    raise ValueError(f"protocol {name!r} is not known; use tcp, udp, icmp, arp or a number")


def _arp(what: Described) -> bytes:
    operation = NAMES["arp_op"].get(what.kind or "request")
    if operation is None:
        raise ValueError(f"ARP has no operation {what.kind!r}; use request or reply")
    sender = mac_bytes(what.target_mac or what.mac)
    target = bytes(6) if operation == 1 else mac_bytes(what.to_mac)
    addresses = IPv4Address(what.source).packed, IPv4Address(what.destination).packed
    head = struct.pack("!HHBBH", 1, ETH_P_IP, 6, 4, operation)
    return head + sender + addresses[0] + target + addresses[1] + what.payload


def _ipv4(what: Described, source: IPv4Address, to: IPv4Address) -> bytes:
    number = protocol_number(what.protocol, 4)
    ip = Ip(4, source, to, number, 20, 0, what.ttl)
    data = _transport(what, ip)
    word = what.offset // 8 | (0x2000 if what.more else 0) | (0x4000 if what.dont_fragment else 0)
    head = struct.pack(
        "!BBHHHBBH", 0x45, 0, 20 + len(data), 1 if word & 0x3FFF else 0, word, what.ttl, number, 0
    )
    head += source.packed + to.packed
    total = internet_sum(head).to_bytes(2, "big")
    return head[:10] + total + head[12:] + data


def _ipv6(what: Described, source: IPv6Address, to: IPv6Address) -> bytes:
    number = protocol_number(what.protocol, 6)
    ip = Ip(6, source, to, number, 40, 0, what.ttl)
    data = _transport(what, ip)
    following = what.next_header if what.extensions else number
    if what.offset or what.more:
        word = what.offset | int(what.more)
        data = struct.pack("!BBHI", number, 0, word, 1) + data
        following = FRAGMENT
    data = what.extensions + data
    head = struct.pack("!IHBB", 6 << 28, len(data), following, what.ttl)
    return head + source.packed + to.packed + data


def _transport(what: Described, ip: Ip) -> bytes:
    if what.offset:  # a later fragment has no transport header
        return what.payload
    ports = struct.pack("!HH", what.sport, what.dport)
    match ip.protocol:
        case 6:
            flags = sum(_FLAGS[letter] for letter in what.flags)
            options = struct.pack("!BBH", 2, 4, what.mss) if what.mss else b""
            head = struct.pack("!IIBBHHH", 1, 0, (20 + len(options)) << 2, flags, 8192, 0, 0)
            return _summed(ip, ports + head + options + what.payload, 16)
        case 17:
            length = 8 + len(what.payload)
            return _summed(ip, ports + struct.pack("!HH", length, 0) + what.payload, 6)
        case 1 if ip.version == 4:
            head = bytes([_kind(what, "icmp_type"), what.code, 0, 0])
            return _summed(ip, head + _echo(what) + what.payload, 2)
        case 58 if ip.version == 6:
            return _summed(ip, _icmp6(what) + what.payload, 2)
        case _:
            return what.payload


def _icmp6(what: Described) -> bytes:
    kind = _kind(what, "icmpv6_type")
    head = bytes([kind, what.code, 0, 0])
    own = mac_bytes(what.target_mac or what.mac)
    match kind:
        case 133:
            return head + bytes(4) + b"\1\1" + own
        case 134:
            return head + bytes([64, 0]) + struct.pack("!HII", 1800, 0, 0) + b"\1\1" + own
        case 135:
            return head + bytes(4) + IPv6Address(what.destination).packed + b"\1\1" + own
        case 136:
            return head + b"\x60\0\0\0" + IPv6Address(what.source).packed + b"\2\1" + own
        case _:
            return head + _echo(what)


def _echo(what: Described) -> bytes:
    """Identifier, which the source port stands for, and sequence."""
    return struct.pack("!HH", what.sport, 1)


def _kind(what: Described, type_: str) -> int:
    word = what.kind or "echo-request"
    found = NAMES[type_].get(word)
    if found is None and word.isdigit() and int(word) < 256:
        return int(word)
    if found is None:
        raise ValueError(f"{word!r} is no {type_.replace('_', ' ')}")
    return found


def _summed(ip: Ip, data: bytes, at: int) -> bytes:
    """With its checksum (RFC 1071; RFC 8200, 8.1; UDP writes 0 as all ones)."""
    head = b"" if ip.protocol == ICMP else pseudo_header(ip, len(data))
    total = internet_sum(head + data)
    if total == 0 and ip.protocol == UDP:
        total = 0xFFFF
    return data[:at] + total.to_bytes(2, "big") + data[at + 2 :]


__all__ = ["BROADCAST", "ICMP6", "TCP", "Described", "build", "protocol_number"]
