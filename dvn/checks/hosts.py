"""Hosts of a site: how they reach each other, and which of them a port names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dvn.checks.inside import Inside
from dvn.checks.rule import Declared, net_path
from dvn.forms import nearest
from dvn.problems import Path_, Problem

if TYPE_CHECKING:
    from dvn.spec import Site, Underlay


def hosts(site: Site, declared: Declared) -> Iterator[Problem]:
    """On a host's own part of a site there is nothing to find: the gateway's file was checked."""
    if site.here is not None:
        return
    yield from _ports(site)
    yield from _joined(site, declared)
    for name, host in site.hosts.items():
        for tenant in host.tenants:
            if tenant not in site.tenants:
                what = f"host {name} is for tenant {tenant!r}, which is not declared"
                yield _at(name, "tenants", what, nearest(tenant, site.tenants))
    if site.hosts and site.underlay:
        yield from _ends(site, site.underlay)


def _at(name: str, field: str, what: str, fix: str) -> Problem:
    return Problem("", 0, what, fix, ("hosts", name, *field.split(".")))


def _ports(site: Site) -> Iterator[Problem]:
    for tenant, name, network in site.networks():
        for index, port in enumerate(network.ports):
            path = net_path(tenant, name, "ports", index, "host")
            if port.host is None:
                continue
            host = site.hosts.get(port.host)
            if host is None:
                fix = (
                    "leave `host` out: without it a port is on this host"
                    if port.host == site.host
                    else f"declare it: `hosts: {{{port.host}: {{underlay: ...}}}}`"
                )
                yield Problem("", 0, f"there is no host {port.host!r} under `hosts`", fix, path)
            elif host.tenants and tenant not in host.tenants:
                what = f"host {port.host} is not for tenant {tenant}"
                fix = f"add {tenant} to `hosts.{port.host}.tenants`, or use another host"
                yield Problem("", 0, what, fix, path)


def _joined(site: Site, declared: Declared) -> Iterator[Problem]:
    if site.hosts and site.fabric is None:
        yield Problem(
            "",
            0,
            "there are hosts, but nothing says what joins them",
            "add `fabric: {transport: wireguard}` (encrypted), or `plain`",
            ("hosts",),
        )
    if site.hosts and not declared.underlay:
        yield Problem(
            "",
            0,
            "there are hosts, but this one has no underlay for the tunnels to them",
            "add `underlay: {interface: ..., address: ...}`",
            ("hosts",),
        )
    if site.host in site.hosts:
        what = f"{site.host} is this host, the gateway, and cannot be one of `hosts`"
        yield Problem("", 0, what, "give it another name", ("hosts", str(site.host)))


def _ends(site: Site, own: Underlay) -> Iterator[Problem]:
    """Addresses in use once, of a common family, in no network; keys where there is WireGuard."""
    inside = Inside(
        (f"{tenant}/{name}", prefix)
        for tenant, name, network in site.networks()
        for prefix in network.prefix
    )
    taken = dict.fromkeys((*own.address, *own.public), "this host")
    all_ends = [("", own), *((name, host.underlay) for name, host in site.hosts.items())]
    for name, end in all_ends[1:]:
        for address in (*end.address, *end.public):
            owner = taken.setdefault(address, f"host {name}")
            if owner != f"host {name}":
                what = f"address {address} of host {name} is {owner}'s already"
                yield _at(name, "underlay.address", what, "give each host its own")
            for network, prefix in inside.holding(address):
                what = f"address {address} of host {name} is inside network {network} ({prefix})"
                fix = "tunnels would run through themselves: use another address or prefix"
                yield _at(name, "underlay.address", what, fix)
        for other, theirs in all_ends if _meshed(site) else all_ends[:1]:
            if other != name and not {a.version for a in theirs.address} & {
                a.version for a in end.address
            }:
                who = f"host {other}" if other else "this host"
                what = f"host {name} and {who} have no address of the same family"
                yield _at(name, "underlay.address", what, "add IPv4 or IPv6 to one of them")
    if site.fabric and site.fabric.transport == "wireguard":
        yield from _keys(all_ends)


def _meshed(site: Site) -> bool:
    return site.fabric is not None and site.fabric.shape == "mesh"


def _keys(all_ends: list[tuple[str, Underlay]]) -> Iterator[Problem]:
    known: dict[str, str] = {}
    for name, end in all_ends:
        path: Path_ = ("hosts", name, "underlay") if name else ("underlay",)
        key = end.wireguard.public_key if end.wireguard else None
        if key is None:
            yield Problem(
                "",
                0,
                "`fabric.transport: wireguard` needs this underlay's WireGuard key, both halves",
                "add `wireguard: {private_key_file: /etc/dvn/wireguard.key, public_key: ...}`; "
                "the file by `wg genkey`, the other by `wg pubkey`",
                path,
            )
        elif known.setdefault(key, name) != name:
            yield Problem(
                "",
                0,
                "two hosts have the same WireGuard key",
                "make one on each host: wg genkey",
                (*path, "wireguard", "public_key"),
            )
