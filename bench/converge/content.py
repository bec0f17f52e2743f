"""What is measured: a site of many networks, and small changes to it. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from dvn.spec import Nat, Network, Site, Tenant, TunnelSpec, Underlay

SITE = "bench"
UNDERLAY, ADDRESS = "wan0", "198.51.100.1"
_OUTSIDE = IPv4Address("192.0.2.1")
_PER_TENANT = 20


def make_site(count: int, *, tunnels: bool = True) -> Site:
    """`count` networks, 20 a tenant, each with a gateway address, filters, NAT and one tunnel."""
    tenants = {}
    for start in range(0, count, _PER_TENANT):
        numbers = range(start, min(start + _PER_TENANT, count))
        tenants[f"t{start // _PER_TENANT}"] = Tenant(
            networks={f"n{number}": _network(number) for number in numbers},
            tunnels={f"n{number}": _tunnel(number) for number in numbers if tunnels},
        )
    return Site(
        site=SITE, underlay=Underlay(interface=UNDERLAY, address=IPv4Address(ADDRESS)),
        tenants=tenants,
    )  # fmt: skip


def with_one_more(site: Site, number: int) -> Site:
    """The site and one more network with its tunnel; what is the same is the same object."""
    tenant = site.tenants["t0"]
    name = f"n{number}"
    grown = tenant.model_copy(
        update={
            "networks": {**tenant.networks, name: _network(number)},
            "tunnels": {**tenant.tunnels, name: _tunnel(number)},
        }
    )
    return site.model_copy(update={"tenants": {**site.tenants, "t0": grown}})


def with_another_nat(site: Site, number: int) -> Site:
    """The site, and the first network has another outside address."""
    tenant = site.tenants["t0"]
    nat = Nat(snat=(_OUTSIDE + 1 + number % 200,))
    changed = tenant.networks["n0"].model_copy(update={"nat": nat})
    moved = tenant.model_copy(update={"networks": {**tenant.networks, "n0": changed}})
    return site.model_copy(update={"tenants": {**site.tenants, "t0": moved}})


def _network(number: int) -> Network:
    prefix = IPv4Network((int(IPv4Address("10.0.0.0")) + 256 * number, 24))
    return Network(prefix=(prefix,), nat=Nat(snat=(_OUTSIDE,)))


def _tunnel(number: int) -> TunnelSpec:
    return TunnelSpec(
        network=f"n{number}",
        remote=IPv4Address("203.0.113.0") + 1 + number % 250,
        key=1 + number,
        transport="plain",
    )
