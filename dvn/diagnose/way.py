"""A packet's way through a host: devices in, IP, routes, devices out."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

from dvn.diagnose import encapsulation, l3
from dvn.diagnose.bridging import Bridging
from dvn.diagnose.describe import describe, inside
from dvn.diagnose.frames import ETH_P_ARP, Packet, is_group
from dvn.diagnose.hops import HOST, Exit
from dvn.diagnose.routing import Flow
from dvn.diagnose.scene import Device, Path
from dvn.diagnose.subject import Subject

_LOOPS = 8  # tunnels within tunnels


class Way(Bridging):
    """One packet under way."""

    # -- arrival

    def enter(self, device: Device, packet: Packet) -> None:
        """A frame that a device received."""
        self._depth += 1
        if self._depth > _LOOPS:
            self._drop("loop", device.name, "it goes round and round")
            return
        self._tell("in", device.name, describe(packet))
        if not device.up:
            self._drop("link", device.name, "the link is down")
            return
        tag = packet.tag
        if tag is not None:
            vlan = self._scene.vlans.get((device.name, tag.id))
            if vlan is not None and tag.protocol == 0x8100:
                self._tell("vlan", device.name, f"VLAN {tag.id} is {vlan.name}")
                self.enter(vlan, packet.without_tag())
                return
        master = self._scene.devices.get(device.master)
        if master is not None and master.kind == "bridge":
            self._bridge_in(device, master, packet)
        else:
            self._receive(device, packet)

    # -- departure

    def _send(self, device: Device, packet: Packet) -> None:
        """A frame goes out by a device: onto a wire, or on through a VLAN device or tunnel."""
        if not device.up:
            self._drop("link", device.name, "the link is down")
            return
        match device.kind:
            case "vlan":
                parent = self._scene.devices.get(device.parent)
                self._tell("vlan", device.name, f"tagged with VLAN {device.vlan}")
                if parent is None:
                    self._exit(device.parent, packet.with_tag(device.vlan), "out")
                else:
                    self._send(parent, packet.with_tag(device.vlan))
            case kind if kind in encapsulation.KINDS and device.remote:
                outer = encapsulation.wrapped(device, packet)
                self._tell("tunnel", device.name, f"in GRE: {inside(outer)}")
                self._tunnelled(device, outer)
            case "wireguard":
                self._exit(device.name, packet, f"encrypted, to the peer of {inside(packet)}")
            case "bridge":
                self._bridge_forward(None, device, packet)
            case _:
                self._exit(device.name, packet, f"out: {describe(packet)}")

    def _tunnelled(self, device: Device, outer: Packet) -> None:
        """The exit is the tunnel's; what carries it is looked at all the same."""
        before = len(self.exits)
        self.from_host(outer, device.through)
        if len(self.exits) > before:
            del self.exits[before:]
            self.exits.append(Exit(device.name, outer))

    def from_host(self, packet: Packet, by: str = "") -> None:
        """A packet that this host sends itself; `by` a device it is bound to."""
        ip = packet.ip
        if ip is None:
            self._drop("host", HOST, "not an IP packet")
            return
        flow = Flow(ip.destination, ip.source, mark=packet.mark)
        path = self._routing.lookup(flow)
        if by:
            path = Path(ip_network(ip.destination), by)
        if not self._usable(path, packet, HOST):
            return
        assert path is not None
        family = "ip" if ip.version == 4 else "ip6"
        subject = Subject(packet, family, "output", "", path.device)
        if self._hook(subject, path.device):
            self._leave(subject, path)

    def _receive(self, device: Device, packet: Packet) -> None:
        """What a device gives to the host's own protocols."""
        if packet.tag is not None:  # no VLAN device took it: only a priority tag is ignored
            if packet.tag.id:
                self._drop("vlan", device.name, f"no device takes VLAN {packet.tag.id}")
                return
            self._receive(device, packet.without_tag())
            return
        to = packet.destination
        if not is_group(to) and device.mac and to != device.mac:
            self._drop("link", device.name, f"{to} is not the address of {device.name}")
            return
        if packet.protocol == ETH_P_ARP:
            subject = Subject(packet, "arp", "input", device.name)
            if self._hook(subject, device.name):
                self._exit(HOST, packet, "ARP, to this host")
            return
        if not self._whole(device, packet):
            return
        problem = l3.refused(packet)
        if problem:
            self._drop("ip", device.name, problem)
            return
        self._ip(device, packet)

    def _whole(self, device: Device, packet: Packet) -> bool:
        """Whether IP takes it up: well-formed, and not a fragment that has to wait."""
        problem = l3.malformed(packet)
        if not problem and self._rules.tracks and l3.waits(packet):
            problem = l3.WAITS
        if problem:
            self._drop("ip", device.name, problem)
        return not problem

    def _ip(self, device: Device, packet: Packet) -> None:
        ip = packet.ip
        assert ip is not None  # l3.malformed
        vrf = self._scene.vrf_of(device.name)
        family = "ip" if ip.version == 4 else "ip6"
        subject = Subject(packet, family, "prerouting", device.name)
        if not self._hook(subject, device.name):
            return
        if vrf is not None and not self._routed_by(vrf, device, subject):
            return
        self._route(device, subject)

    def _routed_by(self, vrf: Device, device: Device, subject: Subject) -> bool:
        """From now on the packet is the router's (drivers/net/vrf.c, vrf_ip_rcv, vrf_ip6_rcv), and
        meets the hook again as such; but neighbour discovery stays the device's own, and what is
        for this link alone is not shown twice. Whether the packet goes on."""
        self._tell("vrf", vrf.name, f"{device.name} belongs to {vrf.name}, table {vrf.table}")
        discovery = l3.is_discovery(subject.packet)
        subject.iif, subject.slave = vrf.name, device.name
        again = discovery or not l3.is_for_link(subject.packet)
        if again and not self._hook(subject, vrf.name):
            return False
        if discovery:
            subject.iif, subject.slave = device.name, ""
        return True

    def _route(self, device: Device, subject: Subject) -> None:
        ip = subject.packet.ip
        assert ip is not None  # NAT changes addresses only
        if ip.destination.is_multicast:
            if not l3.listens(self._scene, device, ip.destination):
                self._drop("route", device.name, f"nobody listens to {ip.destination} here")
                return
            self._to_host(device, subject)
            return
        flow = Flow(ip.destination, ip.source, subject.iif, mark=subject.packet.mark)
        path = self._routing.lookup(flow)
        refused = l3.source_refused(self._scene, self._routing, device, subject)
        if refused:
            self._drop("route", device.name, refused)
            return
        if not self._usable(path, subject.packet, device.name):
            return
        assert path is not None
        if path.kind in ("local", "broadcast"):
            self._to_host(device, subject)
            return
        if not l3.forwards(self._scene, device, ip.version):
            self._drop("route", device.name, f"IPv{ip.version} forwarding is off here")
            return
        via = f" via {path.gateway}" if path.gateway else ""
        self._tell("route", device.name, f"{path.prefix}{via} on {path.device}")
        out = self._scene.devices.get(path.device)
        problem = l3.not_forwarded(subject.packet, path.mtu or (out.mtu if out else 1500))
        if problem:
            self._drop("forward", device.name, problem)
            return
        subject.hook, subject.oif = "forward", path.device
        subject.packet = l3.aged(subject.packet)
        if self._hook(subject, path.device):
            self._leave(subject, path)

    def _usable(self, path: Path | None, packet: Packet, device: str) -> bool:
        if path is None:
            to = packet.ip.destination if packet.ip else ""
            self._drop("route", device, f"there is no route to {to}")
            return False
        if path.kind not in ("unicast", "local", "broadcast"):
            self._drop("route", device, f"the route to {path.prefix} says {path.kind}")
            return False
        return True

    def _to_host(self, device: Device, subject: Subject) -> None:
        ip = subject.packet.ip
        assert ip is not None
        self._tell("route", device.name, f"{ip.destination} is this host")
        subject.hook, subject.oif, subject.translation = "input", "", None
        if not self._hook(subject, device.name):
            return
        self._tracker.confirm(subject)
        problem = l3.not_taken(subject.packet)
        if problem:
            self._drop("ip", device.name, problem)
            return
        tunnel, inner, why = encapsulation.unwrapped(self._scene, subject.packet)
        if tunnel is not None and inner is not None:
            self._tell("tunnel", tunnel.name, "out of GRE")
            self.enter(tunnel, inner)
        elif why:
            self._drop("tunnel", device.name, why)
        else:
            self._exit(HOST, subject.packet, "to this host")

    def _leave(self, subject: Subject, path: Path) -> None:
        """Postrouting, and out by the route's device to whoever has the next address."""
        subject = replace(subject, hook="postrouting", iif="", oif=path.device, translation=None)
        if not self._hook(subject, path.device):
            return
        self._tracker.confirm(subject)
        packet, device = subject.packet, self._scene.devices.get(path.device)
        if device is None:
            self._exit(path.device, packet, "out")
            return
        if path.kind == "local":
            self._exit(HOST, packet, "to this host")
            return
        ip = packet.ip
        following = path.gateway or (ip.destination if ip else None)
        mac = self._scene.neighbours.get((device.name, following)) if following else None
        if mac is None and device.kind == "bridge":
            words = f"who has {following} is asked in the whole network"
            self._tell("neighbour", device.name, words)
        source = device.mac or "02:00:00:00:00:01"
        self._send(device, packet.with_link(mac or l3.UNKNOWN_MAC, source))
