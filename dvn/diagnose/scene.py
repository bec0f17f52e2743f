"""What a packet meets beside filters: devices, addresses, routes, neighbours, learned addresses.

A scene is of a plan (what the compiler would make, and the little it says of the host), or of a
running host (surroundings.py reads it).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import TypeAlias, TypeVar

from dvn.kernel.state import LINK_GROUP, KernelState, Link
from dvn.nat.things import Route, Rule

T = TypeVar("T")

IpAddress: TypeAlias = IPv4Address | IPv6Address
IpInterface: TypeAlias = IPv4Interface | IPv6Interface
IpNetwork: TypeAlias = IPv4Network | IPv6Network

DEFAULT, MAIN, LOCAL = 253, 254, 255  # routing tables (linux/rtnetlink.h)
IPV4_TUNNEL_OVERHEAD = 20 + 4 + 4


@dataclass(frozen=True)
class Device:
    """A link, ours or not. `parent` and `vlan` of an 802.1Q device; `ends` of a tunnel."""

    name: str
    kind: str = ""
    mtu: int = 1500
    up: bool = True
    mac: str = ""
    master: str = ""
    group: int = 0
    alias: str = ""
    parent: str = ""
    vlan: int = 0
    local: str = ""
    remote: str = ""
    key: int = 0
    fou: tuple[int, int] | None = None  # UDP ports around a tunnel's packets: ours, theirs
    through: str = ""  # the device its packets leave by, such as a WireGuard one
    table: int = 0  # of a VRF
    isolated: bool = False  # bridge port flag
    addresses: tuple[IpInterface, ...] = ()


@dataclass(frozen=True)
class Path:
    """A route. `kind`: unicast, local, broadcast, blackhole, unreachable, prohibit."""

    prefix: IpNetwork
    device: str
    gateway: IpAddress | None = None
    table: int = MAIN
    kind: str = "unicast"
    metric: int = 0
    mtu: int = 0


@dataclass(frozen=True)
class Selector:
    """A policy routing rule (ip-rule(8)), in the order of priority. `kind`: lookup, goto (the rule
    of priority `target`), nop, blackhole, unreachable, prohibit."""

    priority: int
    table: int
    version: int
    iif: str = ""
    oif: str = ""
    source: IpNetwork | None = None
    destination: IpNetwork | None = None
    mark: int | None = None
    mask: int = 0xFFFFFFFF
    l3mdev: bool = False
    kind: str = "lookup"
    target: int = 0
    inverted: bool = False


DEFAULT_RULES = tuple(
    rule
    for version in (4, 6)
    for rule in (
        Selector(0, LOCAL, version),
        Selector(1000, 0, version, l3mdev=True),
        Selector(32766, MAIN, version),
        Selector(32767, DEFAULT, version),
    )
)


@dataclass(frozen=True)
class Scene:
    """A host as a packet meets it. `neighbours`: (device, address) to MAC; `learned`: (bridge, MAC)
    to port; `sysctls` by their path below /proc/sys."""

    devices: Mapping[str, Device] = field(default_factory=dict)
    routes: tuple[Path, ...] = ()
    rules: tuple[Selector, ...] = ()
    neighbours: Mapping[tuple[str, IpAddress], str] = field(default_factory=dict)
    learned: Mapping[tuple[str, str], str] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)

    def ports(self, bridge: str) -> tuple[Device, ...]:
        return self._slaves.get(bridge, ())

    @cached_property
    def _slaves(self) -> dict[str, tuple[Device, ...]]:
        found: dict[str, list[Device]] = {}
        for device in self.devices.values():
            if device.master:
                found.setdefault(device.master, []).append(device)
        return {name: tuple(devices) for name, devices in found.items()}

    @cached_property
    def vlans(self) -> Mapping[tuple[str, int], Device]:
        return {(d.parent, d.vlan): d for d in self.devices.values() if d.kind == "vlan"}

    @cached_property
    def own(self) -> Mapping[IpAddress, tuple[Device, ...]]:
        """Addresses of this host, and where they are."""
        found: dict[IpAddress, list[Device]] = {}
        for device in self.devices.values():
            for address in device.addresses:
                found.setdefault(address.ip, []).append(device)
        return {address: tuple(devices) for address, devices in found.items()}

    def vrf_of(self, device: str) -> Device | None:
        here = self.devices.get(device)
        master = self.devices.get(here.master) if here and here.master else None
        if here and here.kind == "vrf":
            return here
        return master if master and master.kind == "vrf" else None

    def number(self, key: str, default: int = 0) -> int:
        try:
            return int(self.sysctls.get(key, default))
        except ValueError:
            return default


def of_state(
    state: KernelState, *, outside: str = "", host: Mapping[str, Device] | None = None
) -> Scene:
    """The scene that a plan makes. `outside`: where the default route leaves, by default what the
    tables call outside; `host`: other devices of the host, with their addresses."""
    outside = outside or _outside(state)
    devices = dict(host or {})
    for name in sorted({outside, *state.raised, *_parents(state)} - {""}):
        devices.setdefault(name, Device(name))
    for port in state.ports:
        known = devices.get(port.name, Device(port.name, up=port.name in state.raised))
        devices[port.name] = replace(known, master=port.master)
    for link in state.links:
        devices[link.name] = _device(link)
    for address in state.addresses:
        device = devices.get(address.link)
        if device is not None:
            more = (*device.addresses, ip_interface(address.address))
            devices[address.link] = replace(device, addresses=more)
    routes = [*connected(devices.values())]
    routes += [Path(ip_network(r.prefix), r.on, table=r.table) for r in things_of(state, Route)]
    rules = tuple(_selector(rule) for rule in things_of(state, Rule))
    if outside:
        ends = {d.local for d in devices.values() if d.local} - _known(devices)
        more = tuple(ip_interface(end) for end in sorted(ends))
        devices[outside] = replace(devices[outside], addresses=(*devices[outside].addresses, *more))
        routes += [Path(ip_network(text), outside) for text in ("0.0.0.0/0", "::/0")]
    sysctls = dict(state.sysctl_values)
    return with_pins(
        Scene(devices, tuple(routes), (*DEFAULT_RULES, *rules), sysctls=sysctls), state
    )


def overlaid(live: Scene, state: KernelState) -> Scene:
    """The scene of a running host with what a plan would make in it."""
    planned = of_state(state, host=live.devices)
    new = {name for name in planned.devices if name not in live.devices}
    ours = tuple(_selector(rule) for rule in things_of(state, Rule))
    brought = [Path(ip_network(r.prefix), r.on, table=r.table) for r in things_of(state, Route)]
    brought += [path for path in connected(planned.devices.values()) if path.device in new]
    brought += _local(planned.devices, new)
    return with_pins(
        replace(
            live,
            devices=planned.devices,
            routes=(*live.routes, *(path for path in brought if path not in live.routes)),
            rules=(*live.rules, *(rule for rule in ours if rule not in live.rules)),
            sysctls={**live.sysctls, **planned.sysctls},
        ),
        state,
    )


def _local(devices: Mapping[str, Device], new: Iterable[str]) -> Iterator[Path]:
    """A live scene has its local routes; new addresses add to them, behind a router to its own."""
    for name in new:
        master = devices.get(devices[name].master)
        table = master.table if master and master.kind == "vrf" else LOCAL
        for own in devices[name].addresses:
            yield Path(ip_network(own.ip), name, table=table, kind="local")


def things_of(state: KernelState, kind: type[T]) -> Iterator[T]:
    return (thing for thing in state.things if isinstance(thing, kind))


def _selector(rule: Rule) -> Selector:
    leads = rule.action == "goto"
    return Selector(
        rule.preference,
        rule.target if rule.is_leaf else 0,
        rule.version,
        mark=rule.mark if rule.mask else None,
        mask=rule.mask,
        kind="lookup" if rule.is_leaf else rule.action,
        target=rule.target if leads else 0,
        inverted=rule.inverted,
    )


_PINS = {"port_mac": "mac", "port4": "address", "port6": "address"}  # sets of vlans/claims.py


def with_pins(scene: Scene, state: KernelState) -> Scene:
    """Where a port says which MAC and address it has, the host will learn just these."""
    pins: dict[str, dict[str, set[str]]] = {}
    for table in state.tables:
        for each in table.sets if table.family == "bridge" else ():
            for element in each.elements if each.name in _PINS else ():
                kinds = pins.setdefault(element[0], {})
                kinds.setdefault(_PINS[each.name], set()).add(element[1])
    learned, neighbours = dict(scene.learned), dict(scene.neighbours)
    for port, kinds in pins.items():
        device, macs = scene.devices.get(port), kinds.get("mac", set())
        if device is None or len(macs) != 1:
            continue
        mac = next(iter(macs))
        learned.setdefault((device.master, mac), port)
        for address in kinds.get("address", set()):
            if "/" not in address and "-" not in address:
                neighbours.setdefault((device.master, ip_address(address)), mac)
    return replace(scene, learned=learned, neighbours=neighbours)


def connected(every: Iterable[Device]) -> Iterable[Path]:
    """The routes that addresses bring (net/ipv4/fib_frontend.c, fib_add_ifaddr)."""
    devices = {device.name: device for device in every}
    for device in devices.values():
        master = devices.get(device.master)
        table = master.table if master and master.kind == "vrf" else MAIN
        for address in device.addresses:
            if address.network.prefixlen < address.max_prefixlen:
                yield Path(address.network, device.name, table=table)


def _device(link: Link) -> Device:
    params = link.params
    fou = getattr(params, "fou", None)
    return Device(
        link.name,
        kind=params.kind,
        mtu=link.mtu,
        up=link.up,
        mac=link.mac or "",
        master=link.master or "",
        group=LINK_GROUP,
        alias=link.alias,
        parent=getattr(params, "parent", ""),
        vlan=getattr(params, "id", 0),
        local=getattr(params, "local", "") or "",
        remote=getattr(params, "remote", "") or "",
        key=getattr(params, "key", 0) or 0,
        fou=(fou.sport, fou.dport) if fou else None,
        through=getattr(params, "through", "") or "",
        table=getattr(params, "table", 0),
    )


def _known(devices: Mapping[str, Device]) -> set[str]:
    return {str(address.ip) for device in devices.values() for address in device.addresses}


def _outside(state: KernelState) -> str:
    for table in state.tables:
        for each in table.sets:
            if each.name == "outside" and each.elements:
                return min(each.elements)[0]
    return ""


def _parents(state: KernelState) -> set[str]:
    return {link.params.parent for link in state.links if link.params.kind == "vlan"}
