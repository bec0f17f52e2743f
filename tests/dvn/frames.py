"""Ethernet frames, byte by byte: also those that no library would make.

Each packet has a number of its own where the protocol leaves room (ARP's target MAC address, IPv4's
identification, IPv6's flow label), so that it is known again after a bridge.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address

ARP, IPV4, IPV6, VLAN, QINQ = 0x0806, 0x0800, 0x86DD, 0x8100, 0x88A8
ICMP, TCP, UDP, FRAGMENT, ICMPV6, DESTINATION = 1, 6, 17, 44, 58, 60
BROADCAST = "ff:ff:ff:ff:ff:ff"
REQUEST, REPLY = 1, 2
SOLICIT, ADVERT = 135, 136


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ip(text: str) -> bytes:
    return ip_address(text).packed


def eth(source: str, payload: bytes, ethertype: int, to: str = "02:00:00:00:ff:ff") -> bytes:
    return mac(to) + mac(source) + struct.pack("!H", ethertype) + payload


def tagged(frame: bytes, *tags: tuple[int, int]) -> bytes:
    """(ethertype, VLAN id) from the outermost."""
    words = b"".join(struct.pack("!HH", *tag) for tag in tags)
    return frame[:12] + words + frame[12:]


def untagged(frame: bytes) -> bytes:
    """From the ethertype on, without tags: what a bridge leaves as it was."""
    rest = frame[12:]
    while rest[:2] in (b"\x81\x00", b"\x88\xa8"):
        rest = rest[4:]
    return rest


def arp(number: int, sender_mac: str, sender: str, target: str, operation: int = REQUEST) -> bytes:
    target_mac = struct.pack("!HI", 0, number)
    head = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    return head + mac(sender_mac) + ip(sender) + target_mac + ip(target)


def ipv4(
    number: int, source: str, target: str, protocol: int, payload: bytes, fragment: int = 0
) -> bytes:
    """`fragment`: the flags and the offset, as they stand in the header."""
    length = 20 + len(payload)
    head = struct.pack("!BBHHHBBH", 0x45, 0, length, number, fragment, 64, protocol, 0)
    head += ip(source) + ip(target)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ipv6(number: int, source: str, target: str, protocol: int, payload: bytes) -> bytes:
    head = struct.pack("!IHBB", 6 << 28 | number, len(payload), protocol, 255)
    return head + ip(source) + ip(target) + payload


def udp(source: int, target: int, payload: bytes = b"isolation") -> bytes:
    return struct.pack("!HHHH", source, target, 8 + len(payload), 0) + payload


def tcp() -> bytes:
    """A segment of an open connection."""
    return struct.pack("!HHIIHHHH", 1, 80, 1, 1, 0x5010, 1000, 0, 0)


def icmp(kind: int) -> bytes:
    """ICMP or ICMPv6 without more than its head."""
    return struct.pack("!BBHI", kind, 0, 0, 0)


def nd(kind: int, target: str, *options: bytes) -> bytes:
    return icmp(kind) + ip(target) + b"".join(options)


def nd_mac(kind: int, address: str) -> bytes:
    """The source (1) or target (2) link-layer address (RFC 4861, 4.6.1)."""
    return bytes([kind, 1]) + mac(address)


def nd_nonce(length: int = 1) -> bytes:
    """RFC 3971, 5.3.2; `length` in eights of bytes."""
    return bytes([14, length]) + b"nonce!" + bytes(8 * (length - 1))


def options(inside: int, payload: bytes) -> bytes:
    """A destination options header of eight bytes, all of it padding, before `payload`."""
    return bytes([inside, 0, 1, 4, 0, 0, 0, 0]) + payload


def part(inside: int, payload: bytes, offset: int = 0, more: bool = False) -> bytes:
    """A fragment; `offset` in bytes."""
    return struct.pack("!BBHI", inside, 0, offset | more, 7) + payload


def bootp(client: str) -> bytes:
    """The fixed part of a DHCP request (RFC 2131); chaddr is after 28 bytes."""
    return struct.pack("!BBBBI", 1, 1, 6, 0, 7) + bytes(20) + mac(client) + bytes(202)


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
