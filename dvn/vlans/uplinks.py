"""802.1Q sub-devices toward the site's switches, one a network, each a port of its bridge."""

from __future__ import annotations

from dvn import addresses
from dvn.kernel.state import Host, KernelState, Link, Vlan, alias
from dvn.spec import Site


def compile_uplinks(site: Site, host: Host) -> KernelState:
    """Frames leave the uplink with the network's VLAN id, and only those come in."""
    links, raised = [], set()
    for tenant, name, network in site.networks():
        if network.vlan is None:
            continue
        uplink = host.links.get(network.vlan.uplink)
        if uplink is None:
            continue
        raised.add(uplink.name)
        links.append(
            Link(
                name=addresses.vlan_name(tenant, name),
                alias=alias(site.site, "vlan", tenant, name),
                params=Vlan(uplink.name, network.vlan.id),
                # The site's machines may send what their switch carries; what goes on into a
                # tunnel is kept small by the MSS clamp.
                mtu=uplink.mtu,
                master=addresses.bridge_name(tenant, name),
            )
        )
    return KernelState(links=tuple(links), raised=frozenset(raised))
