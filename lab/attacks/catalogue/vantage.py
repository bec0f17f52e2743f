"""Where an attacker in a network stands: behind a port, behind the switch, at a tunnel's end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from scapy.layers.inet import IP
from scapy.layers.l2 import GRE, Ether

from dvn import addresses
from lab.attacks.case import Phase, Role
from lab.attacks.catalogue.draft import Make, Packet, Send, Tag
from lab.attacks.catalogue.packets import echo, ether, tcp, udp
from lab.attacks.ground import (
    NETS,
    NICS,
    PLACES,
    SITE4,
    SITE6,
    WAN4,
    WEB4,
    WEB6,
    Net,
    insiders,
    remote_address,
    remote_mac,
)

TEB = 0x6558  # Ethernet in GRE: transparent Ethernet bridging


@dataclass(frozen=True)
class Vantage:
    """A place inside a network with the addresses that are honestly its own."""

    name: str
    net: Net
    mac: str
    ip4: str
    ip6: str
    kind: str  # port, loose, vlan, tunnel
    needs: frozenset[str]

    @property
    def pinned(self) -> bool:
        """Whether the gateway knows its addresses."""
        return self.kind == "port" or (self.kind == "tunnel" and self.net.tenant == "blue")

    @property
    def link_local(self) -> str:
        return addresses.link_local(self.mac).split("/")[0]

    def address(self, version: int) -> str:
        return self.ip4 if version == 4 else self.ip6

    def wrap(self, frame: Packet) -> Packet:
        """The frame as it leaves the attacker's machine: at a tunnel's end, in GRE."""
        return in_gre(self.net, frame) if self.kind == "tunnel" else frame

    def send(self, make: Make, phase: Phase = Phase.ATTACK, role: Role = Role.ATTACK) -> Send:
        return Send(self.name, lambda tag: self.wrap(make(tag)), phase, role)

    def control(self, make: Make) -> Send:
        return self.send(make, Phase.CONTROL, Role.CONTROL)

    def through_gateway(self, packet: Callable[[Tag], Packet]) -> Make:
        """An IP packet for the gateway to route."""
        return lambda tag: ether(self.mac, self.net.mac, packet(tag))

    @property
    def elsewhere(self) -> frozenset[str]:
        """Every place but the attacker's own."""
        return PLACES - {self.name}

    @property
    def peer(self) -> str:
        """Another machine of the network, behind a port."""
        return next(name for name in self.net.machines if name != self.name)

    def control_elsewhere(self, version: int) -> tuple[str, str, str]:
        """(place, address, words) of what this network may reach through the gateway; its own
        neighbour where it may reach nothing."""
        if self.net.nat4:
            return "web", WEB4 if version == 4 else WEB6, "the same to the internet arrives"
        return self.neighbour(version)

    def neighbour(self, version: int) -> tuple[str, str, str]:
        """(place, address, words) of a machine of the same network."""
        nic = NICS[self.peer]
        return nic.host, nic.ip4 if version == 4 else nic.ip6, "the same to a neighbour arrives"

    def honest(self, version: int, kind: str) -> tuple[Send, frozenset[str], str]:
        """The same kind of packet, from the right source, to where it may go."""
        place, target, words = self.control_elsewhere(version)
        make = {"udp": udp, "tcp": tcp, "icmp": echo}[kind]
        mac = self.net.mac if place == "web" else NICS[place].mac
        own = self.address(version)
        send = self.control(lambda tag: ether(self.mac, mac, make(own, target, tag)))
        return send, frozenset({place}), words


def in_gre(
    net: Net, frame: Packet, *, key: int | None = None, source: str = "", target: str = WAN4,
    at: str = "",
) -> Packet:  # fmt: skip
    """As the network's remote end sends it: RFC 2784, 2890; Ethernet inside."""
    at = at or net.remote
    outer = IP(src=source or net.remote4, dst=target, ttl=64)
    gre = GRE(key_present=1, key=net.key if key is None else key, proto=TEB)
    return Ether(src=NICS[at].mac, dst=NICS[f"internet:{at}"].mac) / outer / gre / frame


def keyed(key: int, protocol: int = TEB) -> Packet:
    """A GRE header with a key (RFC 2890)."""
    return GRE(key_present=1, key=key, proto=protocol)


def vantages() -> Iterator[Vantage]:
    """One behind a port of each network, one behind the switch and one at the tunnel's end where
    there are such."""
    for net in NETS:
        yield at_port(net.machines[0])
        for name in net.loose:
            yield replace(at_port(name), kind="loose")
        if net.vlan_machine:
            nic = NICS[net.vlan_machine]
            yield Vantage(nic.host, net, nic.mac, nic.ip4, nic.ip6, "vlan", frozenset({"vlan"}))
        if net.remote:
            ip4, ip6 = remote_address(net, 4), remote_address(net, 6)
            needs = frozenset({"gretap"})
            yield Vantage(net.remote, net, remote_mac(net), ip4, ip6, "tunnel", needs)


def tenants_own() -> Iterator[Vantage]:
    """All but those behind the switch, whose ports the site's own switches guard: it may well have
    routers and DHCP servers, and other prefixes."""
    return (where for where in vantages() if where.kind != "vlan")


def at_port(machine: str) -> Vantage:
    nic = NICS[machine]
    assert nic.net is not None
    return Vantage(machine, nic.net, nic.mac, nic.ip4, nic.ip6, "port", frozenset())


def others(net: Net) -> tuple[Net, ...]:
    """Networks with other addresses: to its twin's no network can even speak."""
    return tuple(each for each in NETS if each.number != net.number)


def site_address(version: int) -> str:
    return SITE4 if version == 4 else SITE6


def machines_of(net: Net) -> frozenset[str]:
    return frozenset(insiders(net))
