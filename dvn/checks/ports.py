"""Ports: interfaces, MAC addresses and addresses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dvn.checks.rule import Declared, is_reserved, listed, net_path
from dvn.problems import Path_, Problem
from dvn.values import Address

if TYPE_CHECKING:
    from dvn.spec import Network, Site


def ports(site: Site, _: Declared) -> Iterator[Problem]:
    used: dict[str, str] = {}
    if site.underlay:
        used[site.underlay.interface] = "the underlay"
    for tenant, name, network in site.networks():
        if network.vlan:
            used[network.vlan.uplink] = f"the uplink of {tenant}/{name}"
    for tenant, name, network in site.networks():
        macs: set[str] = set()
        taken: dict[Address, str] = {g.ip: "the gateway" for g in network.gateways()}
        for index, port in enumerate(network.ports):
            path = net_path(tenant, name, "ports", index)
            if port.interface in used:
                yield Problem(
                    "",
                    0,
                    f"interface {port.interface} is {used[port.interface]} already",
                    "a port needs an interface of its own",
                    (*path, "interface"),
                )
            used.setdefault(port.interface, f"a port of {tenant}/{name}")
            if port.mac in macs:
                yield Problem(
                    "",
                    0,
                    f"MAC address {port.mac} is on two ports of {tenant}/{name}",
                    "give each port its own",
                    (*path, "mac"),
                )
            if port.mac:
                macs.add(port.mac)
            if port.address is None:
                continue
            yield from _port_address(port.address, network, taken, (*path, "address"))
            taken.setdefault(port.address, f"port {port.interface}")


def _port_address(
    address: Address, network: Network, taken: dict[Address, str], path: Path_
) -> Iterator[Problem]:
    prefix = next((p for p in network.prefix if address in p), None)
    if prefix is None:
        yield Problem(
            "",
            0,
            f"port address {address} is outside {listed(network.prefix)}",
            "use an address of the network",
            path,
        )
    elif is_reserved(address, prefix):
        yield Problem(
            "",
            0,
            f"port address {address} is the network or broadcast address of {prefix}",
            "use another",
            path,
        )
    elif address in taken:
        yield Problem(
            "",
            0,
            f"address {address} belongs to {taken[address]} already",
            "give each port its own",
            path,
        )
