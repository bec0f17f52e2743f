"""A network: one layer-2 segment of one tenant, how it is reached, and what it may reach."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Interface, IPv6Interface
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from dvn.forms import Model
from dvn.spec.dhcp import Dhcp, off_is_none
from dvn.spec.nat import Nat
from dvn.spec.rate import Rate
from dvn.values import (
    Address,
    AddressField,
    Interface,
    Mac,
    Name,
    NotInFiles,
    Prefix,
    PrefixField,
    Service,
    in_range,
    one_or_more,
)


class Vlan(Model):
    """802.1Q toward the site's switches."""

    id: Annotated[int, AfterValidator(in_range("VLAN id", 1, 4094))]
    """The tag of this network's frames on the uplink."""
    uplink: Interface = Field(examples=["eth1"])
    """The interface toward the switches (the trunk)."""


class Port(Model):
    """An interface of this host that belongs to the network, such as a VM's tap."""

    interface: Interface
    """Its name, as `ip link` shows it."""
    mac: Mac | None = None
    """The only source MAC address let through here, and from no other port or tunnel; any that is
    nobody else's unless given."""
    address: Annotated[tuple[AddressField, ...], BeforeValidator(one_or_more)] = ()
    """The only source addresses of their family let through here, one or more, and from no other
    port or tunnel; any of the prefix that is nobody else's unless given."""
    rate: Rate | None = None
    """The most that passes here: `1gbit` for each way, or `{in: 1gbit, out: 100mbit}`. `in` is what
    the machine receives."""
    host: Name | None = None
    """On which of `hosts` the interface is; on the gateway host unless given."""
    dynamic: Annotated[bool, NotInFiles()] = False
    """Whether it is there because a machine runs, and not because a file says so."""


class Network(Model):
    """One layer-2 segment of one tenant, with the gateway's address in it."""

    prefix: Annotated[
        tuple[PrefixField, ...],
        BeforeValidator(one_or_more),
        Field(min_length=1, examples=["10.9.0.0/24"]),
    ]
    """The network's addresses, IPv4 or IPv6 or both. Networks may overlap, unless both are open or
    a policy joins them."""
    gateway: Annotated[tuple[AddressField, ...], BeforeValidator(one_or_more)] = ()
    """This host's address in each prefix; its first address unless given."""
    vlan: Vlan | None = None
    """How the network is reached through the site's switches; leave out if it is not."""
    access: Literal["open", "closed"] = "closed"
    """`open`: the network may reach the site and the internet, and the site may reach it; `closed`:
    the internet only, and only with `nat`."""
    nat: Nat | None = None
    """The addresses its machines have outside; without it packets leave untranslated."""
    ports: tuple[Port, ...] = ()
    """Interfaces of this host that belong to the network."""
    services: tuple[Service, ...] = ()
    """Services of this host that the network may use, such as `udp/53`; none unless given."""
    rate: Rate | None = None
    """The most that passes between the network and everything else, at its gateway: `1gbit` for
    each way, or `{in: 1gbit, out: 100mbit}`. `in` is what its machines receive."""
    dhcp: Annotated[Dhcp | None, BeforeValidator(off_is_none)] = None
    """Addresses, resolvers and MTU for the network's machines: `true`, or how; none unless
    given."""

    def on(self, host: str | None) -> tuple[Port, ...]:
        """The ports on a host; None is the gateway host."""
        return tuple(port for port in self.ports if port.host == host)

    def gateways(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """The gateway's address in each prefix: the declared one, else the first of the prefix."""
        return _gateways(self.prefix, self.gateway)


@lru_cache(1 << 14)
def _gateways(
    prefixes: tuple[Prefix, ...], chosen: tuple[Address, ...]
) -> tuple[IPv4Interface | IPv6Interface, ...]:
    return tuple(_interface_of(prefix, chosen) for prefix in prefixes)


def _interface_of(prefix: Prefix, chosen: tuple[Address, ...]) -> IPv4Interface | IPv6Interface:
    address = next((a for a in chosen if a in prefix), prefix[1])
    pair = (int(address), prefix.prefixlen)
    return IPv4Interface(pair) if prefix.version == 4 else IPv6Interface(pair)
