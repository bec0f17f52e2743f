"""DHCP ranges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dvn.checks.rule import Declared, is_reserved, listed, net_path
from dvn.problems import Problem

if TYPE_CHECKING:
    from dvn.spec import Site


def dhcp_ranges(site: Site, _: Declared) -> Iterator[Problem]:
    for tenant, name, network in site.networks():
        if network.dhcp is None or network.dhcp.range is None:
            continue
        first, last = network.dhcp.range
        path = net_path(tenant, name, "dhcp", "range")
        prefix = next((p for p in network.prefix if first in p), None)
        if prefix is None or last not in prefix:
            outside = first if prefix is None else last
            yield Problem(
                "",
                0,
                f"address {outside} of the range is outside {listed(network.prefix)}",
                "use addresses of the network",
                path,
            )
        elif int(last) < int(first):
            yield Problem(
                "", 0, f"the range ends before it begins: {first} to {last}", "swap them", path
            )
        elif is_reserved(first, prefix) or is_reserved(last, prefix):
            yield Problem(
                "",
                0,
                f"the range has the network or broadcast address of {prefix}",
                f"use [{prefix[1]}, {prefix[-2]}] or less",
                path,
            )
