"""Tunnels: their networks and ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dvn.checks.inside import Inside
from dvn.checks.rule import Declared
from dvn.forms import nearest
from dvn.problems import Path_, Problem

if TYPE_CHECKING:
    from dvn.spec import Site, Tunnel


def path_of(tunnel: Tunnel, *rest: str | int) -> Path_:
    return ("tenants", tunnel.tenant, "tunnels", tunnel.name, *rest)


def tunnels(site: Site, declared: Declared) -> Iterator[Problem]:
    ends: dict[tuple[object, ...], str] = {}
    for tunnel in site.tunnels():
        path = path_of(tunnel)
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
        if site.local_of(tunnel) is None and tunnel.transport != "wireguard":
            yield from _no_local(site, declared, tunnel, who)
            continue
        for end in _ends(site, tunnel):
            if end in ends:
                yield Problem(
                    "",
                    0,
                    f"tunnel {who} has the same ends and key {tunnel.key} as {ends[end]}",
                    "give each tunnel between two hosts its own key",
                    (*path, "key"),
                )
            ends.setdefault(end, who)


def _no_local(site: Site, declared: Declared, tunnel: Tunnel, who: str) -> Iterator[Problem]:
    if not declared.underlay:
        fix = "declare `underlay: {interface: ..., address: ...}`"
    elif site.underlay and tunnel.remote:
        version = tunnel.remote.version
        fix = f"the remote is IPv{version}: give the underlay an IPv{version} address as well"
    else:
        return  # what is wrong with the underlay, or that there is no remote, is said elsewhere
    yield Problem("", 0, f"tunnel {who} has no outer address on this host", fix, path_of(tunnel))


def _ends(site: Site, tunnel: Tunnel) -> Iterator[tuple[object, ...]]:
    """What the kernel tells tunnels of one type apart by; `auto` may become either."""
    if tunnel.transport in ("wireguard", "auto") and tunnel.peer_key:
        yield tunnel.type, tunnel.peer_key, tunnel.key
    if tunnel.transport != "wireguard" and tunnel.remote:
        yield tunnel.type, site.local_of(tunnel), tunnel.remote, tunnel.key


def tunnel_ends(site: Site, _: Declared) -> Iterator[Problem]:
    own = {*site.underlay.address, *site.underlay.public} if site.underlay else set()
    inside = Inside(
        (f"{tenant}/{name}", prefix)
        for tenant, name, network in site.networks()
        for prefix in network.prefix
    )
    for tunnel in site.tunnels():
        remote, path = tunnel.remote, path_of(tunnel, "remote")
        if remote is None:
            continue
        if remote in own or remote == tunnel.local:
            yield Problem(
                "",
                0,
                f"remote {remote} is this host itself",
                "write the other end's address",
                path,
            )
        if tunnel.local and tunnel.local.version != remote.version:
            yield Problem(
                "",
                0,
                f"local {tunnel.local} and remote {remote} are of two families",
                "use IPv4 for both, or IPv6",
                path_of(tunnel, "local"),
            )
        for owner, prefix in inside.holding(remote):
            yield Problem(
                "",
                0,
                f"remote {remote} lies inside network {owner} ({prefix}): the "
                "tunnel would run through itself",
                "use the other end's outer address",
                path,
            )
