"""Outside addresses: who may have which, and which ports of them lead where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dvn.checks.inside import Inside
from dvn.checks.rule import Declared, is_reserved, listed, net_path
from dvn.problems import Path_, Problem
from dvn.values import Address

if TYPE_CHECKING:
    from dvn.spec import Nat, Network, Site

# UDP source ports of those whose own port is forwarded to somebody (nat/translation.py).
_SPARE = range(61000, 65536)


def nat(site: Site, _: Declared) -> Iterator[Problem]:
    outside = _Outside(site)
    for tenant, name, network in site.networks():
        if network.nat is None:
            continue
        path = net_path(tenant, name, "nat")
        yield from _shared(network, network.nat, path)
        for address, where in _addresses(network.nat, path):
            yield from outside.inside_of_a_network(address, where)
        yield from _one_to_one(network, network.nat, path, outside, f"{tenant}/{name}")
        yield from _forwards(network, network.nat, path, outside, f"{tenant}/{name}")


class _Outside:
    """Outside addresses and ports of the whole site."""

    def __init__(self, site: Site) -> None:
        self._inside = Inside(
            (f"{tenant}/{name}", prefix)
            for tenant, name, network in site.networks()
            for prefix in network.prefix
        )
        self.single: dict[Address, str] = {}  # of one machine: nobody else's
        self.ports: dict[tuple[Address, str, int], str] = {}
        self.shared: dict[Address, str] = {}
        for tenant, name, network in site.networks():
            for address in network.nat.snat if network.nat else ():
                self.shared.setdefault(address, f"the outside address of {tenant}/{name}")
            for forward in network.nat.forward if network.nat else ():
                self.shared.setdefault(forward.outside, f"forwarded by {tenant}/{name}")
        if site.underlay:
            for own in site.underlay.address:
                self.shared[own] = "this host's own address, where tunnels end"

    def inside_of_a_network(self, address: Address, path: Path_) -> Iterator[Problem]:
        for owner, _prefix in self._inside.holding(address):
            yield Problem(
                "",
                0,
                f"outside address {address} lies inside a tenant's network ({owner})",
                "use an address of the site's outside",
                path,
            )


def _addresses(nat: Nat, path: Path_) -> Iterator[tuple[Address, Path_]]:
    for address in nat.snat:
        yield address, (*path, "snat")
    for inside, outside in nat.one_to_one.items():
        yield outside, (*path, "one_to_one", str(inside))
    for index, forward in enumerate(nat.forward):
        yield forward.outside, (*path, "forward", index, "outside")


def _shared(network: Network, nat: Nat, path: Path_) -> Iterator[Problem]:
    families = {prefix.version for prefix in network.prefix}
    path = (*path, "snat")
    seen: set[int] = set()
    if nat.snat and nat.masquerade:
        yield Problem("", 0, "both `snat` and `masquerade` are given", "keep one of them", path)
    for address in nat.snat:
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
            yield Problem("", 0, f"snat has two IPv{address.version} addresses", "keep one", path)
        seen.add(address.version)


def _one_to_one(
    network: Network, nat: Nat, path: Path_, outside: _Outside, who: str
) -> Iterator[Problem]:
    for inside, address in nat.one_to_one.items():
        where = (*path, "one_to_one", str(inside))
        yield from _inner(network, inside, where)
        yield from _family(inside, address, where)
        taken = outside.single.get(address) or outside.shared.get(address)
        if taken:
            yield Problem(
                "",
                0,
                f"{address} cannot be the outside address of {inside} alone: it is {taken}",
                "give the machine an address that nothing else has",
                where,
            )
        outside.single.setdefault(address, f"that of {inside} in {who}")


def _forwards(
    network: Network, nat: Nat, path: Path_, outside: _Outside, who: str
) -> Iterator[Problem]:
    for index, forward in enumerate(nat.forward):
        where = (*path, "forward", index)
        yield from _inner(network, forward.to, (*where, "to"))
        yield from _family(forward.to, forward.outside, (*where, "outside"))
        key = (forward.outside, forward.protocol, forward.port)
        shown = f"{forward.protocol} port {forward.port} of {forward.outside}"
        if key in outside.ports:
            yield Problem(
                "",
                0,
                f"{shown} leads to {outside.ports[key]} already",
                "choose another port or another outside address",
                (*where, "port"),
            )
        outside.ports.setdefault(key, f"{forward.to} in {who}")
        if forward.protocol == "udp" and forward.port in _SPARE:
            yield Problem(
                "",
                0,
                f"UDP port {forward.port} cannot be forwarded: {_SPARE[0]} to {_SPARE[-1]} are "
                "what other machines get for a source port that is forwarded",
                f"choose a port below {_SPARE[0]}",
                (*where, "port"),
            )


def _inner(network: Network, inside: Address, path: Path_) -> Iterator[Problem]:
    prefix = next((prefix for prefix in network.prefix if inside in prefix), None)
    if prefix is None:
        what = f"{inside} is outside {listed(network.prefix)}"
    elif is_reserved(inside, prefix):
        what = f"{inside} is the network or broadcast address of {prefix}"
    elif any(own.ip == inside for own in network.gateways()):
        what = f"{inside} is the gateway's own address"
    else:
        return
    yield Problem("", 0, what, "use the address of a machine in the network", path)


def _family(inside: Address, outside: Address, path: Path_) -> Iterator[Problem]:
    if inside.version != outside.version:
        yield Problem(
            "",
            0,
            f"{outside} is IPv{outside.version} and {inside} IPv{inside.version}",
            "use two addresses of one family",
            path,
        )
