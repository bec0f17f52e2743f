"""Where tunnels leave this host, and who it is there: addresses, keys, UDP ports."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from dvn.forms import Model
from dvn.values import (
    Address,
    AddressField,
    Interface,
    PublicKey,
    SecretFile,
    in_range,
    one_or_more,
)

UdpPort = Annotated[int, AfterValidator(in_range("UDP port", 1, 65535))]
Addresses = Annotated[tuple[AddressField, ...], BeforeValidator(one_or_more)]

WIREGUARD_PORT = 51820
GRE_IN_UDP_PORT = 4754  # RFC 8086


class WireguardIdentity(Model):
    """Who this host is to the other ends of its WireGuard tunnels."""

    private_key_file: SecretFile = Field(examples=["/etc/dvn/wireguard.key"])
    """The file with this host's private key (`wg genkey`), readable by root only. Others get the
    public key (`wg pubkey`) and write it as `peer_key`."""
    port: UdpPort = WIREGUARD_PORT
    """The UDP port that the others' packets come to."""
    public_key: PublicKey | None = None
    """What `wg pubkey` makes of the key; needed where hosts of the site are joined by WireGuard."""


class Underlay(Model):
    """Where tunnels leave this host. The MTU is at most 1500 unless given: more does not get
    through the internet."""

    interface: Interface = Field(examples=["eth0"])
    """Through which tunnels leave this host."""
    address: Annotated[Addresses, Field(min_length=1, examples=["198.51.100.1"])]
    """This host's address on that interface, or one of each family: the outer source of its
    tunnels."""
    public: Addresses = ()
    """What others must write to reach `address`, where a 1:1 NAT stands before this host."""
    mtu: Annotated[int, AfterValidator(in_range("underlay MTU", 1280, 65535))] | None = None
    """Bytes an IP packet may have on the whole path; the interface's own MTU, at most 1500, unless
    given."""
    wireguard: WireguardIdentity | None = None
    """This host's WireGuard key; needed by tunnels with `transport: wireguard`."""
    fou_port: UdpPort = GRE_IN_UDP_PORT
    """The UDP port of tunnels with `transport: fou`, here; 4754 is GRE-in-UDP (RFC 8086)."""

    def of(self, version: int) -> Address | None:
        """This host's address of an IP version, if it has one."""
        return next((address for address in self.address if address.version == version), None)

    def outside(self, version: int) -> Address | None:
        """What others write to reach this host."""
        public = next((address for address in self.public if address.version == version), None)
        return public or self.of(version)
