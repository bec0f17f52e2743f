"""Ports: each needs an interface of its own. What a port may claim to be: claims.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dvn.checks.rule import Declared, net_path
from dvn.problems import Problem

if TYPE_CHECKING:
    from dvn.spec import Site


def ports(site: Site, _: Declared) -> Iterator[Problem]:
    used: dict[tuple[str | None, str], str] = {
        (name, host.underlay.interface): "the underlay" for name, host in site.hosts.items()
    }
    if site.underlay:
        used[site.here, site.underlay.interface] = "the underlay"
    for tenant, name, network in site.networks():
        if network.vlan:
            used[None, network.vlan.uplink] = f"the uplink of {tenant}/{name}"
    for tenant, name, network in site.networks():
        for index, port in enumerate(network.ports):
            place = (port.host, port.interface)
            if place in used:
                yield Problem(
                    "",
                    0,
                    f"interface {port.interface} is {used[place]} already",
                    "a port needs an interface of its own",
                    net_path(tenant, name, "ports", index, "interface"),
                )
            used.setdefault(place, f"a port of {tenant}/{name}")
