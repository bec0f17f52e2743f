"""A site as people picture it: tenants, networks, what attaches to them, tunnels and their health.

Pure: of a site file, and of what was seen of the kernel where it was looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from dvn import addresses
from dvn.spec import Network, Site, Tunnel


class State(StrEnum):
    """Health, in the order of worse. `planned`: not looked at."""

    PLANNED = "planned"
    UP = "up"
    DEGRADED = "degraded"
    DOWN = "down"


@dataclass(frozen=True)
class Seen:
    """What was seen of a device: how it is, and a few words on why."""

    state: State
    words: str = ""


@dataclass(frozen=True)
class Attachment:
    """A port, or the uplink to the site's switches."""

    name: str
    detail: str
    seen: Seen
    is_uplink: bool = False


@dataclass(frozen=True)
class TunnelEnd:
    """A tunnel, and the host it leads to."""

    name: str
    remote: str
    transport: str
    detail: str
    seen: Seen
    leased: bool = False


@dataclass(frozen=True)
class Segment:
    """A network: its bridge and all that attaches to it."""

    name: str
    bridge: str
    prefixes: tuple[str, ...]
    access: str
    nat: tuple[str, ...]
    seen: Seen
    attachments: tuple[Attachment, ...]
    tunnels: tuple[TunnelEnd, ...]


@dataclass(frozen=True)
class Group:
    """A tenant."""

    name: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Topology:
    """`looked`: whether the kernel was looked at."""

    site: str
    host: str
    underlay: str
    groups: tuple[Group, ...]
    looked: bool = False

    def states(self) -> Mapping[State, int]:
        """How many tunnels, ports and networks are in each state."""
        found: dict[State, int] = {}
        for segment in (s for group in self.groups for s in group.segments):
            ends = [a.seen for a in segment.attachments] + [t.seen for t in segment.tunnels]
            for seen in (segment.seen, *ends):
                found[seen.state] = found.get(seen.state, 0) + 1
        return found


_PLANNED = Seen(State.PLANNED)
_MISSING = Seen(State.DOWN, "not there")


def topology(
    site: Site,
    seen: Mapping[str, Seen] | None = None,
    *,
    tenants: Iterable[str] = (),
) -> Topology:
    """`seen`: how each device is, None if nobody looked; `tenants`: only these, all unless given.
    Tunnels of leases are those of `site` (with_tunnels)."""
    wanted = set(tenants)
    by_network: dict[tuple[str, str], list[Tunnel]] = {}
    for tunnel in site.tunnels():
        by_network.setdefault((tunnel.tenant, tunnel.network), []).append(tunnel)
    groups = []
    for tenant, declared in sorted(site.tenants.items()):
        if wanted and tenant not in wanted:
            continue
        segments = tuple(
            _segment(tenant, name, network, by_network.get((tenant, name), []), seen)
            for name, network in sorted(declared.networks.items())
        )
        groups.append(Group(tenant, segments))
    underlay = ""
    if site.underlay:
        underlay = " ".join([site.underlay.interface, *map(str, site.underlay.address)])
        if site.underlay.public:
            underlay += f" (public {' '.join(map(str, site.underlay.public))})"
    return Topology(site.site, site.host or "", underlay, tuple(groups), seen is not None)


def _how(seen: Mapping[str, Seen] | None, device: str) -> Seen:
    return _PLANNED if seen is None else seen.get(device, _MISSING)


def _segment(
    tenant: str,
    name: str,
    network: Network,
    tunnels: Iterable[Tunnel],
    seen: Mapping[str, Seen] | None,
) -> Segment:
    bridge = addresses.bridge_name(tenant, name)
    attachments = []
    if network.vlan:
        device = addresses.vlan_name(tenant, name)
        words = f"VLAN {network.vlan.id}"
        attachments.append(Attachment(network.vlan.uplink, words, _how(seen, device), True))
    for port in network.ports:
        own = port.address if isinstance(port.address, tuple) else (port.address,)
        pinned = [str(a) for a in own if a is not None] or ([port.mac] if port.mac else [])
        detail = " ".join(pinned) or "any address"
        if port.host is None:
            attachments.append(Attachment(port.interface, detail, _how(seen, port.interface)))
    nat = tuple(str(address) for address in network.nat.snat) if network.nat else ()
    return Segment(
        name,
        bridge,
        tuple(map(str, network.prefix)),
        network.access,
        nat,
        _how(seen, bridge),
        tuple(attachments),
        tuple(_end(tunnel, seen) for tunnel in tunnels),
    )


def _end(tunnel: Tunnel, seen: Mapping[str, Seen] | None) -> TunnelEnd:
    device = addresses.tunnel_name(tunnel.tenant, tunnel.name)
    return TunnelEnd(
        tunnel.name,
        str(tunnel.remote or "anywhere"),
        str(tunnel.transport),
        f"key {tunnel.key}",
        _how(seen, device),
        tunnel.dynamic,
    )
