"""Where a packet goes: the kernel's route lookup, with VRFs and policy rules (ip-rule(8))."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Network, ip_network

from dvn.diagnose.scene import DEFAULT_RULES, LOCAL, MAIN, IpAddress, Path, Scene, Selector

_LIMITED_BROADCAST = ip_network("255.255.255.255/32")


@dataclass(frozen=True)
class Flow:
    """What a lookup is made of."""

    destination: IpAddress
    source: IpAddress | None = None
    iif: str = ""
    oif: str = ""
    mark: int = 0


class Routing:
    """The tables of a scene."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._tables: dict[tuple[int, int], list[Path]] = {}
        known = {path for path in scene.routes if path.kind in ("local", "broadcast")}
        for path in (*scene.routes, *self._local_paths(bool(known))):
            key = (path.table or MAIN, path.prefix.version)
            self._tables.setdefault(key, []).append(path)
        for paths in self._tables.values():
            paths.sort(key=lambda path: (-path.prefix.prefixlen, path.metric))

    def _local_paths(self, known: bool) -> Iterator[Path]:
        """The local table of a scene that has none of its own."""
        if known:
            return
        for device in self._scene.devices.values():
            vrf = self._scene.vrf_of(device.name)
            table = vrf.table if vrf else LOCAL
            for own in device.addresses:
                yield Path(ip_network(own.ip), device.name, table=table, kind="local")
                network = own.network
                if isinstance(network, IPv4Network) and network.prefixlen < 31:
                    last = ip_network(network.broadcast_address)
                    yield Path(last, device.name, table=table, kind="broadcast")

    @cached_property
    def _rules(self) -> tuple[Selector, ...]:
        return tuple(sorted(self._scene.rules or DEFAULT_RULES, key=lambda rule: rule.priority))

    def lookup(self, flow: Flow) -> Path | None:
        """The route; None where there is none. A blackhole and its like are routes."""
        if flow.destination.version == 4 and flow.destination in _LIMITED_BROADCAST:
            return Path(_LIMITED_BROADCAST, flow.iif, table=LOCAL, kind="broadcast")
        wanted = 0  # where a goto leads
        for rule in self._rules:
            if rule.version != flow.destination.version or rule.priority < wanted:
                continue
            if self._selects(rule, flow) == rule.inverted or rule.kind == "nop":
                continue
            if rule.kind == "goto":
                wanted = rule.target
                continue
            if rule.kind != "lookup":
                return Path(ip_network(flow.destination), "", kind=rule.kind)
            found = self._in(self._table_of(rule, flow), flow)
            if found is not None:
                return found
        return None

    def _selects(self, rule: Selector, flow: Flow) -> bool:
        return (
            (not rule.iif or rule.iif == flow.iif)
            and (not rule.oif or rule.oif == flow.oif)
            and (rule.source is None or (flow.source is not None and flow.source in rule.source))
            and (rule.destination is None or flow.destination in rule.destination)
            and (rule.mark is None or flow.mark & rule.mask == rule.mark)
            and (not rule.l3mdev or bool(self._table_of(rule, flow)))
        )

    def _table_of(self, rule: Selector, flow: Flow) -> int:
        if not rule.l3mdev:
            return rule.table
        vrf = self._scene.vrf_of(flow.oif or flow.iif)
        return vrf.table if vrf else 0

    def _in(self, table: int, flow: Flow) -> Path | None:
        for path in self._tables.get((table, flow.destination.version), ()):
            device = self._scene.devices.get(path.device)
            if device is not None and not device.up:
                continue
            if flow.destination in path.prefix and path.kind != "throw":
                return path
        return None
