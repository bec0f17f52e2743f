"""A packet in one line, for people: `02:..:03 > 02:..:01 IPv4 10.9.0.3:40000 > 8.8.8.8:443 tcp`."""

from __future__ import annotations

from dvn.diagnose.frames import (
    ETH_P_ARP,
    ETH_P_IP,
    ETH_P_IP6,
    GRE,
    ICMP,
    ICMP6,
    TCP,
    UDP,
    Ip,
    Packet,
)
from dvn.diagnose.nfttypes import NAMES

_FLAGS = (("SYN", 2), ("ACK", 16), ("FIN", 1), ("RST", 4), ("PSH", 8), ("URG", 32))
_NAMES = {number: name for name, number in NAMES["inet_proto"].items()}
_LENGTHS = frozenset({1, 4})


def describe(packet: Packet) -> str:
    tag = f"vlan {packet.tag.id} " if packet.tag else ""
    return f"{packet.source} > {packet.destination} {tag}{inside(packet)}"


def inside(packet: Packet) -> str:
    """Without the Ethernet addresses."""
    if packet.protocol == ETH_P_ARP:
        return _arp(packet.network)
    ip = packet.ip
    if ip is not None:
        return _ip(packet, ip)
    if packet.protocol in (ETH_P_IP, ETH_P_IP6):
        return "malformed IP"
    if packet.protocol in _LENGTHS:
        return f"LLC, {packet.ethertype} bytes"
    return f"ethertype {packet.protocol:#06x}"


def _arp(data: bytes) -> str:
    if len(data) < 28:
        return "ARP, cut off"
    sender, target = (".".join(map(str, data[at : at + 4])) for at in (14, 24))
    if data[6:8] == b"\0\1":
        return f"ARP who has {target}? tell {sender}"
    if data[6:8] == b"\0\2":
        return f"ARP {sender} is at {data[8:14].hex(':')}"
    return f"ARP operation {int.from_bytes(data[6:8], 'big')} from {sender}"


def _ip(packet: Packet, ip: Ip) -> str:
    data = packet.transport
    family = f"IPv{ip.version}"
    if data is None:
        name = _NAMES.get(ip.protocol or -1, str(ip.protocol))
        what = f"fragment at {ip.offset} of {name}" if ip.offset else "headers cut off"
        return f"{family} {ip.source} > {ip.destination} {what}"
    more = ", first fragment" if ip.more else ""
    if ip.protocol in (TCP, UDP) and len(data) >= 4:
        ports = int.from_bytes(data[0:2], "big"), int.from_bytes(data[2:4], "big")
        ends = f"{_with_port(ip.source, ports[0])} > {_with_port(ip.destination, ports[1])}"
        return f"{family} {ends} {_tcp(data) if ip.protocol == TCP else 'udp'}{more}"
    words = _NAMES.get(ip.protocol or -1, f"protocol {ip.protocol}")
    if ip.protocol in (ICMP, ICMP6) and data:
        words = _icmp(ip.protocol, data[0])
    if ip.protocol == GRE and len(data) >= 8 and data[0] & 0x20:
        words = f"gre key {int.from_bytes(data[4:8], 'big')}"
    return f"{family} {ip.source} > {ip.destination} {words}{more}"


def _with_port(address: object, port: int) -> str:
    text = str(address)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def _tcp(data: bytes) -> str:
    if len(data) < 14:
        return "tcp, cut off"
    names = [name for name, bit in _FLAGS if data[13] & bit]
    return f"tcp {'+'.join(names) or 'no flags'}"


def _icmp(protocol: int, kind: int) -> str:
    name = "icmp" if protocol == ICMP else "icmpv6"
    types = NAMES[f"{name}_type"]
    return f"{name} " + next((word for word, n in types.items() if n == kind), str(kind))
