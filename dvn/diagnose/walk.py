"""The way of one packet through a host: bridges, filters, routes, NAT, tunnels. Pure.

`walk(state, packet, enters)` leads a frame through a compiled plan; `Walker(ruleset, scene)`
through anything, such as what a running kernel was seen to have. Each step is a hop: where, what
happened, which rules had a part in it. The order of things is the kernel's: net/bridge/br_input.c
and br_forward.c, net/ipv4/ip_input.c and ip_forward.c, net/ipv6/ip6_input.c and ip6_output.c,
drivers/net/vrf.c.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_network

from dvn.diagnose import conntrack, encapsulation, l3
from dvn.diagnose import scene as scenes
from dvn.diagnose.describe import describe, inside
from dvn.diagnose.flows import Flows
from dvn.diagnose.frames import ETH_P_ARP, ETH_P_IP, ETH_P_IP6, Packet, is_group
from dvn.diagnose.nfteval import Connection, Hit, Ruling, Subject, Surroundings, judge
from dvn.diagnose.nfttypes import NAMES, Value
from dvn.diagnose.routing import Flow, Routing
from dvn.diagnose.rulesets import Chain, Line, Ruleset, Table
from dvn.diagnose.scene import Device, Path, Scene
from dvn.diagnose.tracking import first_state
from dvn.kernel.state import KernelState

HOST = "host"
_ACCEPT, _DROP = "accept", "drop"
_LINK_LOCAL = "01:80:c2:00:00:0"
_LOOPS = 8  # tunnels within tunnels


@dataclass(frozen=True)
class Hop:
    """One step. `verdict`: accept or drop where something was decided; `rules` that had a part."""

    where: str
    device: str
    words: str
    verdict: str = ""
    rules: tuple[Hit, ...] = ()
    unknown: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Exit:
    """Where a copy of the packet ended up well: a device it left by, or `host`."""

    device: str
    packet: Packet


@dataclass(frozen=True)
class Walk:
    """The whole way. A flooded frame has several exits."""

    packet: Packet
    enters: str
    hops: tuple[Hop, ...]
    exits: tuple[Exit, ...]

    @property
    def verdict(self) -> str:
        return "delivered" if self.exits else "dropped"

    @property
    def devices(self) -> frozenset[str]:
        """By which devices copies left; `host` for this host itself."""
        return frozenset(each.device for each in self.exits)

    def reaches(self, device: str) -> bool:
        return device in self.devices

    @property
    def why(self) -> str:
        """In one line: where it ended, or the last thing that stopped it."""
        if self.exits:
            return "delivered to " + ", ".join(sorted(self.devices))
        stopped = [hop for hop in self.hops if hop.verdict == _DROP]
        if not stopped:
            return "dropped: nobody takes it"
        hop = stopped[-1]
        return f"dropped at {hop.where} ({hop.device}): {hop.words}"


def walk(state: KernelState, packet: Packet, enters: str, *, scene: Scene | None = None) -> Walk:
    """Lead `packet` through what `state` makes. `enters`: the device it comes in by, or `host`.

    For many packets make one `Walker`. Raises KeyError if there is no such device.
    """
    return Walker(Ruleset.of(state.tables), scene or scenes.of_state(state)).walk(packet, enters)


class Walker:
    """Rules and scene, made ready for any number of packets."""

    def __init__(self, ruleset: Ruleset, scene: Scene) -> None:
        self.ruleset, self.scene = ruleset, scene
        self.routing = Routing(scene)

    def walk(self, packet: Packet, enters: str, flows: Flows | None = None) -> Walk:
        """`flows`: the connections that earlier walks have opened; it grows by this one's."""
        way = _Way(self, Flows() if flows is None else flows)
        if enters == HOST:
            way.from_host(packet)
        else:
            way.enter(self.scene.devices[enters], packet)
        return Walk(packet, enters, tuple(way.hops), tuple(way.exits))


