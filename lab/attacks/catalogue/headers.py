"""Headers that filters stumble over: fragments, extension headers, source routes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from scapy.layers.dhcp import BOOTP
from scapy.layers.inet import IP, UDP, IPOption_LSRR, IPOption_SSRR
from scapy.layers.inet6 import (
    HAO,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Jumbo,
    PadN,
    RouterAlert,
)
from scapy.packet import Raw

from lab.attacks.catalogue.draft import Attack, Draft, Make, Packet, Send, Tag, bound
from lab.attacks.catalogue.packets import BROADCAST, advert, ether, tcp, udp
from lab.attacks.catalogue.vantage import Vantage, others, tenants_own, vantages
from lab.attacks.ground import GATEWAY, NICS, Net, insiders

Pieces = Callable[[str, str, Tag], list[Packet]]
"""(source, target, tag) -> IP packets, in the order of sending"""


def _pad(size: int = 4) -> list[Packet]:
    return [PadN(optdata=bytes(size))]


def _body(packet: Packet) -> bytes:
    """What follows the IP header, with its checksum."""
    whole = bytes(packet)
    return whole[40:] if whole[0] >> 4 == 6 else whole[20:]


# -- IPv4 fragments -------------------------------------------------------------------------------


def _four(
    source: str, target: str, tag: Tag, protocol: int, *parts: tuple[int, bytes]
) -> list[Packet]:
    """(offset in bytes, data) of each fragment; all but the last have more behind them."""
    last = len(parts) - 1
    return [
        IP(src=source, dst=target, id=tag.port, proto=protocol, frag=offset // 8,
           flags="MF" if place < last else 0) / Raw(data)
        for place, (offset, data) in enumerate(parts)
    ]  # fmt: skip


def _plain4(source: str, target: str, tag: Tag) -> list[Packet]:
    body = _body(udp(source, target, tag))
    return _four(source, target, tag, 17, (0, body[:8]), (8, body[8:]))


def _tiny4(source: str, target: str, tag: Tag) -> list[Packet]:
    """RFC 1858, 3: the flags are in the second fragment."""
    body = _body(tcp(source, target, tag, port=23))
    return _four(source, target, tag, 6, (0, body[:8]), (8, body[8:]))


def _overlapping4(source: str, target: str, tag: Tag) -> list[Packet]:
    """RFC 1858, 4 and RFC 3128: an offered port first, overwritten by another."""
    innocent, wanted = (_body(tcp(source, target, tag, port=port)) for port in (22, 23))
    return _four(source, target, tag, 6, (0, innocent[:24]), (0, wanted[:16]), (16, wanted[16:]))


def _backwards4(source: str, target: str, tag: Tag) -> list[Packet]:
    body = _body(tcp(source, target, tag, port=23))
    first, second = _four(source, target, tag, 6, (0, body[:8]), (8, body[8:]))
    return [second, first]


def _headless4(source: str, target: str, tag: Tag) -> list[Packet]:
    """A later fragment alone: there is no port to look at."""
    body = _body(udp(source, target, tag))
    return _four(source, target, tag, 17, (0, body[:8]), (8, body[8:]))[1:]


# -- IPv6 extension headers -----------------------------------------------------------------------


def _six(source: str, target: str, tag: Tag, first: int, *parts: tuple[int, bytes]) -> list[Packet]:
    last = len(parts) - 1
    return [
        IPv6(src=source, dst=target)
        / IPv6ExtHdrFragment(nh=first, id=tag.port, offset=offset // 8, m=place < last)
        / Raw(data)
        for place, (offset, data) in enumerate(parts)
    ]


def _plain6(source: str, target: str, tag: Tag) -> list[Packet]:
    body = _body(udp(source, target, tag))
    return _six(source, target, tag, 17, (0, body[:8]), (8, body[8:]))


def _tiny6(source: str, target: str, tag: Tag) -> list[Packet]:
    """RFC 7112: the upper header is not in the first fragment."""
    body = bytes(IPv6ExtHdrDestOpt(nh=6, options=_pad())) + _body(tcp(source, target, tag, port=23))
    return _six(source, target, tag, 60, (0, body[:8]), (8, body[8:]))


def _overlapping6(source: str, target: str, tag: Tag) -> list[Packet]:
    """RFC 5722."""
    innocent, wanted = (_body(tcp(source, target, tag, port=port)) for port in (22, 23))
    return _six(source, target, tag, 6, (0, innocent[:24]), (0, wanted[:16]), (16, wanted[16:]))


def _atomic6(source: str, target: str, tag: Tag) -> list[Packet]:
    return _six(source, target, tag, 6, (0, _body(tcp(source, target, tag, port=23))))


def _headless6(source: str, target: str, tag: Tag) -> list[Packet]:
    body = _body(udp(source, target, tag))
    return _six(source, target, tag, 17, (0, body[:8]), (8, body[8:]))[1:]


def _behind(*headers: Packet) -> Pieces:
    """TCP behind a chain of extension headers."""

    def make(source: str, target: str, tag: Tag) -> list[Packet]:
        packet = IPv6(src=source, dst=target)
        for place, header in enumerate(headers):
            # nh must be said: what follows is raw bytes, with a checksum made without the chain.
            after = headers[place + 1] if place + 1 < len(headers) else None
            each = header.copy()
            each.nh = 6 if after is None else _number(after)
            packet = packet / each
        return [packet / Raw(_body(tcp(source, target, tag, port=23)))]

    return make


_NUMBERS = {IPv6ExtHdrHopByHop: 0, IPv6ExtHdrRouting: 43, IPv6ExtHdrDestOpt: 60}


def _number(header: Packet) -> int:
    return _NUMBERS[type(header)]


def _routed(kind: int) -> Pieces:
    """A routing header that leads on to the target from the gateway (RFC 5095, 8754)."""

    def make(source: str, target: str, tag: Tag) -> list[Packet]:
        route = IPv6ExtHdrRouting(nh=17, type=kind, segleft=1, addresses=[target])
        return [
            IPv6(src=source, dst=_GATEWAYS[source]) / route / Raw(_body(udp(source, target, tag)))
        ]

    return make


def _source_routed(option: type) -> Pieces:
    """RFC 791: by the gateway to the target."""

    def make(source: str, target: str, tag: Tag) -> list[Packet]:
        packet = IP(src=source, dst=_GATEWAYS[source], options=[option(routers=[target])])
        return [packet / UDP(sport=tag.port, dport=5002) / Raw(tag.data)]

    return make


def _unknown(source: str, target: str, tag: Tag) -> list[Packet]:
    """A header nobody knows, in the form of RFC 6564."""
    body = _body(udp(source, target, tag))
    return [IPv6(src=source, dst=target, nh=254) / Raw(b"\x11\0" + bytes(6) + body)]


def _home(source: str, target: str, tag: Tag) -> list[Packet]:
    """A home address option (RFC 6275, 6.3) makes it another's packet."""
    victim = NICS["b2"].ip6
    body = _body(udp(victim, target, tag))
    header = IPv6ExtHdrDestOpt(nh=17, options=[HAO(hoa=victim)])
    return [IPv6(src=source, dst=target) / header / Raw(body)]


