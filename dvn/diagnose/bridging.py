"""A frame in a bridge: net/bridge/br_input.c, br_forward.c, br_netfilter_hooks.c."""

from __future__ import annotations

from dataclasses import replace

from dvn.diagnose.frames import ETH_P_IP, ETH_P_IP6, Packet, is_group
from dvn.diagnose.scene import Device
from dvn.diagnose.subject import Connection, Subject
from dvn.diagnose.tracking import first_state
from dvn.diagnose.trail import Trail

_LINK_LOCAL = "01:80:c2:00:00:0"


class Bridging(Trail):
    """The part of a way that lies in bridges."""

    def _bridge_in(self, port: Device, bridge: Device, packet: Packet) -> None:
        """br_handle_frame."""
        if is_group(packet.source) or packet.source == "00:00:00:00:00:00":
            self._drop("bridge", bridge.name, f"{packet.source} is no source address")
            return
        if packet.destination.startswith(_LINK_LOCAL) and not packet.destination.endswith("0"):
            self._link_local(port, bridge, packet)
            return
        subject = self._bridge_subject(packet, "prerouting", port.name, "", bridge.name)
        if not self._hook(subject, port.name):
            return
        packet, to = subject.packet, subject.packet.destination
        if self._netfilter(packet) and not self._whole(bridge, packet):
            return
        local = to in {bridge.mac, *(each.mac for each in self._scene.ports(bridge.name))} - {""}
        if local or is_group(to):
            self._bridge_up(port, bridge, packet)
        if not local:
            self._bridge_forward(port, bridge, packet)

    def _link_local(self, port: Device, bridge: Device, packet: Packet) -> None:
        """IEEE 802.1D reserved addresses are not forwarded: the *port* receives them, past the
        bridge and its prerouting hook, and LLDP's past its input hook as well. (Those to ...:00
        are frames like others where no spanning tree runs.)"""
        if packet.destination.endswith("1"):
            self._drop("bridge", bridge.name, "pause frames go no further")
            return
        if not packet.destination.endswith("e"):
            subject = self._bridge_subject(packet, "input", port.name, "", bridge.name)
            if not self._hook(subject, port.name):
                return
        self._tell("bridge", port.name, "link-local multicast: to the port itself")
        self._receive(port, packet)

    def _bridge_up(self, port: Device, bridge: Device, packet: Packet) -> None:
        """br_pass_frame_up: to the bridge's own device."""
        subject = self._bridge_subject(packet, "input", port.name, "", bridge.name)
        if not self._hook(subject, port.name):
            return
        self._tell("bridge", bridge.name, f"from {port.name} to the gateway itself")
        self._receive(bridge, subject.packet)

    def _bridge_forward(self, port: Device | None, bridge: Device, packet: Packet) -> None:
        """To the port that has learned the address, or to all others. `port` None: from the bridge
        itself."""
        known = self._scene.learned.get((bridge.name, packet.destination))
        came = port.name if port else ""
        targets = [p for p in self._scene.ports(bridge.name) if p.up]
        if known and not is_group(packet.destination):
            targets = [p for p in targets if p.name == known]
        others = [p for p in targets if p.name != came]
        if port is not None and port.isolated:
            others = [p for p in others if not p.isolated]
        if not others:
            self._drop("bridge", bridge.name, f"no other port takes {packet.destination}")
        elif len(others) > 1:
            names = ", ".join(p.name for p in others)
            self._tell("bridge", bridge.name, f"flooded to {names}")
        for target in others:
            self._bridge_out(came, target, bridge, packet)

    def _bridge_out(self, came: str, target: Device, bridge: Device, packet: Packet) -> None:
        hook = "forward" if came else "output"
        subject = self._bridge_subject(packet, hook, came, target.name, bridge.name)
        if not self._hook(subject, target.name):
            return
        shown = self._shown_to_ip(bridge, subject.packet) if came else subject.packet
        if shown is None:
            return
        subject = replace(subject, packet=shown, hook="postrouting", iif="")
        if self._hook(subject, target.name):
            self._send(target, subject.packet)

    def _shown_to_ip(self, bridge: Device, packet: Packet) -> Packet | None:
        """br_netfilter, where it is loaded, shows bridged IP frames to the inet tables as well.
        The packet as they leave it; None if they drop it."""
        if not self._netfilter(packet):
            return packet
        family = "ip" if packet.protocol == ETH_P_IP else "ip6"
        subject = Subject(packet, family, "prerouting", bridge.name)
        for hook in ("prerouting", "forward", "postrouting"):
            iif = bridge.name if hook != "postrouting" else ""
            oif = bridge.name if hook != "prerouting" else ""
            subject = replace(subject, hook=hook, iif=iif, oif=oif, translation=None)
            if not self._hook(subject, bridge.name):
                return None
        self._tracker.confirm(subject)
        return subject.packet

    def _netfilter(self, packet: Packet) -> bool:
        keys = {ETH_P_IP: "iptables", ETH_P_IP6: "ip6tables"}
        key = keys.get(packet.protocol)
        return (
            packet.tag is None
            and key is not None
            and bool(self._scene.number(f"net/bridge/bridge-nf-call-{key}"))
        )

    def _bridge_subject(
        self, packet: Packet, hook: str, iif: str, oif: str, bridge: str
    ) -> Subject:
        state = packet.state or first_state(packet)
        return Subject(
            packet, "bridge", hook, iif, oif,
            bridge if iif else "", bridge if oif else "", connection=Connection(state),
        )  # fmt: skip
