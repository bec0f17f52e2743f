"""Claiming to be somebody else: MAC, ARP, IPv4, IPv6, neighbour discovery."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
)
from scapy.packet import Raw

from lab.attacks.case import Phase, Role
from lab.attacks.catalogue.draft import Attack, Draft, Make, Packet, Send, Tag, bound
from lab.attacks.catalogue.packets import (
    BROADCAST,
    UDP_SERVICE,
    advert,
    arp,
    ether,
    ip,
    multicast_mac,
    option,
    solicit,
    solicited,
    udp,
)
from lab.attacks.catalogue.vantage import Vantage, tenants_own, vantages
from lab.attacks.ground import EVIL4, EVIL6, NICS, WEB4, WEB6, Nic, version_of


def _victim(where: Vantage) -> Nic:
    """Whom the attacker claims to be: a machine pinned to a port of the same network."""
    return NICS[where.net.machines[1]]


def _target(where: Vantage) -> Nic:
    """To whom: another of the network's, never the victim."""
    return NICS[where.net.machines[0]] if where.kind != "port" else _victim(where)


_UNKNOWN = "02:d1:00:00:ee:01"  # a MAC address that nobody has


def _free(where: Vantage, version: int) -> str:
    """An address of the network that nobody has."""
    net = where.net
    return f"10.{net.number}.0.77" if version == 4 else f"fd{net.number:02d}::77"


def _draft(
    where: Vantage, variant: str, family: int, makes: tuple[Make, ...], control: Send,
    arrives_at: frozenset[str], words: str,
) -> Draft:  # fmt: skip
    return Draft(
        variant=f"{variant} from {where.name}",
        family=family,
        attacker=where.name,
        sends=(control, *(where.send(make) for make in makes)),
        leaks_at=where.elsewhere,
        control=words,
        arrives_at=arrives_at,
        needs=where.needs,
    )


def _everywhere(where: Vantage, source: str, packet: Callable[[Tag], Packet]) -> tuple[Make, ...]:
    """To a neighbour, to the gateway and to all."""
    targets = (_target(where).mac, where.net.mac, BROADCAST)
    return tuple((bound(lambda tag, to: ether(source, to, packet(tag)), to=to)) for to in targets)


# -- Ethernet -------------------------------------------------------------------------------------


def _macs(where: Vantage) -> Mapping[str, str]:
    claimed = {
        "a neighbour's": _victim(where).mac,
        "the gateway's": where.net.mac,
        "a multicast address": "03:d1:00:00:00:99",
        "no address": "00:00:00:00:00:00",
    }
    if where.pinned:
        claimed["an unknown one"] = _UNKNOWN
    return claimed


def _mac_spoof() -> Iterator[Draft]:
    for where in vantages():
        send, arrives, words = where.honest(4, "udp")
        for whose, mac in _macs(where).items():

            def packet(tag: Tag, where: Vantage = where) -> Packet:
                return udp(where.ip4, _target(where).ip4, tag)

            makes = _everywhere(where, mac, packet)
            yield _draft(where, whose, 4, makes, send, arrives, words)


_QUIET = bytes(16)  # in place of a marker: the packet is not looked for, what it changes is


def _theft() -> Iterator[Draft]:
    """After frames with the victim's addresses, replies to the victim must still go there."""
    for where in vantages():
        if where.kind == "vlan" or not where.net.nat4:
            continue
        victim = NICS[where.net.machines[1]]

        def open_(tag: Tag, victim: Nic = victim, where: Vantage = where) -> Packet:
            return ether(victim.mac, where.net.mac, udp(victim.ip4, WEB4, tag))

        def claim(tag: Tag, victim: Nic = victim, where: Vantage = where) -> Packet:
            there, data = where.net.gateway4, Tag(_QUIET, tag.port)
            return arp(victim.mac, victim.mac, victim.ip4, there, data)

        def poison(tag: Tag, victim: Nic = victim, where: Vantage = where) -> Packet:
            there, data = where.net.gateway4, Tag(_QUIET, tag.port)
            return arp(where.mac, where.mac, victim.ip4, there, data)

        def reply(tag: Tag, where: Vantage = where) -> Packet:
            packet = ip(WEB4, where.net.nat4) / UDP(sport=UDP_SERVICE, dport=tag.port)
            return ether(NICS["web"].mac, NICS["internet:web"].mac, packet / Raw(tag.data))

        yield Draft(
            f"{victim.host}'s traffic to {where.name}", 4, where.name,
            (
                Send(victim.host, open_, Phase.SETUP, Role.NONE),
                where.send(claim),
                where.send(poison),
                Send("web", reply, Phase.AFTER, Role.ATTACK),
                Send("web", reply, Phase.AFTER, Role.CONTROL),
            ),
            frozenset({where.name}), "replies to the victim arrive there",
            frozenset({victim.host}), needs=where.needs,
        )  # fmt: skip