def _jumbo(source: str, target: str, tag: Tag) -> list[Packet]:
    body = _body(udp(source, target, tag))
    header = IPv6ExtHdrHopByHop(nh=17, options=[Jumbo(jumboplen=70000)])
    return [IPv6(src=source, dst=target, plen=0) / header / Raw(body)]


_GATEWAYS: Mapping[str, str] = {
    address: gateway
    for where in vantages()
    for address, gateway in (
        (where.ip4, where.net.gateway4),
        (where.ip6, where.net.gateway6),
    )
}
_WAYS4: Mapping[str, Pieces] = {
    "in fragments": _plain4,
    "a tiny fragment": _tiny4,
    "overlapping fragments": _overlapping4,
    "fragments backwards": _backwards4,
    "a later fragment alone": _headless4,
    "a loose source route": _source_routed(IPOption_LSRR),
    "a strict source route": _source_routed(IPOption_SSRR),
}
_WAYS6: Mapping[str, Pieces] = {
    "in fragments": _plain6,
    "header in the second fragment": _tiny6,
    "overlapping fragments": _overlapping6,
    "an atomic fragment": _atomic6,
    "a later fragment alone": _headless6,
    "hop-by-hop options": _behind(IPv6ExtHdrHopByHop(options=_pad())),
    "router alert": _behind(IPv6ExtHdrHopByHop(options=[RouterAlert()])),
    "jumbo payload": _jumbo,
    "destination options": _behind(IPv6ExtHdrDestOpt(options=_pad())),
    "a chain of options": _behind(
        IPv6ExtHdrHopByHop(options=_pad(60)), *[IPv6ExtHdrDestOpt(options=_pad(60))] * 4
    ),
    "hop-by-hop not first": _behind(
        IPv6ExtHdrDestOpt(options=_pad()), IPv6ExtHdrHopByHop(options=_pad())
    ),
    "routing type 0": _routed(0),
    "routing type 2": _routed(2),
    "routing type 4 (SRv6)": _routed(4),
    "an unknown header": _unknown,
    "home address": _home,
}


