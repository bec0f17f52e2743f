"""What ports and tunnels have for themselves alone: MAC addresses and addresses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dvn.checks.rule import Declared, is_reserved, listed, net_path
from dvn.problems import Path_, Problem
from dvn.values import Address

if TYPE_CHECKING:
    from dvn.spec import Network, Site


@dataclass(frozen=True)
class _Claim:
    """`what` is a port's or a tunnel's; the paths are those of its values."""

    what: str
    who: str
    addresses: tuple[Address, ...]
    macs: tuple[str, ...]
    address_path: Path_
    mac_path: Path_


def claims(site: Site, _: Declared) -> Iterator[Problem]:
    claimed = _of_tunnels(site)
    for tenant, name, network in site.networks():
        here = [*_of_ports(tenant, name, network), *claimed.get((tenant, name), ())]
        macs: dict[str, str] = {}
        taken: dict[Address, str] = {g.ip: "the gateway" for g in network.gateways()}
        for claim in here:
            for mac in claim.macs:
                if mac in macs:
                    yield Problem(
                        "",
                        0,
                        f"MAC address {mac} belongs to {macs[mac]} already",
                        "give each its own",
                        claim.mac_path,
                    )
                macs.setdefault(mac, claim.who)
            for address in claim.addresses:
                yield from _address(claim, address, network, taken)
                taken.setdefault(address, claim.who)


def _of_ports(tenant: str, name: str, network: Network) -> Iterator[_Claim]:
    for index, port in enumerate(network.ports):
        path = net_path(tenant, name, "ports", index)
        yield _Claim(
            "port",
            f"port {port.interface}",
            port.address,
            (port.mac,) if port.mac else (),
            (*path, "address"),
            (*path, "mac"),
        )


def _of_tunnels(site: Site) -> dict[tuple[str, str], list[_Claim]]:
    found: dict[tuple[str, str], list[_Claim]] = {}
    for tunnel in site.tunnels():
        if tunnel.beyond:
            continue  # what is behind it are ports
        path: Path_ = ("tenants", tunnel.tenant, "tunnels", tunnel.name)
        claim = _Claim(
            "tunnel",
            f"tunnel {tunnel.tenant}/{tunnel.name}",
            tunnel.addresses,
            tunnel.macs,
            (*path, "addresses"),
            (*path, "macs"),
        )
        found.setdefault((tunnel.tenant, tunnel.network), []).append(claim)
    return found


def _address(
    claim: _Claim, address: Address, network: Network, taken: dict[Address, str]
) -> Iterator[Problem]:
    prefix = next((p for p in network.prefix if address in p), None)
    if prefix is None:
        yield Problem(
            "",
            0,
            f"{claim.what} address {address} is outside {listed(network.prefix)}",
            "use an address of the network",
            claim.address_path,
        )
    elif is_reserved(address, prefix):
        yield Problem(
            "",
            0,
            f"{claim.what} address {address} is the network or broadcast address of {prefix}",
            "use another",
            claim.address_path,
        )
    elif address in taken:
        yield Problem(
            "",
            0,
            f"address {address} belongs to {taken[address]} already",
            "give each its own",
            claim.address_path,
        )
