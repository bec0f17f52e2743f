"""Tunnels: their networks and ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dvn.checks.rule import Declared
from dvn.forms import nearest
from dvn.problems import Path_, Problem

if TYPE_CHECKING:
    from dvn.spec import Site


def tunnels(site: Site, declared: Declared) -> Iterator[Problem]:
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


def tunnel_ends(site: Site, _: Declared) -> Iterator[Problem]:
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