# -- ARP ------------------------------------------------------------------------------------------


def _arp_spoof() -> Iterator[Draft]:
    for where in vantages():
        victim, target, own = _victim(where), _target(where), where.mac
        claims: dict[str, tuple[str, str, str, int]] = {
            # ether source, sender MAC, sender address, operation
            "a neighbour's address": (own, own, victim.ip4, 2),
            "the gateway's address": (own, own, where.net.gateway4, 2),
            "the gateway's address in a request": (own, own, where.net.gateway4, 1),
            "an address outside the network": (own, own, EVIL4, 2),
            "a neighbour's MAC in the body": (own, victim.mac, where.ip4, 2),
            "the gateway's MAC in the body": (own, where.net.mac, where.ip4, 2),
            "a reverse request": (own, own, where.ip4, 3),
            "an inverse request": (own, own, where.ip4, 8),
        }
        if where.pinned:
            claims |= {
                "an unknown MAC in the body": (own, _UNKNOWN, where.ip4, 2),
                "a free address": (own, own, _free(where, 4), 2),
            }
        honest = where.control(
            bound(
                lambda tag, where, target: arp(where.mac, where.mac, where.ip4, target.ip4, tag),
                where=where,
                target=target,
            )
        )
        if where.kind == "vlan":
            del claims["an address outside the network"]
        for whose, (source, sender_mac, sender, op) in claims.items():
            makes: list[Make] = []
            for to in (BROADCAST, target.mac, where.net.mac):

                def make(
                    tag: Tag, source: str = source, sender_mac: str = sender_mac,
                    sender: str = sender, op: int = op, to: str = to, target: Nic = target,
                ) -> Packet:  # fmt: skip
                    return arp(source, sender_mac, sender, target.ip4, tag, op=op, ether_target=to)

                makes.append(make)
            arrives = frozenset({target.host, where.net.inside})
            words = "an honest ARP reply arrives"
            yield _draft(where, whose, 4, tuple(makes), honest, arrives, words)


def _probes() -> Iterator[Draft]:
    """Duplicate address detection (RFC 5227): whoever hears a probe gives the address up."""
    for where in vantages():
        claims = {
            "a neighbour's": _victim(where).ip4,
            "the gateway's": where.net.gateway4,
            **({"a free": _free(where, 4)} if where.pinned else {}),
        }

        def probe(tag: Tag, address: str, where: Vantage = where) -> Packet:
            return arp(where.mac, where.mac, "0.0.0.0", address, tag, op=1)

        honest = where.control(bound(probe, address=where.ip4))
        target = frozenset({_target(where).host, where.net.inside})
        for whose, address in claims.items():
            makes = (bound(probe, address=address),)
            words = "a probe for its own address arrives"
            yield _draft(where, f"{whose} address", 4, makes, honest, target, words)


# -- IP -------------------------------------------------------------------------------------------


def _addresses(where: Vantage, version: int) -> Mapping[str, str]:
    victim = _victim(where)
    if version == 4:
        return {
            "a neighbour": victim.ip4,
            "the gateway": where.net.gateway4,
            "the internet": WEB4,
            "this host": "127.0.0.1",
            "broadcast": "255.255.255.255",
            "multicast": "224.0.0.5",
            "no address": "0.0.0.0",
            **({"a free address": _free(where, 4)} if where.pinned else {}),
        }
    return {
        "a neighbour": victim.ip6,
        "a neighbour's link-local": victim.link_local,
        "the gateway": where.net.gateway6,
        "the gateway's link-local": where.net.link_local,
        "the internet": WEB6,
        "this host": "::1",
        "no address": "::",
        "mapped IPv4": "::ffff:192.0.2.1",
        "multicast": "ff02::5",
        **({"a free address": _free(where, 6)} if where.pinned else {}),
    }


