"""A host's part of a site. Pure.

What a hypervisor is told is what it may need: the networks of the tenants whose machines may run
there, without what concerns their gateway (NAT, services, DHCP, VLAN). Ports on other hosts are in
it, because what is pinned to them nobody here may use; those of a borrowed machine or of another
site's tunnel are shown as ports of the gateway, behind which they are.

The agent keeps all of it, so that a machine that starts while the gateway is away gets its network
all the same; `narrowed` is the part that is in the kernel.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

from dvn import addresses
from dvn.spec import Hypervisor, Network, Port, Site, Tenant, Tunnel
from dvn.spec.fabric import fabric_outer, fabric_path


class UnknownHostError(KeyError):
    """The site has no such host."""


def slice_of(site: Site, name: str) -> Site:
    """What the host `name` is told of a site. Raises UnknownHostError."""
    host = site.hosts.get(name)
    if host is None:
        raise UnknownHostError(name)
    tunnels: dict[tuple[str, str], list[Tunnel]] = {}
    for tunnel in site.tunnels():
        if tunnel.beyond is None:
            tunnels.setdefault((tunnel.tenant, tunnel.network), []).append(tunnel)
    tenants = {
        tenant: Tenant(
            networks={
                key: _bridged(site, network, name, tunnels.get((tenant, key), []))
                for key, network in declared.networks.items()
            }
        )
        for tenant, declared in site.tenants.items()
        if may_run(host, tenant)
    }
    return site.model_copy(
        update={
            "here": name,
            "underlay": host.underlay,
            "upstream": site.underlay,
            "fabric": site.fabric
            and site.fabric.model_copy(
                update={"path": fabric_path(site), "outer": fabric_outer(site)}
            ),
            "hosts": dict(_hosts_for(site, name)),
            "site_prefixes": (),
            "tenants": tenants,
        }
    )


def may_run(host: Hypervisor, tenant: str) -> bool:
    """Whether machines of the tenant may run there."""
    return not host.tenants or tenant in host.tenants


def narrowed(part: Site) -> Site:
    """A host's part with those networks alone that have a port there."""
    tenants = {}
    for name, tenant in part.tenants.items():
        some = {key: net for key, net in tenant.networks.items() if net.on(part.here)}
        if some:
            tenants[name] = tenant.model_copy(update={"networks": some})
    return part.model_copy(update={"tenants": tenants})


def version_of(part: Site) -> str:
    """What tells one state of a part from another."""
    text = json.dumps(part.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _meshed(site: Site) -> bool:
    return site.fabric is not None and site.fabric.shape == "mesh"


def _hosts_for(site: Site, name: str) -> Iterator[tuple[str, Hypervisor]]:
    """In a star a host only needs itself, and in a mesh whom it may have tunnels with."""
    meshed = _meshed(site)
    for key, host in site.hosts.items():
        if key == name or meshed:
            yield key, Hypervisor(underlay=host.underlay)


def _bridged(site: Site, network: Network, name: str, tunnels: list[Tunnel]) -> Network:
    """In a star nobody needs to know of others' ports that are pinned to nothing; in a mesh, that
    there are any is why there is a tunnel."""
    ports = [
        port
        if port.host == name
        else Port(interface=port.interface, mac=port.mac, address=port.address, host=port.host)
        for port in network.ports
        if port.host == name or port.mac or port.address or _meshed(site)
    ]
    ports += [port for tunnel in tunnels for port in _behind(tunnel)]
    return Network(prefix=network.prefix, gateway=network.gateway, ports=tuple(ports))


def _behind(tunnel: Tunnel) -> Iterator[Port]:
    """What the gateway lets in by a tunnel alone, as ports of the gateway host."""
    device = addresses.tunnel_name(tunnel.tenant, tunnel.name)
    if tunnel.macs or tunnel.addresses:
        first = tunnel.macs[0] if tunnel.macs else None
        yield Port(interface=device, mac=first, address=tunnel.addresses)
    for index, mac in enumerate(tunnel.macs[1:]):
        yield Port(interface=f"{device[:10]}.{index}", mac=mac)
