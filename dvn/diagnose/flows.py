"""Connections that walks have opened, so that an answer is known for one and translated back.

A connection is found by its addresses, protocol, ports and zone in either direction, as conntrack
finds it (net/netfilter/nf_conntrack_core.c, resolve_normal_ct).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from dvn.diagnose.frames import ICMP, ICMP6, TCP, UDP, Packet
from dvn.diagnose.scene import IpAddress

_QUESTIONS = {(ICMP, 8): 0, (ICMP, 13): 14, (ICMP, 15): 16, (ICMP, 17): 18, (ICMP6, 128): 129}
_TURNED = _QUESTIONS | {(protocol, answer): kind for (protocol, kind), answer in _QUESTIONS.items()}
_PORTED = frozenset({TCP, UDP, 132, 136, 33})


@dataclass(frozen=True)
class Ends:
    """Who speaks to whom. Of ICMP both ports are the id; `kind` is its type."""

    source: IpAddress
    destination: IpAddress
    protocol: int
    sport: int = 0
    dport: int = 0
    kind: int = -1

    def turned(self) -> Ends:
        kind = _TURNED.get((self.protocol, self.kind), -1)
        return Ends(self.destination, self.source, self.protocol, self.dport, self.sport, kind)

    @property
    def has_ports(self) -> bool:
        return self.protocol in _PORTED or self.kind >= 0


@dataclass
class Entry:
    """One connection. `reply` are the ends an answer has, as it comes in: after translation."""

    original: Ends
    reply: Ends
    mark: int = 0
    status: int = 0  # ct status: SNAT, DNAT
    answered: bool = False


_Key: TypeAlias = tuple[int, Ends]


class Flows:
    """The connections of one host. Zones are those of the direction."""

    def __init__(self) -> None:
        self._original: dict[_Key, Entry] = {}
        self._reply: dict[_Key, Entry] = {}

    def find(self, ends: Ends, zone: int, reply_zone: int) -> tuple[Entry, bool] | None:
        """(entry, whether these ends are its answer)."""
        if found := self._original.get((zone, ends)):
            return found, False
        if found := self._reply.get((reply_zone, ends)):
            return found, True
        return None

    def taken(self, reply: Ends, zone: int) -> bool:
        """Whether answers with these ends belong to another connection already."""
        return (zone, reply) in self._reply

    def add(self, entry: Entry, zone: int, reply_zone: int) -> None:
        self._original[(zone, entry.original)] = entry
        self._reply[(reply_zone, entry.reply)] = entry


def ends_of(packet: Packet) -> Ends | None:
    """None for what is not tracked by its ends: no IP, an ICMP error, a later fragment."""
    ip, data = packet.ip, packet.transport
    if ip is None or ip.protocol is None or data is None:
        return None
    ends = Ends(ip.source, ip.destination, ip.protocol)
    if ip.protocol in _PORTED and len(data) >= 4:
        ports = int.from_bytes(data[0:2], "big"), int.from_bytes(data[2:4], "big")
        return replace(ends, sport=ports[0], dport=ports[1])
    if ip.protocol in (ICMP, ICMP6) and len(data) >= 8:
        if (ip.protocol, data[0]) not in _TURNED:
            return None
        number = int.from_bytes(data[4:6], "big")
        return replace(ends, sport=number, dport=number, kind=data[0])
    return ends
