"""Tunnels: where they leave this host, where they end, and what carries them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from dvn.forms import Model, fault
from dvn.values import (
    AddressField,
    Interface,
    Ipv4Field,
    Mac,
    Name,
    in_range,
    not_yet,
    one_or_more,
)

LATER_TRANSPORTS = ("fou", "wireguard", "ipsec", "auto")


def _transport(value: Any) -> Any:
    if value in LATER_TRANSPORTS:
        raise fault(
            f"transport {value} is not in this version",
            "write `transport: plain` if the path may carry unencrypted packets",
        )
    if value != "plain":
        raise fault(f"transport {value!r} is not known", "write `transport: plain`")
    return value


Transport = Annotated[Literal["plain"], BeforeValidator(_transport)]
TunnelKey = Annotated[int, AfterValidator(in_range("tunnel key", 1, 2**32 - 1))]
NotYet = Any


@dataclass(frozen=True)
class NotInFiles:
    """Marks a field that programs set and site files may not."""


class Underlay(Model):
    """Where tunnels leave this host. The MTU is at most 1500 unless given: more does not get
    through the internet."""

    interface: Interface = Field(examples=["eth0"])
    """Through which tunnels leave this host."""
    address: Ipv4Field = Field(examples=["198.51.100.1"])
    """This host's address on that interface: the outer source of its tunnels."""
    public: Ipv4Field | None = None
    """What others must write to reach `address`, where a 1:1 NAT stands before this host."""
    mtu: Annotated[int, AfterValidator(in_range("underlay MTU", 1280, 65535))] | None = None
    """Bytes an IP packet may have on the whole path; the interface's own MTU, at most 1500, unless
    given."""


class TunnelSpec(Model):
    """A tunnel in the file: where it ends, and which key tells it from others (RFC 2890)."""

    network: Name = Field(examples=["farm"])
    """The tenant's network that the tunnel extends."""
    remote: Ipv4Field = Field(examples=["203.0.113.7"])
    """The other end's address, as it is seen from here."""
    key: TunnelKey = Field(examples=[4711])
    """Both ends' GRE key. It tells tunnels apart; it is no secret."""
    local: Ipv4Field | None = None
    """This end's address; the underlay's unless given."""
    # Without a default: what crosses the internet unencrypted does so because somebody wrote it.
    transport: Transport = Field(examples=["plain"])
    """`plain`: not encrypted. To be written out, so that nobody gets it by accident."""
    peer_key: Annotated[NotYet, not_yet("an encrypted transport (peer_key)")] = None
    addresses: Annotated[tuple[AddressField, ...], BeforeValidator(one_or_more)] = ()
    """The only inner source addresses of their family let in, and from no other port or tunnel;
    any of the network's prefix that is nobody else's unless given."""
    macs: Annotated[tuple[Mac, ...], BeforeValidator(one_or_more)] = ()
    """The only inner source MAC addresses let in; any that is nobody else's unless given."""
    dynamic: Annotated[bool, NotInFiles()] = False
    """Whether a lease brought it; its stamp in the kernel says so too."""


class Tunnel(Model):
    """A tunnel with its full name; leases bring these at run time."""

    tenant: Name
    name: Name
    network: Name
    remote: Ipv4Field
    key: TunnelKey
    local: Ipv4Field | None = None
    transport: Transport = "plain"
    addresses: tuple[AddressField, ...] = ()
    macs: tuple[Mac, ...] = ()
    dynamic: bool = False

    def spec(self) -> TunnelSpec:
        return TunnelSpec(
            network=self.network,
            remote=self.remote,
            key=self.key,
            local=self.local,
            transport=self.transport,
            addresses=self.addresses,
            macs=self.macs,
            dynamic=self.dynamic,
        )
