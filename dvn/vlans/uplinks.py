"""802.1Q sub-devices toward the site's switches, one a network, each a port of its bridge."""

from __future__ import annotations

from dvn import addresses
from dvn.kernel.state import KernelState, Link, Vlan, alias, without_ipv6
from dvn.passes import EMPTY, Context, NetworkOf, Pass
from dvn.tunnels.mtu import LEAST


def _uplink(context: Context, owned: NetworkOf) -> KernelState:
    """Frames leave the uplink with the network's VLAN id, and only those come in."""
    vlan = owned.network.vlan
    uplink = context.host.links.get(vlan.uplink) if vlan else None
    if vlan is None or uplink is None:
        return EMPTY
    link = Link(
        name=addresses.vlan_name(owned.tenant, owned.name),
        alias=alias(context.site.site, "vlan", owned.tenant, owned.name),
        params=Vlan(uplink.name, vlan.id),
        # The site's machines may send what their switch carries; what goes on into a
        # tunnel is kept small by the MSS clamp.
        mtu=uplink.mtu,
        master=owned.bridge,
    )
    # Where it is narrower the kernel has no IPv6 on it anyway (RFC 8200, 5), nor a setting of it.
    sysctls = (without_ipv6(link.name),) if uplink.mtu >= LEAST else ()
    return KernelState(links=(link,), sysctls=sysctls, raised=frozenset({uplink.name}))


UPLINKS = Pass("uplinks", network=_uplink, routed=True)
