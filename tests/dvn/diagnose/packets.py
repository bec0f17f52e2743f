"""Packets of every kind for a site: honest ones, and the same with one thing wrong. Seeded."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dvn.diagnose.build import BROADCAST, Described, build, protocol_number
from dvn.diagnose.frames import Packet
from tests.dvn.diagnose.agreement import Sent, numbered

SYN = 2  # the flag, alone


@dataclass(frozen=True)
class Station:
    """A machine somewhere: where its frames enter, its addresses, its gateway's."""

    enters: str
    mac: str
    four: str
    six: str
    gateway_mac: str
    gateway4: str
    gateway6: str
    tag: int | None = None


class Generator:
    """Any number of packets from stations to each other, the gateway, the site, the internet."""

    def __init__(
        self, stations: tuple[Station, ...], far: tuple[str, ...], seed: int, first: int = 0
    ) -> None:
        self._stations, self._far = stations, far
        self._random = random.Random(seed)
        self._number = first

    def packets(self, count: int) -> Iterator[Sent]:
        for _ in range(count):
            station = self._random.choice(self._stations)
            self._number += 1
            described = self._described(station)
            packet = build(described)
            packet = self._spoiled(packet)
            yield Sent(self._number, station.enters, packet)

    def honest(self, to: str) -> Iterator[Sent]:
        """From every station the first packet of a connection to somewhere in IPv4."""
        for station in self._stations:
            for protocol in ("tcp", "udp", "icmp"):
                self._number += 1
                described = Described(
                    station.four, to, protocol, sport=10000 + self._number,
                    kind="echo-request" if protocol == "icmp" else "",
                    mac=station.mac, to_mac=station.gateway_mac,
                    tags=(station.tag,) if station.tag else (), payload=numbered(self._number),
                )  # fmt: skip
                yield Sent(self._number, station.enters, build(described))

    def _described(self, station: Station) -> Described:
        chance = self._random
        version = chance.choice((4, 4, 6))
        source = station.four if version == 4 else station.six
        if chance.random() < 0.2:
            source = chance.choice(self._others(station, version))
        destination, to_mac = self._destination(station, version)
        protocol = chance.choice(("tcp", "tcp", "udp", "icmp", "arp" if version == 4 else "icmp"))
        kinds = {
            "icmp": ("echo-request", "echo-request", "echo-reply", "destination-unreachable"),
            "arp": ("request", "reply"),
        }
        if version == 6:
            kinds["icmp"] += (
                "nd-neighbor-solicit", "nd-neighbor-advert", "nd-router-advert",
                "nd-router-solicit", "nd-redirect", "mld2-listener-report",
            )  # fmt: skip
        kind = chance.choice(kinds[protocol]) if protocol in kinds else ""
        if protocol == "arp" and kind == "request":
            to_mac = BROADCAST
        number = self._number
        described = Described(
            source,
            destination,
            protocol,
            sport=chance.choice((67, 68, 546, 547)) if chance.random() < 0.08 else 10000 + number,
            dport=chance.choice((22, 53, 67, 68, 80, 443, 546, 547, 3784)),
            flags=chance.choice(("S", "S", "S", "A", "SA", "R", "FA", "")),
            kind=kind,
            mss=chance.choice((0, 1460, 536)),
            ttl=255 if kind.startswith("nd-") else chance.choice((64, 64, 64, 1, 255)),
            mac=station.mac,
            to_mac=to_mac,
            tags=(station.tag,) if station.tag else (),
            payload=numbered(number),
        )
        return self._changed(described, station)

    def _changed(self, what: Described, station: Station) -> Described:
        """One thing wrong, now and then."""
        chance = self._random
        fate = chance.random()
        if fate < 0.08:
            return replace(what, mac=chance.choice(self._stations).mac)
        if fate < 0.14:
            return replace(what, tags=(*what.tags, chance.choice((0, 101, 102, 7))))
        if fate < 0.18 and what.protocol != "arp":
            return replace(what, offset=1480, protocol=what.protocol)
        if fate < 0.20 and what.protocol != "arp":
            return replace(what, more=True)
        if fate < 0.25:
            return replace(what, target_mac="02:00:00:00:00:77")
        if fate < 0.30 and ":" in what.source:
            header = chance.choice((b"\0", b"\x3c", b"\x2b"))[0]
            following = protocol_number(what.protocol, 6)
            padding = (chance.choice((0, 4)), 0) if header == 0x2B else (1, 4)  # PadN
            extension = bytes([following, 0, *padding, 0, 0, 0, 0])
            return replace(what, extensions=extension, next_header=header)
        if fate < 0.32:
            return replace(what, protocol="253", kind="")
        return what

    def _spoiled(self, packet: Packet) -> Packet:
        """Another ethertype, or a length for one, now and then."""
        chance = self._random
        fate = chance.random()
        if fate < 0.03:
            other = chance.choice((0x88CC, 0x8863, 0x86DD, 0x0800, 0x0806, 0x88A8, 0x9000))
            return Packet(packet.frame[:12] + other.to_bytes(2, "big") + packet.frame[14:])
        if fate < 0.05:
            llc = b"\xaa\xaa\x03\0\0\0\x08\0" + packet.frame[14:]
            return Packet(packet.frame[:12] + len(llc).to_bytes(2, "big") + llc)
        if fate < 0.07:
            group = chance.choice(
                ("01:80:c2:00:00:00", "01:80:c2:00:00:03", "01:80:c2:00:00:0e", "33:33:00:00:00:01")
            )
            return packet.with_link(group, packet.source)
        if fate < 0.08:
            return packet.with_link(packet.destination, "01:00:5e:00:00:09")
        return packet

    def _others(self, station: Station, version: int) -> list[str]:
        found = [s.four if version == 4 else s.six for s in self._stations if s != station]
        own = [station.gateway4, "0.0.0.0", "255.255.255.255", "127.0.0.1", "8.8.4.4"]
        own6 = [station.gateway6, "::", "fe80::9", "ff02::9", "2001:db8::9"]
        return found + (own if version == 4 else own6)

    def _destination(self, station: Station, version: int) -> tuple[str, str]:
        chance = self._random
        fate = chance.random()
        if fate < 0.25:  # a neighbour, or one that is none
            other = chance.choice(self._stations)
            return (other.four if version == 4 else other.six), chance.choice(
                (other.mac, station.gateway_mac)
            )
        if fate < 0.45:
            own = station.gateway4 if version == 4 else station.gateway6
            return own, station.gateway_mac
        if fate < 0.55:
            return (
                ("255.255.255.255", BROADCAST) if version == 4 else ("ff02::1", "33:33:00:00:00:01")
            )
        if fate < 0.6:
            other = chance.choice(self._stations)
            return (other.gateway4 if version == 4 else other.gateway6), station.gateway_mac
        families = [address for address in self._far if (":" in address) == (version == 6)]
        return chance.choice(families), station.gateway_mac


def answer(frame: Packet, sent: Sent, number: int) -> Packet | None:
    """What the other end says to a packet that came out; None where that is not so simple: a
    fragment, an error, a source port that NAT had to change."""
    ip, data, before = frame.ip, frame.transport, sent.packet.transport
    if ip is None or data is None or before is None or ip.is_fragment or ip.extensions:
        return None
    if data[:4] != before[:4]:
        return None
    plain = Described(
        str(ip.destination),
        str(ip.source),
        mac=frame.destination,
        to_mac=frame.source,
        payload=numbered(number),
    )
    first, second = (int.from_bytes(data[at : at + 2], "big") for at in (0, 2))
    match ip.protocol:
        case 6 if data[13] == SYN:
            return build(replace(plain, sport=second, dport=first, flags="SA"))
        case 17:
            return build(replace(plain, protocol="udp", sport=second, dport=first))
        case 1 | 58 if data[0] in (8, 128):
            id_ = int.from_bytes(data[4:6], "big")
            return build(replace(plain, protocol="icmp", kind="echo-reply", sport=id_))
        case _:
            return None
