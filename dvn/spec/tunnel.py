"""Tunnels: where they end, what they carry, and what carries them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from dvn.forms import Model, fault
from dvn.spec.fabric import Beyond
from dvn.spec.underlay import UdpPort
from dvn.values import (
    AddressField,
    Mac,
    Name,
    NotInFiles,
    PrefixField,
    PublicKey,
    SecretFile,
    in_range,
    one_or_more,
)

Transport: TypeAlias = Literal["plain", "fou", "wireguard", "ipsec", "auto"]
Carried: TypeAlias = Literal["plain", "fou", "wireguard", "ipsec"]
"""What `auto` ends up as."""
TunnelType: TypeAlias = Literal["gretap", "gre"]
TunnelKey = Annotated[int, AfterValidator(in_range("tunnel key", 1, 2**32 - 1))]


def _ike_id(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9.@_:-]{1,100}", value):
        raise fault(
            f"{value!r} is no name in IKE", "write an address or a name, such as gw.example.org"
        )
    return value


IkeId = Annotated[str, BeforeValidator(_ike_id)]


class TunnelSpec(Model):
    """A tunnel in the file: where it ends, and which key tells it from others (RFC 2890)."""

    network: Name = Field(examples=["farm"])
    """The tenant's network that the tunnel extends."""
    type: TunnelType = "gretap"
    """`gretap`: the far end is part of the same segment. `gre`, with routed prefixes of its own, is
    not in this version."""
    remote: AddressField | None = Field(default=None, examples=["203.0.113.7"])
    """The other end's address, as it is seen from here, IPv4 or IPv6. May be left out only with
    WireGuard, for an end that moves about or hides behind a NAT: it is known by its key."""
    key: TunnelKey = Field(examples=[4711])
    """Both ends' GRE key. It tells tunnels apart; it is no secret."""
    local: AddressField | None = None
    """This end's address; the underlay's unless given."""
    # Without a default: what crosses the internet unencrypted does so because somebody wrote it.
    transport: Transport = Field(examples=["wireguard"])
    """`wireguard`, `ipsec`: encrypted. `plain`, `fou` (in UDP): not encrypted; to be written out,
    so that nobody gets it by accident. `auto`: the best of `allow` that the path lets through."""
    allow: Annotated[tuple[Carried, ...], BeforeValidator(one_or_more)] = ()
    """What `transport: auto` may choose; unless given, only what is encrypted and has its key
    here."""
    port: UdpPort | None = None
    """The other end's UDP port, with `wireguard` and `fou`; the same as here unless given."""
    peer_key: PublicKey | None = None
    """The other end's WireGuard public key."""
    psk_file: SecretFile | None = None
    """A file with a secret that both ends share: what `ipsec` proves itself with; with `wireguard`
    a second lock (`wg genpsk`)."""
    local_id: IkeId | None = None
    """With `ipsec`: what this host calls itself; its address outside unless given. To be given
    behind a NAT that others see with another address."""
    peer_id: IkeId | None = None
    """With `ipsec`: what the other end calls itself; `remote` unless given."""
    prefixes: Annotated[tuple[PrefixField, ...], BeforeValidator(one_or_more)] = ()
    """With `type: gre`: what is routed to the far end, and may come from there."""
    addresses: Annotated[tuple[AddressField, ...], BeforeValidator(one_or_more)] = ()
    """The only inner source addresses of their family let in, and from no other port or tunnel;
    any of the network's prefix that is nobody else's unless given."""
    macs: Annotated[tuple[Mac, ...], BeforeValidator(one_or_more)] = ()
    """The only inner source MAC addresses let in; any that is nobody else's unless given."""
    dynamic: Annotated[bool, NotInFiles()] = False
    """Whether a lease brought it; its stamp in the kernel says so too."""


class Tunnel(TunnelSpec):
    """A tunnel with its full name; leases bring these at run time."""

    tenant: Name
    name: Name
    transport: Transport = "plain"
    beyond: Beyond | None = None
    """Of a tunnel between the site's own hosts: what is behind it."""

    @property
    def full_name(self) -> str:
        return f"{self.tenant}/{self.name}"

    def spec(self) -> TunnelSpec:
        return TunnelSpec.model_construct(
            **{name: getattr(self, name) for name in TunnelSpec.model_fields}
        )

    @staticmethod
    def of(tenant: str, name: str, spec: TunnelSpec) -> Tunnel:
        values = {field: getattr(spec, field) for field in TunnelSpec.model_fields}
        return Tunnel.model_construct(tenant=tenant, name=name, **values)
