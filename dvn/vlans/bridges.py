"""One bridge a network; on the gateway host its own device is the network's gateway.

On the others the host itself is not in the network: its bridge has no address and no IPv6, answers
no ARP, and what is sent to it is dropped (nat/zones.py).
"""

from __future__ import annotations

from ipaddress import IPv6Network

from dvn import addresses
from dvn.kernel.state import (
    SWITCH6,
    Address,
    Bridge,
    KernelState,
    Link,
    Sysctl,
    alias,
    without_ipv6,
)
from dvn.passes import Context, NetworkOf, Pass
from dvn.spec import Network
from dvn.tunnels.mtu import network_mtu


def _bridge(context: Context, owned: NetworkOf) -> KernelState:
    """The bridge, its gateway addresses, and how the host treats packets from it."""
    site, tenant, name, network = context.site, owned.tenant, owned.name, owned.network
    bridge = owned.bridge
    if site.here is not None:
        return _only_bridged(context, owned, site.here)
    # Without a fixed one the kernel takes the lowest of its ports, and the gateway's address
    # changes under the machines' ARP tables when a lease comes or goes.
    mac = addresses.mac_address(site.site, site.host or "", tenant, name)
    link = Link(
        name=bridge,
        alias=alias(site.site, "network", tenant, name),
        params=Bridge(),
        mtu=network_mtu(site, context.host, owned.tunnels),
        master=owned.router,
        mac=mac,
    )
    found = [Address(bridge, str(gateway)) for gateway in network.gateways()]
    if _has_ipv6(network):
        # The kernel asks for a neighbour of forwarded packets from a link-local address only
        # (net/ipv6/ndisc.c, ndisc_send_ns). Ours, not the kernel's: that one waits for a
        # carrier and then for duplicate detection, and packets meanwhile go nowhere.
        found.append(Address(bridge, addresses.link_local(mac)))
    return KernelState(links=(link,), addresses=tuple(found), sysctls=_sysctls(bridge, network))


def _only_bridged(context: Context, owned: NetworkOf, here: str) -> KernelState:
    site, bridge = context.site, owned.bridge
    link = Link(
        name=bridge,
        alias=alias(site.site, "network", owned.tenant, owned.name),
        params=Bridge(),
        mtu=network_mtu(site, context.host, owned.tunnels),
        # Its own, not the gateway's, which this bridge must not take for itself.
        mac=addresses.mac_address(site.site, "host", here, owned.tenant, owned.name),
    )
    four, six = f"net/ipv4/conf/{bridge}", f"net/ipv6/conf/{bridge}"
    settings = (
        Sysctl(f"{four}/forwarding", "0"),
        Sysctl(f"{four}/arp_ignore", "8"),  # answers for no address of the host
        without_ipv6(bridge),
        Sysctl(f"{six}/accept_ra", "0"),
    )
    return KernelState(links=(link,), sysctls=settings)


def _has_ipv6(network: Network) -> bool:
    return any(isinstance(prefix, IPv6Network) for prefix in network.prefix)


def _sysctls(bridge: str, network: Network) -> tuple[Sysctl, ...]:
    four, six = f"net/ipv4/conf/{bridge}", f"net/ipv6/conf/{bridge}"
    return (
        Sysctl(f"{four}/forwarding", "1"),
        # The effective value is max(all, interface): strict here unless `all` says loose. What
        # comes from a network has an address of the network.
        Sysctl(f"{four}/rp_filter", "1"),
        # Answer ARP only for the gateway's address in this network, not for the host's others.
        Sysctl(f"{four}/arp_ignore", "1"),
        Sysctl(f"{four}/accept_redirects", "0"),
        Sysctl(f"{four}/send_redirects", "0"),
        # Said in both cases: the default is the host's, and a network may get IPv6 later.
        Sysctl(f"{six}/{SWITCH6}", "0") if _has_ipv6(network) else without_ipv6(bridge),
        Sysctl(f"{six}/accept_ra", "0"),
        Sysctl(f"{six}/accept_redirects", "0"),
    )


BRIDGES = Pass("bridges", network=_bridge)