class _Facts(Surroundings):
    """What rules ask beside the packet."""

    def __init__(self, walker: Walker) -> None:
        self._walker, self._devices = walker, walker.scene.devices

    def group(self, device: str) -> int:
        return self._devices[device].group if device in self._devices else 0

    def kind(self, device: str) -> str:
        return self._devices[device].kind if device in self._devices else ""

    def mss(self, device: str, version: int) -> int:
        mtu = self._devices[device].mtu if device in self._devices else 1500
        return mtu - (40 if version == 4 else 60)

    def fib(self, subject: Subject, keys: tuple[str, ...], result: str) -> Value | None:
        ip = subject.packet.ip
        if ip is None:
            return None
        asked = ip.source if "saddr" in keys else ip.destination
        flow = Flow(asked, None, subject.iif, mark=subject.packet.mark if "mark" in keys else 0)
        found = self._walker.routing.lookup(flow)
        if result == "type":
            if asked.is_multicast:
                return NAMES["fib_addrtype"]["multicast"]
            known = NAMES["fib_addrtype"]
            return known.get(found.kind, 1) if found else known["unreachable"]
        fits = found is not None and ("iif" not in keys or found.device == subject.iif)
        if result == "check":
            return int(fits)
        return found.device if found is not None and fits else None


class _Way:
    """One packet under way."""

    def __init__(self, walker: Walker, flows: Flows) -> None:
        self._walker, self._scene, self._rules = walker, walker.scene, walker.ruleset
        self._tracker = conntrack.Tracker(flows, walker.scene)
        self._facts = _Facts(walker)
        self._depth = 0
        self.hops: list[Hop] = []
        self.exits: list[Exit] = []

    # -- what is told

    def _tell(self, where: str, device: str, words: str, verdict: str = "") -> None:
        self.hops.append(Hop(where, device, words, verdict))

    def _drop(self, where: str, device: str, words: str) -> None:
        self._tell(where, device, words, _DROP)

    def _exit(self, device: str, packet: Packet, words: str) -> None:
        self._tell("exit", device, words, _ACCEPT)
        self.exits.append(Exit(device, packet))

    # -- filters

    def _hook(self, subject: Subject, device: str) -> bool:
        """Every base chain at the subject's hook. Whether the packet goes on."""
        chains = self._rules.at(subject.family, subject.hook)
        first = subject.hook in ("prerouting", "output") and subject.family != "bridge"
        if first:  # conntrack stands between raw and the rest
            early = [pair for pair in chains if pair[1].priority <= conntrack.PRIORITY]
            if not self._chains(subject, device, early):
                return False
            self._tracker.begin(subject)
            chains = tuple(pair for pair in chains if pair[1].priority > conntrack.PRIORITY)
        at = conntrack.NAT_PRIORITIES.get(subject.hook, 0)
        before = [pair for pair in chains if pair[1].priority < at]
        if not self._chains(subject, device, before):
            return False
        words = self._tracker.translate(subject)
        if words:
            self._tell("nat", device, words)
        return self._chains(subject, device, chains[len(before) :])

    def _chains(self, subject: Subject, device: str, chains: Iterable[tuple[Table, Chain]]) -> bool:
        for table, chain in chains:
            if chain.type == "nat" and not self._tracker.decides(subject):
                continue  # NAT is decided by the first packet of a flow
            changed = len(subject.changes)
            ruling = judge(table, chain, subject, self._facts)
            where = f"{subject.hook} {table.id} {chain.name}"
            words = _ruled(ruling, subject.changes[changed:])
            verdict = ruling.verdict
            if chain.type == "nat" and subject.translation is not None:
                words, possible = self._tracker.decided(subject)
                verdict = verdict if possible else _DROP
            self.hops.append(Hop(where, device, words, verdict, ruling.hits, ruling.unknown))
            if verdict == _DROP:
                return False
        return True

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
        path = self._walker.routing.lookup(flow)
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
        if vrf is not None:  # a second time, as if it came from the VRF's device
            self._tell("vrf", vrf.name, f"{device.name} belongs to {vrf.name}, table {vrf.table}")
            subject.iif, subject.slave = vrf.name, device.name
            if not self._hook(subject, vrf.name):
                return
        self._route(device, subject)

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
        path = self._walker.routing.lookup(flow)
        refused = l3.source_refused(self._scene, self._walker.routing, device, subject)
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


def _ruled(ruling: Ruling, changes: list[str]) -> str:
    told = [change for change in changes if not change.startswith("mark ")]
    said = f" ({', '.join(told)})" if told else ""
    decisive = ruling.decisive
    if decisive is not None:
        return decisive.line.shown + said
    return ("nothing objects" if ruling.verdict == _ACCEPT else "policy drop") + said