def _known(whose: str) -> bool:
    return "neighbour" in whose or "gateway" in whose


def _ip_spoof(version: int) -> Callable[[], Iterator[Draft]]:
    def drafts() -> Iterator[Draft]:
        for where in vantages():
            send, arrives, words = where.honest(version, "udp")
            target = _target(where)
            to = target.ip4 if version == 4 else target.ip6
            claimed = _addresses(where, version)
            if where.kind == "vlan":  # the switch may have other prefixes behind it
                claimed = {whose: a for whose, a in claimed.items() if _known(whose)}
            for whose, address in claimed.items():

                def packet(tag: Tag, address: str = address, to: str = to) -> Packet:
                    return udp(address, to, tag)

                makes = _everywhere(where, where.mac, packet)
                yield _draft(where, whose, version, makes, send, arrives, words)

    return drafts


# -- neighbour discovery --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Claim:
    """`before`, `after`: options around the one with the MAC address."""

    source: str
    about: str
    mac: str
    solicit: bool = False
    before: Packet = None
    after: Packet = None


def _nd_claims(where: Vantage) -> Mapping[str, _Claim]:
    victim, own = _victim(where), where.mac
    return {
        "a neighbour's address": _Claim(where.ip6, victim.ip6, own),
        "a neighbour's link-local": _Claim(where.ip6, victim.link_local, own),
        "the gateway's address": _Claim(where.ip6, where.net.gateway6, own),
        "the gateway's link-local": _Claim(where.link_local, where.net.link_local, own),
        "an address outside the network": _Claim(where.ip6, EVIL6, own),
        "a neighbour's MAC for its own": _Claim(where.ip6, where.ip6, victim.mac),
        "a neighbour as the source": _Claim(victim.ip6, victim.ip6, own),
        "a neighbour asking": _Claim(victim.ip6, where.net.gateway6, own, solicit=True),
        "another MAC in a question": _Claim(
            where.ip6, where.net.gateway6, victim.mac, solicit=True
        ),
        "detection of a neighbour's address": _Claim("::", victim.ip6, "", solicit=True),
        "detection of the gateway's address": _Claim("::", where.net.gateway6, "", solicit=True),
        **(_nd_pinned(where) if where.pinned else {}),
    }


def _nd_pinned(where: Vantage) -> Mapping[str, _Claim]:
    nonce = ICMPv6NDOptUnknown(type=14, len=1, data=bytes(6))
    second = ICMPv6NDOptDstLLAddr(lladdr=_victim(where).mac)
    own = where.mac
    return {
        "a free address": _Claim(where.ip6, _free(where, 6), own),
        "an unknown MAC": _Claim(where.ip6, where.ip6, _UNKNOWN),
        "a neighbour's MAC behind another option": _Claim(
            where.ip6, where.ip6, _victim(where).mac, before=nonce
        ),
        "a neighbour's MAC behind two options": _Claim(
            where.ip6, where.ip6, _victim(where).mac, before=nonce / nonce.copy()
        ),
        "a second MAC, the neighbour's": _Claim(where.ip6, where.ip6, own, after=second),
        "detection of a free address": _Claim("::", _free(where, 6), "", solicit=True),
    }


def _asks(tag: Tag, where: Vantage) -> Packet:
    """An honest question for the gateway."""
    packet = solicit(where.ip6, where.net.gateway6, where.mac, tag)
    return ether(where.mac, multicast_mac(solicited(where.net.gateway6)), packet)


