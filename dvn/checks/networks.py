"""Prefixes, gateways and VLAN ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dvn.checks.rule import Declared, is_reserved, listed, net_path
from dvn.problems import Problem
from dvn.values import Prefix

if TYPE_CHECKING:
    from dvn.spec import Site


_Owned = tuple[Prefix, str, str]  # prefix, tenant, network


def prefixes(site: Site, _: Declared) -> Iterator[Problem]:
    """Networks may overlap: each has a routing table of its own. Open ones may not, since they
    stand in the host's table, where the site looks for them."""
    opened: list[_Owned] = []
    for tenant, name, network in site.networks():
        own = [(prefix, tenant, name) for prefix in network.prefix]
        for (prefix, _t, _n), (other, _u, _m) in _overlaps(own):
            yield Problem(
                "",
                0,
                f"prefix {prefix} overlaps {other} of the same network",
                "keep one of them",
                net_path(tenant, name, "prefix"),
            )
        if network.access == "open":
            opened += own
    for (prefix, tenant, name), (other, other_tenant, other_name) in _overlaps(opened):
        if (tenant, name) != (other_tenant, other_name):
            yield Problem(
                "",
                0,
                f"prefix {prefix} of {tenant}/{name} overlaps {other} of "
                f"{other_tenant}/{other_name}, and both are open",
                "give one of them another prefix, or make one `access: closed`: the site cannot "
                "tell two open networks apart that have the same addresses",
                net_path(tenant, name, "prefix"),
            )


def _overlaps(every: list[_Owned]) -> Iterator[tuple[_Owned, _Owned]]:
    """Each prefix that overlaps another, with the widest one it overlaps.

    Sorted by first address, shorter prefixes first, that is always the widest still open: prefixes
    nest or are disjoint, they never cross.
    """
    open_: _Owned | None = None
    for owned in sorted(every, key=_by_address):
        prefix = owned[0]
        if open_ is not None and open_[0].version == prefix.version and prefix.overlaps(open_[0]):
            yield owned, open_
        else:
            open_ = owned


def _by_address(owned: _Owned) -> tuple[int, int, int, str, str]:
    prefix, tenant, name = owned
    return (prefix.version, int(prefix.network_address), prefix.prefixlen, tenant, name)


def underlay_in_prefix(site: Site, _: Declared) -> Iterator[Problem]:
    if site.underlay is None:
        return
    outer = [*site.underlay.address, *site.underlay.public]
    for tenant, name, network in site.networks():
        for prefix in network.prefix:
            for address in outer:
                if address in prefix:
                    yield Problem(
                        "",
                        0,
                        f"prefix {prefix} of {tenant}/{name} contains the underlay "
                        f"address {address}",
                        "the underlay must lie outside all networks",
                        net_path(tenant, name, "prefix"),
                    )


def gateways(site: Site, _: Declared) -> Iterator[Problem]:
    for tenant, name, network in site.networks():
        path = net_path(tenant, name, "gateway")
        served: set[Prefix] = set()
        for address in network.gateway:
            prefix = next((p for p in network.prefix if address in p), None)
            if prefix is None:
                yield Problem(
                    "",
                    0,
                    f"gateway {address} is outside {listed(network.prefix)}",
                    "use an address of the prefix, or leave it out for the first one",
                    path,
                )
            elif prefix in served:
                yield Problem("", 0, f"prefix {prefix} has two gateways", "keep one", path)
            elif is_reserved(address, prefix):
                yield Problem(
                    "",
                    0,
                    f"gateway {address} is the network or broadcast address of {prefix}",
                    f"use one such as {prefix[1]}",
                    path,
                )
            if prefix is not None:
                served.add(prefix)


def vlans(site: Site, _: Declared) -> Iterator[Problem]:
    taken: dict[tuple[str, int], str] = {}
    for tenant, name, network in site.networks():
        if network.vlan is None:
            continue
        key = (network.vlan.uplink, network.vlan.id)
        if key in taken:
            yield Problem(
                "",
                0,
                f"VLAN id {network.vlan.id} on {network.vlan.uplink} belongs to "
                f"{taken[key]} already",
                "give each network its own VLAN id",
                net_path(tenant, name, "vlan", "id"),
            )
        taken.setdefault(key, f"{tenant}/{name}")