def _ways(version: int) -> Mapping[str, Pieces]:
    return _WAYS4 if version == 4 else _WAYS6


def _control(where: Vantage, version: int) -> tuple[tuple[Send, ...], frozenset[str], str]:
    """Honest fragments arrive; the marker is in the second."""
    pieces = _plain4 if version == 4 else _plain6
    nic = NICS[where.peer]
    own, to = where.address(version), nic.ip4 if version == 4 else nic.ip6
    sends = tuple(
        where.control(
            bound(
                lambda tag, place: ether(where.mac, nic.mac, pieces(own, to, tag)[place]),
                place=place,
            )
        )
        for place in range(2)
    )
    return sends, frozenset({nic.host}), "honest fragments to a neighbour arrive"


def _count(pieces: Pieces, version: int) -> int:
    addresses = ("10.1.0.11", "10.2.0.11") if version == 4 else ("fd01::11", "fd02::11")
    return len(pieces(*addresses, Tag(bytes(16), 1)))


def _by_gateway(
    where: Vantage, variant: str, version: int, pieces: Pieces, to: str, leaks: frozenset[str],
    leaks_with: tuple[bytes, ...] = (),
) -> Draft:  # fmt: skip
    own = where.address(version)
    makes: list[Make] = [
        where.through_gateway(bound(lambda tag, place: pieces(own, to, tag)[place], place=place))
        for place in range(_count(pieces, version))
    ]
    control, arrives, words = _control(where, version)
    return Draft(
        f"{variant} IPv{version} from {where.name}", version, where.name,
        (*control, *(where.send(make) for make in makes)), leaks - {where.name}, words, arrives,
        leaks_with, where.needs,
    )  # fmt: skip


def _crossing() -> Iterator[Draft]:
    """To another tenant, in every disguise."""
    for where in vantages():
        victim = next(net for net in others(where.net) if net.tenant != where.net.tenant)
        nic = NICS[victim.machines[0]]
        for version in (4, 6):
            to = nic.ip4 if version == 4 else nic.ip6
            for how, pieces in _ways(version).items():
                yield _by_gateway(where, how, version, pieces, to, _of(victim))


def _of(net: Net) -> frozenset[str]:
    return frozenset({*insiders(net), net.inside, *([net.remote] if net.remote else [])})


_TELNET = (b"\x00\x17",)


def _services() -> Iterator[Draft]:
    """To a service of the gateway that is not offered, TCP 23."""
    for where in vantages():
        for version in (4, 6):
            to = where.net.gateway4 if version == 4 else where.net.gateway6
            for how, pieces in _ways(version).items():
                if how.startswith("routing"):
                    continue
                yield _by_gateway(
                    where, how, version, pieces, to, frozenset({GATEWAY}),
                    _TELNET if "overlapping" in how else (),
                )  # fmt: skip


# -- what is forbidden on the segment, disguised --------------------------------------------------