def _nd_spoof() -> Iterator[Draft]:
    for where in vantages():
        target = _target(where)

        def honest(tag: Tag, where: Vantage = where) -> Packet:
            packet = advert(where.ip6, where.ip6, where.mac, tag)
            return ether(where.mac, multicast_mac("ff02::1"), packet)

        for whose, claim in _nd_claims(where).items():
            if claim.about == EVIL6 and not where.pinned:
                continue
            makes: list[Make] = []
            if claim.solicit:

                def ask(tag: Tag, claim: _Claim = claim, where: Vantage = where) -> Packet:
                    packet = solicit(claim.source, claim.about, claim.mac, tag)
                    return ether(where.mac, multicast_mac(solicited(claim.about)), packet)

                makes.append(ask)
            else:
                for to, mac in (
                    ("ff02::1", multicast_mac("ff02::1")),
                    (target.ip6, target.mac),
                    (where.net.gateway6, where.net.mac),
                ):

                    def tell(
                        tag: Tag, claim: _Claim = claim, where: Vantage = where, to: str = to,
                        mac: str = mac,
                    ) -> Packet:  # fmt: skip
                        packet = advert(
                            claim.source, claim.about, claim.mac, tag, to,
                            before=claim.before, after=claim.after,
                        )  # fmt: skip
                        return ether(where.mac, mac, packet)

                    makes.append(tell)
            arrives = frozenset({target.host, where.net.inside})
            words = "an honest neighbour advertisement arrives"
            control = where.control(honest)
            if claim.solicit and claim.source != "::":
                control, words = where.control(bound(_asks, where=where)), "an honest one arrives"
            yield _draft(where, whose, 6, tuple(makes), control, arrives, words)


# -- redirects ------------------------------------------------------------------------------------


def _redirects() -> Iterator[Draft]:
    for where in tenants_own():
        target = _target(where)

        def four(tag: Tag, source: str, where: Vantage = where, target: Nic = target) -> Packet:
            quoted = IP(src=target.ip4, dst=WEB4) / UDP(sport=tag.port, dport=53) / Raw(tag.data)
            return IP(src=source, dst=target.ip4) / ICMP(type=5, code=1, gw=where.ip4) / quoted

        def six(tag: Tag, source: str, where: Vantage = where, target: Nic = target) -> Packet:
            body = ICMPv6ND_Redirect(tgt=where.link_local, dst=WEB6)
            return IPv6(src=source, dst=target.ip6, hlim=255) / body / option(tag)

        send4, arrives4, words4 = where.honest(4, "icmp")
        send6, arrives6, words6 = where.honest(6, "icmp")
        for version, whose, source in (
            (4, "its own", where.ip4),
            (4, "the gateway's", where.net.gateway4),
            (6, "its own link-local", where.link_local),
            (6, "the gateway's link-local", where.net.link_local),
        ):
            make = four if version_of(source) == 4 else six

            def frame(
                tag: Tag, make: Callable[..., Packet] = make, source: str = source,
                where: Vantage = where, target: Nic = target,
            ) -> Packet:  # fmt: skip
                return ether(where.mac, target.mac, make(tag, source))

            honest = (send4, arrives4, words4) if version == 4 else (send6, arrives6, words6)
            yield _draft(where, f"from {whose} address IPv{version}", version, (frame,), *honest)


ATTACKS = (
    Attack("mac-spoof", "sends with another MAC address", "CWE-290; IEEE 802.1Q, learning",
           _mac_spoof),
    Attack("traffic-theft", "makes bridge and gateway believe a neighbour is at its port",
           "CWE-300; RFC 826", _theft),
    Attack("arp-probe", "makes others give up an address", "RFC 5227, 2.4; CWE-290", _probes),
    Attack("arp-spoof", "tells others where an address is", "CVE-1999-0667; RFC 826", _arp_spoof),
    Attack("ipv4-spoof", "sends with another IPv4 address", "RFC 2827 (BCP 38)",
           _ip_spoof(4)),
    Attack("ipv6-spoof", "sends with another IPv6 address", "RFC 2827 (BCP 38); RFC 7039 (SAVI)",
           _ip_spoof(6)),
    Attack("nd-spoof", "tells others where an IPv6 address is", "RFC 3756, 4.1.1; RFC 6620",
           _nd_spoof),
    Attack("redirect", "tells a neighbour that it is the better router",
           "CVE-1999-0265; RFC 3756, 4.2.4", _redirects),
)  # fmt: skip
