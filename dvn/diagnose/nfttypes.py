"""nft's data types: from a word to the numbers it stands for, by the type of what it is compared
with (nft(8), DATA TYPES). Names of interfaces are words and stay so."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TypeAlias

Value: TypeAlias = int | str  # str: an interface's name


@dataclass(frozen=True)
class Span:
    """The values from `low` to `high`, both in it."""

    low: int
    high: int


@dataclass(frozen=True)
class Beginning:
    """Interface names that begin so: `tap*`."""

    text: str


Pattern: TypeAlias = Value | Span | Beginning

WORDS = frozenset({"ifname"})
FLAGS = frozenset({"ct_state", "ct_status", "tcp_flag"})
WIDTHS = {
    "ipv4_addr": 32, "ipv6_addr": 128, "ether_addr": 48, "ether_type": 16, "inet_proto": 8,
    "inet_service": 16, "mark": 32, "devgroup": 32,
}  # fmt: skip

_ICMP_TYPES = {
    "echo-reply": 0, "destination-unreachable": 3, "source-quench": 4, "redirect": 5,
    "echo-request": 8, "router-advertisement": 9, "router-solicitation": 10, "time-exceeded": 11,
    "parameter-problem": 12, "timestamp-request": 13, "timestamp-reply": 14, "info-request": 15,
    "info-reply": 16, "address-mask-request": 17, "address-mask-reply": 18,
}  # fmt: skip
_ICMPV6_TYPES = {
    "destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4,
    "echo-request": 128, "echo-reply": 129, "mld-listener-query": 130, "mld-listener-report": 131,
    "mld-listener-done": 132, "mld-listener-reduction": 132, "nd-router-solicit": 133,
    "nd-router-advert": 134, "nd-neighbor-solicit": 135, "nd-neighbor-advert": 136,
    "nd-redirect": 137, "router-renumbering": 138, "ind-neighbor-solicit": 141,
    "ind-neighbor-advert": 142, "mld2-listener-report": 143,
}  # fmt: skip
NAMES: dict[str, dict[str, int]] = {
    "ether_type": {
        "ip": 0x0800, "ip6": 0x86DD, "arp": 0x0806, "vlan": 0x8100, "8021q": 0x8100,
        "8021ad": 0x88A8,
    },
    "inet_proto": {
        "icmp": 1, "igmp": 2, "ipip": 4, "tcp": 6, "udp": 17, "dccp": 33, "ipv6": 41, "gre": 47,
        "esp": 50, "ah": 51, "icmpv6": 58, "ipv6-icmp": 58, "ospf": 89, "vrrp": 112, "sctp": 132,
        "udplite": 136, "ipv6-nonxt": 59, "ipv6-route": 43, "ipv6-frag": 44, "ipv6-opts": 60,
        "hopopt": 0,
    },
    "inet_service": {
        "ssh": 22, "domain": 53, "bootps": 67, "bootpc": 68, "http": 80, "ntp": 123, "https": 443,
        "dhcpv6-client": 546, "dhcpv6-server": 547,
    },
    "nf_proto": {"ipv4": 2, "ipv6": 10},
    "ct_state": {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64},
    "ct_dir": {"original": 0, "reply": 1},
    "ct_status": {
        "expected": 1, "seen-reply": 2, "assured": 4, "confirmed": 8, "snat": 16, "dnat": 32,
        "dying": 512,
    },
    "icmp_type": _ICMP_TYPES,
    "icmpv6_type": _ICMPV6_TYPES,
    "tcp_flag": {
        "fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ecn": 64, "cwr": 128,
    },
    "pkt_type": {"host": 0, "unicast": 0, "broadcast": 1, "multicast": 2, "other": 3},
    "arp_op": {"request": 1, "reply": 2, "rrequest": 3, "rreply": 4, "inrequest": 8, "inreply": 9},
    "fib_addrtype": {
        "unspec": 0, "unicast": 1, "local": 2, "broadcast": 3, "anycast": 4, "multicast": 5,
        "blackhole": 6, "unreachable": 7, "prohibit": 8,
    },
    "boolean": {"missing": 0, "exists": 1, "0": 0, "1": 1},
    "devgroup": {"default": 0},
}  # fmt: skip


class LiteralError(ValueError):
    """A word that is no value of its type."""


@lru_cache(maxsize=65536)
def pattern(type_: str, text: str) -> Pattern:
    """What `text` stands for where a value of `type_` is expected. Raises LiteralError."""
    if type_ in WORDS:
        return Beginning(text[:-1]) if text.endswith("*") and text != "*" else text
    named = NAMES.get(type_, {}).get(text)
    if named is not None:
        return named
    try:
        return _numbers(type_, text)
    except ValueError:
        raise LiteralError(f"{text!r} is no {type_}") from None


def _numbers(type_: str, text: str) -> Pattern:
    if type_ in ("ipv4_addr", "ipv6_addr"):
        return _addresses(text, 4 if type_ == "ipv4_addr" else 6)
    if type_ == "ether_addr":
        if not re.fullmatch(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}", text):
            raise ValueError(text)
        return int("".join(part.zfill(2) for part in text.split(":")), 16)
    found = re.fullmatch(r"([^-]+)-([^-]+)", text)
    if found:
        low, high = pattern(type_, found[1]), pattern(type_, found[2])
        if isinstance(low, int) and isinstance(high, int):
            return Span(low, high)
    prefixed = re.fullmatch(r"(\w+)/(\d+)", text)
    if prefixed and type_ in WIDTHS:
        shift = WIDTHS[type_] - int(prefixed[2])
        start = int(prefixed[1], 0) >> shift << shift
        return Span(start, start + (1 << shift) - 1)
    return int(text, 0)


def _addresses(text: str, version: int) -> Pattern:
    if "/" in text:
        network = ip_network(text)
        found: Pattern = Span(int(network[0]), int(network[-1]))
        versions = {network.version}
    elif "-" in text:
        low, _, high = text.partition("-")
        ends = ip_address(low), ip_address(high)
        found, versions = Span(int(ends[0]), int(ends[1])), {end.version for end in ends}
    else:
        one = ip_address(text)
        found, versions = int(one), {one.version}
    if versions != {version}:
        raise ValueError(text)
    return found


def fits(value: Value, wanted: Pattern) -> bool:
    if isinstance(wanted, Span):
        return isinstance(value, int) and wanted.low <= value <= wanted.high
    if isinstance(wanted, Beginning):
        return isinstance(value, str) and value.startswith(wanted.text)
    return value == wanted


def shown(type_: str, value: Value) -> str:
    """A value as people write it."""
    if isinstance(value, str):
        return value
    if type_ == "ipv4_addr":
        return str(IPv4Address(value))
    if type_ == "ipv6_addr":
        return str(IPv6Address(value))
    if type_ == "ether_addr":
        return value.to_bytes(6, "big").hex(":")
    if type_ in FLAGS:
        return ",".join(n for n, bit in NAMES[type_].items() if value & bit) or "0"
    names = NAMES.get(type_, {})
    return next((name for name, number in names.items() if number == value), str(value))
