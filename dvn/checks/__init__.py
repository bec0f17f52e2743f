"""The rules of a site that need more than one value at a time.

Each returns problems that carry the *path* of the value to change; the reader adds file and line.
Pure, and as fast as the number of objects allows: a site may have thousands of networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from dvn.checks.claims import claims
from dvn.checks.hosts import hosts
from dvn.checks.names import device_names, network_numbers
from dvn.checks.nat import nat
from dvn.checks.networks import gateways, prefixes, underlay_in_prefix, vlans
from dvn.checks.policy import policy
from dvn.checks.ports import ports
from dvn.checks.rule import Declared
from dvn.checks.services import dhcp_ranges
from dvn.checks.transports import transports
from dvn.checks.tunnels import tunnel_ends, tunnels
from dvn.checks.underlay import underlay_families
from dvn.problems import Problem

if TYPE_CHECKING:
    from dvn.spec import Site

__all__ = ["Declared", "conflicts"]

RULES: tuple[Callable[[Site, Declared], Iterator[Problem]], ...] = (
    prefixes,
    underlay_families,
    underlay_in_prefix,
    gateways,
    vlans,
    nat,
    dhcp_ranges,
    policy,
    ports,
    hosts,
    tunnels,
    tunnel_ends,
    transports,
    device_names,
    network_numbers,
    claims,
)


def conflicts(site: Site, declared: Declared) -> list[Problem]:
    """Every problem between the values of `site`."""
    return [problem for rule in RULES for problem in rule(site, declared)]
