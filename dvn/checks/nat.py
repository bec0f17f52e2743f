"""Outside addresses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dvn.checks.inside import Inside
from dvn.checks.rule import Declared, net_path
from dvn.problems import Problem

if TYPE_CHECKING:
    from dvn.spec import Site


def nat(site: Site, _: Declared) -> Iterator[Problem]:
    inside = Inside(("", p) for _t, _n, network in site.networks() for p in network.prefix)
    for tenant, name, network in site.networks():
        if network.nat is None:
            continue
        path = net_path(tenant, name, "nat", "snat")
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
            elif any(inside.holding(address)):
                yield Problem(
                    "",
                    0,
                    f"snat address {address} lies inside a tenant's network",
                    "use an address of the site's outside",
                    path,
                )
            seen.add(address.version)
