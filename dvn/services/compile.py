"""What is served in each network: from the site, and from the bridge that the other passes made."""

from __future__ import annotations

from collections.abc import Iterator

from dvn import addresses
from dvn.ipam import Address, Span
from dvn.kernel.state import KernelState
from dvn.passes import Context, NetworkOf, Pass
from dvn.services.config import Family, Service
from dvn.spec import Network
from dvn.spec.dhcp import Dhcp, seconds, told_resolvers
from dvn.tunnels.mtu import network_mtu
from dvn.values import Prefix

# Of an IPv6 prefix the first addresses are left to people, and more than this to nobody.
_FIRST6, _MOST6 = 0x1000, 1 << 16


def _served(context: Context, owned: NetworkOf) -> KernelState:
    dhcp = owned.network.dhcp
    if dhcp is None:
        return KernelState()
    site = context.site
    mac = addresses.mac_address(site.site, site.host or "", owned.tenant, owned.name)
    service = Service(
        site=site.site,
        network=f"{owned.tenant}/{owned.name}",
        bridge=owned.bridge,
        mac=mac,
        mtu=network_mtu(site, context.host, owned.tunnels),
        lease_s=seconds(dhcp.lease),
        four=_family(owned.network, dhcp, 4),
        six=_family(owned.network, dhcp, 6),
        link_local=addresses.link_local(mac).partition("/")[0],
        resolves=not dhcp.dns,
        domain=dhcp.domain or "",
    )
    return KernelState(things=(service,))


def served(network: Network) -> frozenset[str]:
    """What the gateway answers in a network, as its filter needs it: `udp/67`."""
    if network.dhcp is None:
        return frozenset()
    ports = {{4: "udp/67", 6: "udp/547"}[prefix.version] for prefix in network.prefix}
    return frozenset(ports if network.dhcp.dns else ports | {"udp/53", "tcp/53"})


def _family(network: Network, dhcp: Dhcp, version: int) -> Family | None:
    """The first prefix of the family; None if there is none."""
    prefix = next((p for p in network.prefix if p.version == version), None)
    if prefix is None:
        return None
    gateway = next((a for a in network.gateway if a in prefix), prefix[1])
    fixed = tuple(_fixed(network, prefix))
    taken = {gateway, *(a for a in dhcp.reserved if a in prefix)}
    taken |= {a for port in network.ports for a in port.address if a in prefix}
    return Family(
        gateway=gateway,
        length=prefix.prefixlen,
        span=_span(prefix, dhcp),
        reserved=tuple(sorted(taken, key=int)),
        fixed=fixed,
        resolvers=told_resolvers(dhcp, version) if dhcp.dns else (gateway,),
    )


def _fixed(network: Network, prefix: Prefix) -> Iterator[tuple[str, Address]]:
    for port in network.ports:
        own = [address for address in port.address if address in prefix]
        if port.mac and own:
            yield port.mac, own[0]


def _span(prefix: Prefix, dhcp: Dhcp) -> Span:
    if dhcp.range and dhcp.range[0] in prefix:
        return Span(*dhcp.range)
    if prefix.version == 4:
        return Span(prefix[1], prefix[-2])
    low = min(_FIRST6, prefix.num_addresses // 2)
    return Span(prefix[low], prefix[min(low + _MOST6, prefix.num_addresses) - 1])


SERVICES = Pass("services", network=_served, routed=True)
