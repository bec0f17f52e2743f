"""Connections on the way of a packet: recognised before the rules, translated, remembered after."""

from __future__ import annotations

from dvn.diagnose import l3
from dvn.diagnose.describe import inside
from dvn.diagnose.flows import Entry, Flows, ends_of
from dvn.diagnose.scene import IpAddress, Scene
from dvn.diagnose.subject import Subject, Translation
from dvn.diagnose.tracking import first_state

SNAT, DNAT = 16, 32  # linux/netfilter/nf_conntrack_common.h, IPS_SRC_NAT, IPS_DST_NAT
PRIORITY = -200  # linux/netfilter_ipv4.h, NF_IP_PRI_CONNTRACK
# Among a hook's chains addresses are changed here: destination before the route, source after.
NAT_PRIORITIES = {"prerouting": -100, "output": -100, "input": 100, "postrouting": 100}


class Tracker:
    """Conntrack and NAT of one walk."""

    def __init__(self, flows: Flows, scene: Scene) -> None:
        self._flows, self._scene = flows, scene

    def begin(self, subject: Subject) -> None:
        """Find the packet's connection, in the zone that raw rules have put it into."""
        connection = subject.connection
        if subject.packet.state == "untracked":
            connection.state = "untracked"
        if connection.begun or connection.state == "untracked":
            return
        connection.begun = True
        connection.ends = ends_of(subject.packet)
        zones = {way: self._zone(subject, way) for way in ("original", "reply")}
        found = None
        if connection.ends is not None:
            found = self._flows.find(connection.ends, zones["original"], zones["reply"])
        if found is None:
            connection.state = subject.packet.state or first_state(subject.packet)
            return
        connection.entry, connection.reply = found
        entry = connection.entry
        entry.answered |= connection.reply
        connection.state = "established" if entry.answered else "new"
        connection.mark, connection.status = entry.mark, entry.status

    def _zone(self, subject: Subject, way: str) -> int:
        connection = subject.connection
        return connection.zone if connection.zone_of in ("", way) else 0

    def decides(self, subject: Subject) -> bool:
        """Whether NAT rules are asked: by the first packet of a flow only, and until one says."""
        connection = subject.connection
        return (
            connection.state in ("new", "related")
            and connection.entry is None
            and subject.translation is None
        )

    def translate(self, subject: Subject) -> str:
        """Change the addresses as the packet's connection has them. What changed, in words."""
        connection = subject.connection
        entry = connection.entry
        if entry is None or subject.hook not in NAT_PRIORITIES:
            return ""
        here, other = (
            (entry.reply, entry.original) if connection.reply else (entry.original, entry.reply)
        )
        source = NAT_PRIORITIES[subject.hook] > 0
        if source:
            same = (here.source, here.sport) == (other.destination, other.dport)
            address, port = other.destination, other.dport
        else:
            same = (here.destination, here.dport) == (other.source, other.sport)
            address, port = other.source, other.sport
        if same:
            return ""
        subject.packet = l3.rewritten(subject.packet, source, int(address), port)
        return f"as its connection was: {inside(subject.packet)}"

    def decided(self, subject: Subject) -> tuple[str, bool]:
        """Do what a NAT rule has just decided. (What changed, in words; whether it is possible.)"""
        found = subject.translation
        if found is None:
            return "", True
        source = found.kind in ("snat", "masquerade")
        address = found.address
        if address is None:
            own = self._own(subject, found)
            address = int(own) if own else None
        before = subject.packet
        subject.packet = l3.rewritten(subject.packet, source, address, found.port)
        if subject.packet == before:
            return f"{found.kind}: nothing to change", True
        subject.connection.status |= SNAT if source else DNAT
        words = f"{found.kind}: {inside(subject.packet)}"
        now = ends_of(subject.packet)
        if now is not None and self._flows.taken(now.turned(), self._zone(subject, "reply")):
            if not now.has_ports:  # nf_nat_used_tuple: nothing is left to tell two flows apart by
                return f"{words}: another connection has these ends, and it has no ports", False
            return f"{words}, by another port", True
        return words, True

    def _own(self, subject: Subject, found: Translation) -> IpAddress | None:
        """The address of the device, for masquerade and redirect."""
        version = 4 if subject.family == "ip" else 6
        if found.kind == "masquerade":
            return l3.first_address(self._scene.devices.get(subject.oif), version)
        if found.kind == "redirect":
            return l3.first_address(self._scene.devices.get(subject.iif), version)
        return None

    def confirm(self, subject: Subject) -> None:
        """The packet leaves, or reaches this host: its connection is one from now on."""
        connection = subject.connection
        if connection.entry is not None:
            connection.entry.mark = connection.mark
            return
        now = ends_of(subject.packet)
        if connection.state != "new" or connection.ends is None or now is None:
            return
        entry = Entry(connection.ends, now.turned(), connection.mark, connection.status)
        connection.entry = entry
        self._flows.add(entry, self._zone(subject, "original"), self._zone(subject, "reply"))
