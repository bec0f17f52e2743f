"""How the devices of a site are, from one look at the kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dvn.diagnose.scene import Device, Scene
from dvn.diagnose.topology import Seen, State
from dvn.spec import Site, Tunnel
from dvn.status import TunnelStatus


def seen_devices(scene: Scene, tunnels: Iterable[TunnelStatus] = ()) -> dict[str, Seen]:
    """Each device of the host, and whether it works as far as one look can tell."""
    status = {tunnel.name: tunnel for tunnel in tunnels}
    return {name: _seen(d, scene, status.get(name)) for name, d in scene.devices.items()}


def _seen(device: Device, scene: Scene, tunnel: TunnelStatus | None) -> Seen:
    if not device.up:
        return Seen(State.DOWN, "the link is down")
    parent = scene.devices.get(device.parent)
    if parent is not None and not parent.up:
        return Seen(State.DOWN, f"{parent.name} is down")
    if tunnel is not None:
        if tunnel.rx_packets == 0:
            return Seen(State.DEGRADED, "nothing received yet")
        return Seen(State.UP, f"{tunnel.rx_packets} received, {tunnel.tx_packets} sent")
    return Seen(State.UP)


def with_leased(site: Site, scene: Scene, tunnels: Mapping[str, TunnelStatus]) -> Site:
    """The site, and with it the tunnels in the kernel that its file does not name: those of
    leases."""
    known = {f"{tunnel.tenant}/{tunnel.name}" for tunnel in site.tunnels()}
    more = []
    for name, status in tunnels.items():
        network = _network_of(scene, status.name)
        if name in known or network is None or status.tenant not in site.tenants:
            continue
        if network not in site.tenants[status.tenant].networks:
            continue
        more.append(
            Tunnel.model_validate(
                {
                    "tenant": status.tenant,
                    "name": status.tunnel,
                    "network": network,
                    "remote": status.remote,
                    "key": status.key,
                    "dynamic": True,
                }
            )
        )
    return site.with_tunnels(more)


def _network_of(scene: Scene, device: str) -> str | None:
    """The network whose bridge a device is in, by the bridge's stamp."""
    here = scene.devices.get(device)
    bridge = scene.devices.get(here.master) if here else None
    parts = bridge.alias.split(":") if bridge else []
    return parts[3].partition("/")[2] if len(parts) == 4 and parts[2] == "network" else None
