"""Packets that are cut short, or are not what their type says: filters that cannot read a field
must not let it pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, PadN
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from lab.attacks.case import Phase, Role
from lab.attacks.catalogue.draft import Attack, Draft, Packet, Send, Tag, bound
from lab.attacks.catalogue.packets import BROADCAST
from lab.attacks.catalogue.vantage import Vantage, tenants_own
from lab.attacks.ground import CABLE, NICS

_ARP, _IP4, _IP6 = 0x0806, 0x0800, 0x86DD
Body = Callable[[Vantage, Tag], tuple[int, bytes]]
"""(attacker, tag) -> (ethertype, what follows)"""


def _garbage(kind: int) -> Body:
    return lambda _where, tag: (kind, tag.data)


def _short4(where: Vantage, tag: Tag) -> tuple[int, bytes]:
    """Longer by its header than it is."""
    head = bytearray(bytes(IP(src=where.ip4, dst=NICS[where.peer].ip4, proto=17)))
    head[0] = 0x4F
    return _IP4, bytes(head) + tag.data


def _version(where: Vantage, tag: Tag) -> tuple[int, bytes]:
    """IPv6 with the type of IPv4."""
    packet = IPv6(src=where.ip6, dst=NICS[where.peer].ip6, nh=17) / Raw(tag.data)
    return _IP4, bytes(packet)


def _cut_chain(where: Vantage, tag: Tag) -> tuple[int, bytes]:
    """The second options header says it is longer than the packet (RFC 7112)."""
    first = bytes(IPv6ExtHdrDestOpt(nh=60, options=[PadN(optdata=tag.data)]))
    packet = IPv6(src=where.ip6, dst=NICS[where.peer].ip6, nh=60)
    return _IP6, bytes(packet / Raw(first + b"\x3a\x1f" + bytes(6)))


def _cut_chain_fragment(where: Vantage, tag: Tag) -> tuple[int, bytes]:
    """The same as a first fragment, so that it can be made whole."""
    first = bytes(IPv6ExtHdrDestOpt(nh=60, options=[PadN(optdata=tag.data)]))
    head = IPv6(src=where.ip6, dst=NICS[where.peer].ip6)
    fragment = IPv6ExtHdrFragment(nh=60, id=tag.port, offset=0, m=1)
    return _IP6, bytes(head / fragment / Raw(first + b"\x3a\x1f" + bytes(6)))


def _cut_advert(where: Vantage, tag: Tag) -> tuple[int, bytes]:
    """An advertisement that ends before its target."""
    options = bytes(IPv6ExtHdrDestOpt(nh=58, options=[PadN(optdata=tag.data)]))
    packet = IPv6(src=where.ip6, dst=NICS[where.peer].ip6, hlim=255, nh=60)
    return _IP6, bytes(packet / Raw(options + b"\x88\0\0\0\x20\0\0\0"))


def _cut_icmp(where: Vantage, tag: Tag) -> tuple[int, bytes]:
    """ICMPv6 of no bytes behind options."""
    options = bytes(IPv6ExtHdrDestOpt(nh=58, options=[PadN(optdata=tag.data)]))
    packet = IPv6(src=where.ip6, dst=NICS[where.peer].ip6, hlim=255, nh=60)
    return _IP6, bytes(packet / Raw(options))


def _long_arp(where: Vantage, tag: Tag) -> tuple[int, bytes]:
    """ARP that says its hardware addresses are eight bytes long: what follows moves."""
    mac = bytes.fromhex(where.mac.replace(":", ""))
    sender = bytes(map(int, where.ip4.split(".")))
    body = b"\0\1\x08\0\x08\x04\0\2" + mac + b"\0\0" + sender + bytes(12) + tag.data
    return _ARP, body


def _ethernet_arp(where: Vantage, tag: Tag) -> tuple[int, bytes]:
    """ARP for another kind of link."""
    mac = bytes.fromhex(where.mac.replace(":", ""))
    sender = bytes(map(int, where.ip4.split(".")))
    return _ARP, b"\0\x06\x08\0\x06\x04\0\2" + mac + sender + bytes(10) + tag.data


_BODIES: Mapping[str, Body] = {
    "garbage as IPv4": _garbage(_IP4),
    "garbage as IPv6": _garbage(_IP6),
    "garbage as ARP": _garbage(_ARP),
    "IPv4 shorter than its header": _short4,
    "IPv6 as IPv4": _version,
    "ARP with long addresses": _long_arp,
    "ARP for IEEE 802": _ethernet_arp,
    "a chain longer than the packet": _cut_chain,
    "a chain cut in a first fragment": _cut_chain_fragment,
    "an advertisement without a target": _cut_advert,
    "ICMPv6 without a byte": _cut_icmp,
}


def _malformed() -> Iterator[Draft]:
    for where in tenants_own():
        neighbour = NICS[where.peer].mac

        def frame(tag: Tag, body: Body, to: str, where: Vantage = where) -> Packet:
            kind, data = body(where, tag)
            return Ether(src=where.mac, dst=to, type=kind) / Raw(data)

        for how, body in _BODIES.items():
            sends = tuple(
                where.send(bound(frame, body=body, to=to))
                for to in (neighbour, where.net.mac, BROADCAST)
            )
            bare = Send(CABLE, bound(frame, body=body, to=neighbour), Phase.CONTROL, Role.CONTROL)
            yield Draft(
                f"{how} from {where.name}", 0, where.name, (bare, *sends), where.elsewhere,
                "the same frame arrives on a cable that nobody guards", frozenset({CABLE}),
                needs=where.needs,
            )  # fmt: skip


ATTACKS = (
    Attack("malformed", "sends what filters cannot read", "RFC 7112; CWE-130", _malformed),
)  # fmt: skip
