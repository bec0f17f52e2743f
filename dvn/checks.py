"""The rules of a site that need more than one value at a time.

Each returns problems that carry the *path* of the value to change; the reader adds file and line.
Pure, and as fast as the number of objects allows: a site may have thousands of networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dvn import addresses
from dvn.forms import nearest
from dvn.problems import Path_, Problem
from dvn.values import Address, Prefix

if TYPE_CHECKING:
    from dvn.spec import Network, Site


@dataclass(frozen=True)
class Declared:
    """What a file names, also where the thing itself is wrong and so not in the `Site`:
    to refer to that is not a second mistake. `networks`: (tenant, network)."""

    networks: frozenset[tuple[str, str]]
    underlay: bool


def conflicts(site: Site, declared: Declared) -> list[Problem]:
    """Every problem between the values of `site`."""
    rules: tuple[Callable[[Site, Declared], Iterator[Problem]], ...] = (
        _prefixes,
        _underlay_in_prefix,
        _gateways,
        _vlans,
        _nat,
        _ports,
        _tunnels,
        _tunnel_ends,
        _device_names,
    )
    return [problem for rule in rules for problem in rule(site, declared)]


def _net_path(tenant: str, network: str, *rest: str | int) -> Path_:
    return ("tenants", tenant, "networks", network, *rest)


def _prefixes(site: Site, _: Declared) -> Iterator[Problem]:
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
        path = _net_path(tenant, name, "prefix")
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


def _underlay_in_prefix(site: Site, _: Declared) -> Iterator[Problem]:
    if site.underlay is None:
        return
    outer = [site.underlay.address, *([site.underlay.public] if site.underlay.public else [])]
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
                        _net_path(tenant, name, "prefix"),
                    )


def _gateways(site: Site, _: Declared) -> Iterator[Problem]:
    for tenant, name, network in site.networks():
        path = _net_path(tenant, name, "gateway")
        served: set[Prefix] = set()
        for address in network.gateway:
            prefix = next((p for p in network.prefix if address in p), None)
            if prefix is None:
                yield Problem(
                    "",
                    0,
                    f"gateway {address} is outside {_list(network.prefix)}",
                    "use an address of the prefix, or leave it out for the first one",
                    path,
                )
            elif prefix in served:
                yield Problem("", 0, f"prefix {prefix} has two gateways", "keep one", path)
            elif _is_reserved(address, prefix):
                yield Problem(
                    "",
                    0,
                    f"gateway {address} is the network or broadcast address of {prefix}",
                    f"use one such as {prefix[1]}",
                    path,
                )
            if prefix is not None:
                served.add(prefix)


def _is_reserved(address: Address, prefix: Prefix) -> bool:
    if address == prefix.network_address:
        return True
    return prefix.version == 4 and address == prefix.broadcast_address


def _vlans(site: Site, _: Declared) -> Iterator[Problem]:
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
                _net_path(tenant, name, "vlan", "id"),
            )
        taken.setdefault(key, f"{tenant}/{name}")


def _nat(site: Site, _: Declared) -> Iterator[Problem]:
    inside = [prefix for _t, _n, network in site.networks() for prefix in network.prefix]
    for tenant, name, network in site.networks():
        if network.nat is None:
            continue
        path = _net_path(tenant, name, "nat", "snat")
        families = {prefix.version for prefix in network.prefix}
        seen: set[int] = set()
        for address in network.nat.snat:
            if address.version not in families:
                yield Problem(
                    "",
                    0,
                    f"snat address {address} is IPv{address.version}, but the network "
                    f"has no IPv{address.version} prefix",
                    "use an address of the prefix's family",
                    path,
                )
            elif address.version in seen:
                yield Problem(
                    "", 0, f"snat has two IPv{address.version} addresses", "keep one", path
                )
            elif any(address in prefix for prefix in inside):
                yield Problem(
                    "",
                    0,
                    f"snat address {address} lies inside a tenant's network",
                    "use an address of the site's outside",
                    path,
                )
            seen.add(address.version)


def _ports(site: Site, _: Declared) -> Iterator[Problem]:
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
            path = _net_path(tenant, name, "ports", index)
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
            f"port address {address} is outside {_list(network.prefix)}",
            "use an address of the network",
            path,
        )
    elif _is_reserved(address, prefix):
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


def _tunnels(site: Site, declared: Declared) -> Iterator[Problem]:
    ends: dict[tuple[object, object, int], str] = {}
    for tunnel in site.tunnels():
        path: Path_ = ("tenants", tunnel.tenant, "tunnels", tunnel.name)
        who = f"{tunnel.tenant}/{tunnel.name}"
        if (tunnel.tenant, tunnel.network) not in declared.networks:
            known = [network for tenant, network in declared.networks if tenant == tunnel.tenant]
            yield Problem(
                "",
                0,
                f"tunnel {who} extends network {tunnel.network!r}, which tenant "
                f"{tunnel.tenant} does not have",
                nearest(tunnel.network, known),
                (*path, "network"),
            )
        local = site.local_of(tunnel)
        if local is None and not declared.underlay:
            yield Problem(
                "",
                0,
                f"tunnel {who} has no outer address on this host",
                "declare `underlay: {interface: ..., address: ...}`",
                path,
            )
        if local is None:
            continue
        end = (local, tunnel.remote, tunnel.key)
        if end in ends:
            yield Problem(
                "",
                0,
                f"tunnel {who} has the same ends and key {tunnel.key} as {ends[end]}",
                "give each tunnel between two hosts its own key",
                (*path, "key"),
            )
        ends.setdefault(end, who)


def _tunnel_ends(site: Site, _: Declared) -> Iterator[Problem]:
    own = {site.underlay.address, site.underlay.public} if site.underlay else set()
    inside = [
        (f"{tenant}/{name}", prefix)
        for tenant, name, network in site.networks()
        for prefix in network.prefix
        if prefix.version == 4
    ]
    for tunnel in site.tunnels():
        path: Path_ = ("tenants", tunnel.tenant, "tunnels", tunnel.name, "remote")
        if tunnel.remote in own or tunnel.remote == tunnel.local:
            yield Problem(
                "",
                0,
                f"remote {tunnel.remote} is this host itself",
                "write the other end's address",
                path,
            )
        for owner, prefix in inside:
            if tunnel.remote in prefix:
                yield Problem(
                    "",
                    0,
                    f"remote {tunnel.remote} lies inside network {owner} ({prefix}): the "
                    "tunnel would run through itself",
                    "use the other end's outer address",
                    path,
                )


def _device_names(site: Site, _: Declared) -> Iterator[Problem]:
    owners: dict[str, str] = {}
    for tenant, name, network in site.networks():
        path = _net_path(tenant, name)
        yield from _claim(owners, addresses.bridge_name(tenant, name), f"{tenant}/{name}", path)
        if network.vlan:
            yield from _claim(owners, addresses.vlan_name(tenant, name), f"{tenant}/{name}", path)
    for tunnel in site.tunnels():
        yield from _claim(
            owners,
            addresses.tunnel_name(tunnel.tenant, tunnel.name),
            f"tunnel {tunnel.tenant}/{tunnel.name}",
            ("tenants", tunnel.tenant, "tunnels", tunnel.name),
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


def _list(prefixes: tuple[Prefix, ...]) -> str:
    return " and ".join(map(str, prefixes))
