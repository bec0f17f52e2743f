"""Prefixes, gateways and VLAN ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dvn.checks.rule import Declared, is_reserved, listed, net_path
from dvn.problems import Problem
from dvn.values import Prefix

if TYPE_CHECKING:
    from dvn.spec import Site


def prefixes(site: Site, _: Declared) -> Iterator[Problem]:
    every: list[tuple[int, int, int, Prefix, str, str]] = []
    for tenant, name, network in site.networks():
        for prefix in network.prefix:
            every.append(
                (
                    prefix.version,
                    int(prefix.network_address),
                    -prefix.prefixlen,
                    prefix,
                    tenant,
                    name,
                )
            )
    # Sorted by first address, shorter prefixes first, an overlap is always with the widest
    # prefix still open: prefixes nest or are disjoint, they never cross.
    open_: tuple[Prefix, str, str] | None = None
    for _v, _a, _l, prefix, tenant, name in sorted(every, key=lambda e: (e[:3], e[4:])):
        if open_ is None or open_[0].version != prefix.version or not prefix.overlaps(open_[0]):
            open_ = (prefix, tenant, name)
            continue
        other, other_tenant, other_name = open_
        path = net_path(tenant, name, "prefix")
        if other_tenant != tenant:
            yield Problem(
                "",
                0,
                f"prefix {prefix} of {tenant}/{name} overlaps {other} of "
                f"{other_tenant}/{other_name}",
                "give one of them another prefix: tenants that overlap are not in this version",
                path,
            )
        elif other_name != name:
            yield Problem(
                "",
                0,
                f"prefix {prefix} of network {name} overlaps {other} of network {other_name}",
                "networks of one tenant need prefixes apart",
                path,
            )
        else:
            yield Problem(
                "",
                0,
                f"prefix {prefix} overlaps {other} of the same network",
                "keep one of them",
                path,
            )


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
