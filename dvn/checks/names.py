"""Names of devices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dvn import addresses
from dvn.checks.rule import Declared, net_path
from dvn.problems import Path_, Problem

if TYPE_CHECKING:
    from dvn.spec import Site


def device_names(site: Site, _: Declared) -> Iterator[Problem]:
    owners: dict[str, str] = {}
    for tenant, name, network in site.networks():
        path = net_path(tenant, name)
        yield from _claim(owners, addresses.bridge_name(tenant, name), f"{tenant}/{name}", path)
        yield from _claim(owners, addresses.router_name(tenant, name), f"{tenant}/{name}", path)
        if network.vlan:
            yield from _claim(owners, addresses.vlan_name(tenant, name), f"{tenant}/{name}", path)
        if network.rate:
            device = addresses.network_rate_name(tenant, name)
            yield from _claim(owners, device, f"{tenant}/{name}", path)
    if site.underlay and site.underlay.wireguard:
        device = addresses.wireguard_name(site.underlay.wireguard.port)
        yield from _claim(owners, device, "underlay.wireguard", ("underlay", "wireguard"))
    for tunnel in site.tunnels():
        yield from _claim(
            owners,
            addresses.tunnel_name(tunnel.tenant, tunnel.name),
            f"tunnel {tunnel.tenant}/{tunnel.name}",
            ("tenants", tunnel.tenant, "tunnels", tunnel.name),
        )


def network_numbers(site: Site, _: Declared) -> Iterator[Problem]:
    owners: dict[int, str] = {}
    for tenant, name, _network in site.networks():
        number = addresses.network_number(tenant, name)
        if owners.setdefault(number, f"{tenant}/{name}") != f"{tenant}/{name}":
            yield Problem(
                "",
                0,
                f"{tenant}/{name} and {owners[number]} would both be number {number} in the "
                "frame filters",
                "rename one of them",
                net_path(tenant, name),
            )


def _claim(owners: dict[str, str], device: str, owner: str, path: Path_) -> Iterator[Problem]:
    if owners.setdefault(device, owner) != owner:
        yield Problem(
            "",
            0,
            f"{owner} and {owners[device]} would both be the device {device}",
            "rename one of them",
            path,
        )
