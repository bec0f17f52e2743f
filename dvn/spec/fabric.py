"""Other hosts of a site: hypervisors whose machines are in its networks, and what joins them.

One host, the gateway, has the networks' addresses, NAT and services. A hypervisor has the bridges
of those networks alone that have a machine there, and for each a tunnel to the gateway (`star`), or
one to every other host of the network, too (`mesh`). The tunnels follow from where the ports are;
nobody writes them down. Their key is the network's number, the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BeforeValidator

from dvn import addresses
from dvn.forms import Model
from dvn.spec.underlay import Underlay
from dvn.values import Address, Name, NotInFiles, in_range, one_or_more

if TYPE_CHECKING:
    from dvn.spec.network import Network, Port
    from dvn.spec.site import Site
    from dvn.spec.tunnel import Tunnel

GATEWAY = "gateway"  # what the gateway host is called where the file gives it no name
INTERNET_PATH = 1500


class Fabric(Model):
    """The tunnels between the hosts of a site. They are made by themselves."""

    shape: Literal["star", "mesh"] = "star"
    """`star`: each hypervisor has tunnels to the gateway, which passes on what goes from one to
    another; `mesh`: hypervisors have tunnels to each other, too."""
    # Without a default, as with tunnels: nobody gets an unencrypted one by accident.
    transport: Literal["plain", "fou", "wireguard"]
    """`wireguard`: encrypted, and every host needs `underlay.wireguard` with its `public_key`.
    `plain`, `fou` (in UDP): not encrypted, for a network that only the site's own hosts are in."""
    path: Annotated[int | None, NotInFiles()] = None
    """In a host's part: bytes an IP packet may have between any two hosts."""
    outer: Annotated[Literal[4, 6] | None, NotInFiles()] = None
    """In a host's part: the widest IP header between any two hosts."""


class Hypervisor(Model):
    """A host that runs machines, and `dvn agent` for their networks."""

    underlay: Underlay
    """Where its tunnels leave it."""
    tenants: Annotated[tuple[Name, ...], BeforeValidator(one_or_more)] = ()
    """Whose machines may run there; everybody's unless given. It is told nothing of the others'
    networks."""
    invitation: Annotated[int, AfterValidator(in_range("number", 1, 1_000_000))] = 1
    """Raise it to make void what `dvn hosts invite` gave out before."""


@dataclass(frozen=True)
class Beyond:
    """What may come in by a tunnel of the fabric. `uplink`: the gateway is there, and all that
    comes through it. `macs`, `addresses`: what comes by this tunnel alone; of the kinds in `pinned`
    ("mac", "4", "6") nothing else does. `path`: bytes an IP packet may have between any two hosts.
    `mesh`: every host has a tunnel to every other.
    """

    host: str
    uplink: bool
    macs: tuple[str, ...]
    addresses: tuple[Address, ...]
    pinned: frozenset[str]
    path: int
    mesh: bool


def fabric_path(site: Site) -> int | None:
    """Bytes an outer IP packet may have on the narrowest path between hosts; None without hosts.
    From what is declared, so that every host finds the same."""
    if site.fabric is None or site.fabric.path is not None:
        return site.fabric.path if site.fabric else None
    return min((end.mtu or INTERNET_PATH for end in _all_ends(site)), default=INTERNET_PATH)


def fabric_outer(site: Site) -> Literal[4, 6]:
    """The IP version whose header may be around what goes from host to host."""
    if site.fabric is not None and site.fabric.outer is not None:
        return site.fabric.outer
    return 6 if any(a.version == 6 for end in _all_ends(site) for a in end.address) else 4


def _all_ends(site: Site) -> list[Underlay]:
    own = [site.underlay] if site.underlay else []
    return [*own, *(host.underlay for host in site.hosts.values())]


def fabric_tunnels(site: Site) -> Iterator[Tunnel]:
    """Those that end on this host, in the order of tenants, networks and hosts."""
    if site.fabric is None or site.underlay is None:
        return
    for tenant, name, network in site.networks():
        for other in _ends(site, network):
            tunnel = _tunnel(site, tenant, name, network, other)
            if tunnel is not None:
                yield tunnel


def _ends(site: Site, network: Network) -> list[str | None]:
    """Where this network's tunnels lead from here; None is the gateway."""
    others = sorted({port.host for port in network.ports if port.host in site.hosts} - {site.here})
    if site.here is None:
        return [*others]
    if not network.on(site.here):
        return []
    return [None, *others] if site.fabric and site.fabric.shape == "mesh" else [None]


def _tunnel(
    site: Site, tenant: str, name: str, network: Network, other: str | None
) -> Tunnel | None:
    from dvn.spec.tunnel import Tunnel

    fabric, own = site.fabric, site.underlay
    end = site.hosts[other].underlay if other else site.upstream
    assert fabric is not None
    assert own is not None
    version = next((v for v in (4, 6) if own.of(v) and end and end.outside(v)), None)
    if end is None or version is None:
        return None  # checks/hosts.py refuses a file with hosts that cannot reach each other
    wireguard = end.wireguard if fabric.transport == "wireguard" else None
    port = end.fou_port if fabric.transport == "fou" else wireguard.port if wireguard else None
    host = other or site.host or GATEWAY
    return Tunnel.model_construct(
        tenant=tenant,
        # No name of a file has a dot.
        name=f"{host}.{name}",
        network=name,
        remote=end.outside(version),
        key=addresses.network_number(tenant, name),
        transport=fabric.transport,
        port=port,
        peer_key=wireguard.public_key if wireguard else None,
        # A command that knows the file only must not take it away: machines come and go.
        dynamic=True,
        beyond=_beyond(site, tenant, name, network, other),
    )


def _beyond(site: Site, tenant: str, name: str, network: Network, other: str | None) -> Beyond:
    path = fabric_path(site) or INTERNET_PATH
    host = other or site.host or GATEWAY
    star = site.fabric is None or site.fabric.shape == "star"
    if other is not None:
        there = network.on(other)
        macs, owned = _claimed(there)
        return Beyond(host, False, macs, owned, frozenset(_pinned(there)), path, not star)
    # All that is not on this host comes by the gateway; in a mesh, what the gateway itself has.
    there = tuple(p for p in network.ports if p.host != site.here and (star or p.host is None))
    macs, owned = _claimed(there)
    mac = addresses.mac_address(site.site, site.host or "", tenant, name)
    gateways = tuple(gateway.ip for gateway in network.gateways())
    return Beyond(host, True, (mac, *macs), (*gateways, *owned), frozenset(), path, not star)


def _claimed(ports: tuple[Port, ...]) -> tuple[tuple[str, ...], tuple[Address, ...]]:
    return (
        tuple(port.mac for port in ports if port.mac),
        tuple(address for port in ports for address in port.address),
    )


def _pinned(ports: tuple[Port, ...]) -> Iterator[str]:
    """The kinds of which every port there has its own."""
    if all(port.mac for port in ports):
        yield "mac"
    for version in (4, 6):
        if all(any(a.version == version for a in port.address) for port in ports):
            yield str(version)