def _spoofed() -> Iterator[Draft]:
    """Another's address, in fragments and behind headers; DHCP and discovery likewise."""
    for where in vantages():
        victim = NICS[where.net.machines[1]]
        target = NICS[where.net.machines[0]] if where.kind != "port" else victim
        for version in (4, 6):
            control, arrives, words = _control(where, version)
            for how, pieces in _ways(version).items():
                if "route" in how or "routing" in how:
                    continue
                source = victim.ip4 if version == 4 else victim.ip6
                to = target.ip4 if version == 4 else target.ip6
                sends = tuple(
                    where.send(
                        bound(
                            lambda tag, place, mac, pieces, source, to, where: ether(
                                where.mac, mac, pieces(source, to, tag)[place]
                            ),
                            place=place,
                            mac=mac,
                            pieces=pieces,
                            source=source,
                            to=to,
                            where=where,
                        )
                    )
                    for place in range(_count(pieces, version))
                    for mac in (target.mac, where.net.mac)
                )
                yield Draft(
                    f"a neighbour's address, {how} IPv{version} from {where.name}", version,
                    where.name, (*control, *sends), where.elsewhere, words, arrives,
                    needs=where.needs,
                )  # fmt: skip


def _hidden() -> Iterator[Draft]:
    for where in tenants_own():
        neighbour = NICS[where.peer]

        def offer(tag: Tag, where: Vantage = where) -> Packet:
            """The first of two fragments has the ports, and the marker where ids would be."""
            body = bytes(UDP(sport=67, dport=68, chksum=0, len=308) / BOOTP(op=2))
            data = body[:8] + tag.data
            packet = IP(src=where.ip4, dst="255.255.255.255", id=tag.port, proto=17, flags="MF")
            return ether(where.mac, BROADCAST, packet / Raw(data))

        def claim(tag: Tag, where: Vantage = where, to: str = neighbour.ip6) -> Packet:
            """An advertisement for the gateway's address behind destination options."""
            plain = advert(where.ip6, where.net.gateway6, where.mac, tag, to)
            header = IPv6ExtHdrDestOpt(nh=58, options=_pad())
            return IPv6(src=where.ip6, dst=to, hlim=255) / header / Raw(_body(plain))

        def cut(tag: Tag, where: Vantage = where, to: str = neighbour.ip6) -> Packet:
            """The first fragment of one (RFC 6980 forbids them)."""
            plain = _body(advert(where.ip6, where.net.gateway6, where.mac, tag, to))
            header = IPv6ExtHdrFragment(nh=58, id=tag.port, offset=0, m=1)
            return (
                IPv6(src=where.ip6, dst=to, hlim=255) / header / Raw(plain[: len(plain) // 8 * 8])
            )

        def own(tag: Tag, where: Vantage = where, to: str = neighbour.ip6) -> Packet:
            """An honest one, but whole in a fragment."""
            plain = _body(advert(where.ip6, where.ip6, where.mac, tag, to))
            header = IPv6ExtHdrFragment(nh=58, id=tag.port, offset=0, m=0)
            return IPv6(src=where.ip6, dst=to, hlim=255) / header / Raw(plain)

        for how, version, make in (
            ("an honest advertisement in a fragment", 6, _framed(where, neighbour.mac, own)),
            ("a fragmented DHCP offer", 4, offer),
            ("an advertisement behind options", 6, _framed(where, neighbour.mac, claim)),
            ("a fragmented advertisement", 6, _framed(where, neighbour.mac, cut)),
        ):
            control, arrives, words = _control(where, version)
            yield Draft(
                f"{how} from {where.name}", version, where.name, (*control, where.send(make)),
                where.elsewhere, words, arrives, needs=where.needs,
            )  # fmt: skip


def _framed(where: Vantage, mac: str, make: Callable[[Tag], Packet]) -> Make:
    return lambda tag: ether(where.mac, mac, make(tag))


ATTACKS = (
    Attack("disguised crossing", "hides where a packet to another tenant goes",
           "RFC 1858, 3128, 5095, 5722, 7112; CVE-2007-2242", _crossing),
    Attack("disguised service", "hides a port of the gateway from its filter",
           "RFC 1858, 3128, 7112; CVE-2012-4444", _services),
    Attack("disguised spoof", "hides another's address in fragments or behind headers",
           "RFC 1858; RFC 7113", _spoofed),
    Attack("disguised discovery", "hides DHCP and neighbour discovery",
           "RFC 6980; RFC 7113; RFC 7610", _hidden),
)  # fmt: skip
