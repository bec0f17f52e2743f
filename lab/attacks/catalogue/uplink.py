"""What the site's own machines behind the switch may do, and a tenant's machine may not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from lab.attacks.catalogue import rogue
from lab.attacks.catalogue.draft import Attack, Draft, Packet, Tag, bound
from lab.attacks.catalogue.packets import BROADCAST, arp, ether, multicast_mac, udp
from lab.attacks.catalogue.vantage import Vantage, at_port, vantages
from lab.attacks.ground import EVIL4, EVIL6, NICS

_VLAN = frozenset({"vlan"})
Act = Callable[[Tag, Vantage], Packet]


def _acts(victim: str) -> Mapping[str, tuple[int, Act]]:
    """(family, what is sent by whoever it is) to a machine of the network."""
    nic = NICS[victim]

    def source4(tag: Tag, where: Vantage) -> Packet:
        return ether(where.mac, nic.mac, udp(EVIL4, nic.ip4, tag))

    def source6(tag: Tag, where: Vantage) -> Packet:
        return ether(where.mac, nic.mac, udp(EVIL6, nic.ip6, tag))

    def arp_source(tag: Tag, where: Vantage) -> Packet:
        return arp(where.mac, where.mac, EVIL4, nic.ip4, tag)

    def router(tag: Tag, where: Vantage) -> Packet:
        packet = rogue.advertised(where, tag)
        return ether(where.mac, multicast_mac("ff02::1"), packet)

    def dhcp(tag: Tag, where: Vantage) -> Packet:
        return ether(where.mac, BROADCAST, rogue.offered(where, "offer", tag))

    def dhcp6(tag: Tag, where: Vantage) -> Packet:
        return ether(where.mac, nic.mac, rogue.replied(where, nic.ip6, tag))

    return {
        "another prefix IPv4": (4, source4),
        "another prefix IPv6": (6, source6),
        "another prefix in ARP": (4, arp_source),
        "a router": (6, router),
        "a DHCP server": (4, dhcp),
        "a DHCPv6 server": (6, dhcp6),
    }


def _drafts() -> Iterator[Draft]:
    for own in (where for where in vantages() if where.kind == "vlan"):
        attacker, victim = at_port(own.net.machines[0]), own.net.machines[1]
        for what, (family, act) in _acts(victim).items():
            yield Draft(
                f"{what} in {own.net.full}", family, attacker.name,
                (own.control(bound(act, where=own)), attacker.send(bound(act, where=attacker))),
                attacker.elsewhere, "from behind the switch it arrives", frozenset({victim}),
                needs=_VLAN,
            )  # fmt: skip


ATTACKS = (
    Attack("site's own", "does what only the site's own routers and servers may",
           "RFC 2827; RFC 6104; RFC 7610", _drafts),
)  # fmt: skip
