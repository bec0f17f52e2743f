"""Transports: what each needs, and what does not go together."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from dvn import addresses
from dvn.checks.rule import Declared
from dvn.checks.tunnels import path_of
from dvn.problems import Problem

if TYPE_CHECKING:
    from dvn.spec import Site, Tunnel
    from dvn.spec.tunnel import Carried


def transports(site: Site, declared: Declared) -> Iterator[Problem]:
    for tunnel in site.tunnels():
        yield from _needed(site, declared, tunnel)
        yield from _out_of_place(tunnel)
        yield from _type(tunnel)
    yield from _one_peer_one_end(site)
    yield from _protected_or_not(site)


def may_become(tunnel: Tunnel) -> tuple[Carried, ...]:
    """What carries a tunnel, or for `auto` what may: unless `allow` says so, only what is encrypted
    and has what it needs."""
    if tunnel.transport != "auto":
        return (tunnel.transport,)
    if tunnel.allow:
        return tunnel.allow
    ready: dict[Carried, str | None] = {"wireguard": tunnel.peer_key, "ipsec": tunnel.psk_file}
    return tuple(name for name, secret in ready.items() if secret)


def _needed(site: Site, declared: Declared, tunnel: Tunnel) -> Iterator[Problem]:
    possible = may_become(tunnel)
    if not possible:
        yield _at(
            tunnel,
            "transport",
            "transport auto has nothing to choose from",
            "give it a `peer_key` (WireGuard) or a `psk_file` (IPsec), or say what it may take: "
            "`allow: [plain, fou]`",
        )
    if tunnel.remote is None and tunnel.transport != "wireguard":
        yield _at(
            tunnel,
            "remote",
            "`remote` is missing",
            "only a WireGuard end is known by its key; add `remote: ADDRESS`",
        )
    if "wireguard" in possible:
        if tunnel.peer_key is None:
            yield _at(
                tunnel,
                "peer_key",
                "`peer_key` is missing: transport wireguard knows the other end by its key",
                "add what `wg pubkey` shows on the other host",
            )
        if declared.underlay and site.underlay and site.underlay.wireguard is None:
            yield Problem(
                "",
                0,
                f"tunnel {tunnel.full_name} needs this host's WireGuard key",
                "add `wireguard: {private_key_file: /etc/dvn/wireguard.key}` to `underlay`, and "
                "make the file: wg genkey",
                ("underlay",),
            )
    if "ipsec" in possible and tunnel.psk_file is None:
        yield _at(
            tunnel,
            "psk_file",
            "`psk_file` is missing: transport ipsec proves itself with a shared secret",
            "write a secret to a file on both hosts, and add `psk_file: FILE`",
        )


def _out_of_place(tunnel: Tunnel) -> Iterator[Problem]:
    possible = may_become(tunnel)
    if tunnel.allow and tunnel.transport != "auto":
        yield _at(tunnel, "allow", "`allow` is for transport auto", "leave it out")
    if tunnel.peer_key and "wireguard" not in possible:
        yield _at(
            tunnel,
            "peer_key",
            f"`peer_key` is WireGuard's, but the transport is {tunnel.transport}",
            "write `transport: wireguard`, or leave the key out",
        )
    if tunnel.psk_file and not {"wireguard", "ipsec"} & {*possible}:
        yield _at(
            tunnel,
            "psk_file",
            f"`psk_file` encrypts nothing with transport {tunnel.transport}",
            "write `transport: ipsec` or `wireguard`, or leave it out",
        )
    for field in ("local_id", "peer_id"):
        if getattr(tunnel, field) and "ipsec" not in possible:
            yield _at(tunnel, field, f"`{field}` is for transport ipsec", "leave it out")
    if tunnel.port and not {"wireguard", "fou"} & {*possible}:
        yield _at(tunnel, "port", f"transport {tunnel.transport} has no port", "leave it out")
    if tunnel.port and tunnel.remote is None:
        yield _at(tunnel, "port", "a port without `remote`", "write both, or neither")
    if tunnel.local and tunnel.transport == "wireguard":
        yield _at(
            tunnel,
            "local",
            "WireGuard chooses its outer address by the route",
            "leave `local` out",
        )


def _type(tunnel: Tunnel) -> Iterator[Problem]:
    if tunnel.type == "gre":
        # Its routes belong into the network's own routing table.
        yield _at(
            tunnel,
            "type",
            "a routed tunnel (type: gre) is not in this version",
            "leave `type` out: both ends are then one segment",
        )
    if tunnel.type == "gretap" and tunnel.prefixes:
        yield _at(
            tunnel,
            "prefixes",
            "both ends of a gretap tunnel are one segment, nothing is routed",
            "leave `prefixes` out, or write `type: gre`",
        )


def _one_peer_one_end(site: Site) -> Iterator[Problem]:
    """All tunnels to one host share its WireGuard session, or its IPsec connection."""
    known: dict[str, Tunnel] = {}
    inners: dict[IPv4Address, str] = {}
    for tunnel in site.tunnels():
        if tunnel.peer_key is None or "wireguard" not in may_become(tunnel):
            continue
        inner = addresses.wireguard_inner(tunnel.peer_key)
        if inners.setdefault(inner, tunnel.peer_key) != tunnel.peer_key:
            yield _at(
                tunnel,
                "peer_key",
                f"two peers' keys give the same address inside WireGuard ({inner})",
                "make another key on one of them",
            )
        first = known.setdefault(tunnel.peer_key, tunnel)
        yield from _same(tunnel, first, ("remote", "port", "psk_file"), "the same `peer_key`")
    hosts: dict[tuple[object, object], Tunnel] = {}
    for tunnel in site.tunnels():
        if "ipsec" in may_become(tunnel) and tunnel.remote:
            first = hosts.setdefault((site.local_of(tunnel), tunnel.remote), tunnel)
            yield from _same(tunnel, first, ("psk_file", "local_id", "peer_id"), "the same remote")


def _same(tunnel: Tunnel, first: Tunnel, fields: tuple[str, ...], why: str) -> Iterator[Problem]:
    for field in fields:
        ours, theirs = getattr(tunnel, field), getattr(first, field)
        if ours != theirs:
            yield _at(
                tunnel,
                field,
                f"{why} has {field} {_shown(theirs)} in tunnel {first.full_name}, and "
                f"{_shown(ours)} here",
                "it is one host: write the same in both",
            )


def _protected_or_not(site: Site) -> Iterator[Problem]:
    """IPsec protects all GRE between two hosts: nothing unprotected can go beside it."""
    sealed = {t.remote: t for t in site.tunnels() if t.transport == "ipsec" and t.remote}
    for tunnel in site.tunnels():
        other = sealed.get(tunnel.remote) if tunnel.remote else None
        if other and tunnel.transport == "plain":
            yield _at(
                tunnel,
                "transport",
                f"GRE to {tunnel.remote} is protected by IPsec for tunnel {other.full_name}; "
                "a plain tunnel to the same host is not possible",
                "write `transport: ipsec` here too",
            )


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def _at(tunnel: Tunnel, field: str, what: str, fix: str) -> Problem:
    return Problem("", 0, what, fix, path_of(tunnel, field))
