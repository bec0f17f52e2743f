"""Tunnels that leases brought, for those who know the file only.

The daemon knows the leases and has the last word over their tunnels. Whoever applies a file beside
it must not take a tunnel from under a running job, so their stamps tell them from the file's own.
"""

from __future__ import annotations

from dataclasses import replace

from dvn.kernel.state import KernelState, Link, NftSet, NftTable

FIXED, DYNAMIC = "tunnel", "lease"  # kinds in a stamp: dvn:SITE:KIND:TENANT/NAME
TUNNELS = "tunnels"  # the set of tunnel devices in the bridge table


def keep_dynamic(observed: KernelState, desired: KernelState) -> KernelState:
    """`desired`, and with it the dynamic tunnels that are there, in the networks it still has.

    Pure. What the file says wins: a device name, or ends and key, that it gives to another.
    """
    clamped = {e for t in desired.tables for s in t.sets if s.name == TUNNELS for e in s.elements}
    if not any(s.name == TUNNELS for table in desired.tables for s in table.sets):
        return desired  # without an underlay there are no tunnels
    slots = {link.params.slot() for link in desired.links}
    kept = tuple(
        _fitted(link, desired)
        for link in observed.links
        if is_dynamic(link)
        and link.name not in desired.by_name
        and link.params.slot() not in slots
        and (link.master is None or link.master in desired.by_name)
    )
    names = frozenset(clamped | {(link.name,) for link in kept})
    tables = tuple(_with_tunnels(table, names) for table in desired.tables)
    return replace(desired, links=(*desired.links, *kept), tables=tables)


def is_dynamic(link: Link) -> bool:
    return link.alias.split(":")[2:3] == [DYNAMIC]


def _fitted(link: Link, desired: KernelState) -> Link:
    """As it is, but up and with its network's MTU; one that lost its bridge is for the daemon."""
    bridge = desired.by_name.get(link.master or "")
    return replace(link, up=True, mac=None, mtu=bridge.mtu if bridge else link.mtu)


def _with_tunnels(table: NftTable, names: frozenset[tuple[str, ...]]) -> NftTable:
    sets = tuple(NftSet(s.name, s.type, names) if s.name == TUNNELS else s for s in table.sets)
    return replace(table, sets=sets)
