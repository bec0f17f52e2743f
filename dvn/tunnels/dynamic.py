"""Tunnels that leases brought, for those who know the file only.

The daemon knows the leases and has the last word over their tunnels. Whoever applies a file beside
it must not take a tunnel from under a running job, so their stamps tell them from the file's own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from dvn.kernel.state import Element, KernelState, Link, NftTable
from dvn.tunnels.mtu import tcp_mss
from dvn.vlans.claims import claims_of

FIXED, DYNAMIC = "tunnel", "lease"  # kinds in a stamp: dvn:SITE:KIND:TENANT/NAME
TUNNELS = "tunnels"  # the set of tunnel devices in the bridge table
MSS = {4: "mss4", 6: "mss6"}  # the maps of the TCP segment each carries, by IP version


def keep_dynamic(observed: KernelState, desired: KernelState) -> KernelState:
    """`desired`, and with it the dynamic tunnels that are there, in the networks it still has.

    Pure. What the file says wins: a device name, or ends and key, that it gives to another.
    """
    if not any(s.name == TUNNELS for table in desired.tables for s in table.sets):
        return desired  # without an underlay there are no tunnels
    slots = {link.params.slot() for link in desired.links}
    kept = tuple(
        _fitted(link)
        for link in observed.links
        if is_dynamic(link)
        and link.name not in desired.by_name
        and link.params.slot() not in slots
        and (link.master is None or link.master in desired.by_name)
    )
    names = frozenset(link.name for link in kept)
    more: dict[str, Collection[Element]] = {
        **claims_of((t for t in observed.tables if t.family == "bridge"), names),
        TUNNELS: {(name,) for name in names},
        **{
            name: {(link.name, str(tcp_mss(link.mtu, version))) for link in kept}
            for version, name in MSS.items()
        },
    }
    tables = tuple(
        _with_elements(table, more) if table.family == "bridge" else table
        for table in desired.tables
    )
    return replace(desired, links=(*desired.links, *kept), tables=tables)


def is_dynamic(link: Link) -> bool:
    return link.alias.split(":")[2:3] == [DYNAMIC]


def _fitted(link: Link) -> Link:
    """As it is, but up; one that lost its bridge is for the daemon, and so is its MTU, which fits
    the path and not the network."""
    return replace(link, up=True, mac=None)


def _with_elements(table: NftTable, more: Mapping[str, Collection[Element]]) -> NftTable:
    sets = (replace(s, elements=s.elements.union(more.get(s.name, ()))) for s in table.sets)
    return replace(table, sets=tuple(sets))
