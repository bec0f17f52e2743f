"""NICs of running machines as ports of a site: which may be, and why the others may not. Pure.

The same on both sides. The agent asks it of its own machines, so that one gets its network though
the gateway is away; the gateway asks it of all, in the order in which they came, and its word is
the last. Whoever is refused stays outside every network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationError

from dvn.checks.rule import is_reserved, listed
from dvn.forms import Model, fault, nearest
from dvn.hosts.slices import may_run
from dvn.spec import Network, Port, Site
from dvn.values import AddressField, Interface, Mac, one_or_more, site_name


def _network_name(value: Any) -> str:
    tenant, slash, name = value.partition("/") if isinstance(value, str) else ("", "", "")
    if not slash:
        raise fault(f"{value!r} names no network", "write TENANT/NETWORK, such as cms/farm")
    return f"{site_name(tenant)}/{site_name(name)}"


class Nic(Model):
    """A machine's NIC: its interface on the host, and the network that it asks for."""

    interface: Interface
    network: Annotated[str, BeforeValidator(_network_name)]
    mac: Mac
    address: Annotated[tuple[AddressField, ...], BeforeValidator(one_or_more)] = ()
    machine: str = ""
    lease: str = ""
    """Of a borrowed machine: it may have an address that is kept for such."""


@dataclass(frozen=True)
class Refused:
    """A NIC that is in no network, and why."""

    host: str
    interface: str
    machine: str
    why: str

    def __str__(self) -> str:
        machine = f" of {self.machine}" if self.machine else ""
        return f"{self.interface}{machine} on {self.host}: {self.why}"


@dataclass(frozen=True)
class Joined:
    """The site with the ports that may be, and who may not."""

    site: Site
    refused: tuple[Refused, ...] = ()


def nics_from_json(data: object) -> tuple[list[Nic], str]:
    """(those that can be read, what is wrong with the first that cannot or "")."""
    found, wrong = [], ""
    for item in data if isinstance(data, list) else ():
        try:
            found.append(Nic.model_validate(item))
        except ValidationError as error:
            wrong = wrong or str(error.errors(include_url=False)[0]["msg"])
    return found, wrong


def join(
    site: Site,
    nics: Iterable[tuple[str, Nic]],
    reserved: Mapping[tuple[str, str], Mapping[object, str]] | None = None,
) -> Joined:
    """The site with a port for each NIC, given with its host's name; first come, first served.

    `reserved`: addresses and MAC addresses that are kept for borrowed machines, and for whom, by
    (tenant, network).
    """
    ports: dict[tuple[str, str], list[Port]] = {}
    refused = []
    taken = _Taken(site, reserved or {})
    for host, nic in nics:
        tenant, _, name = nic.network.partition("/")
        why = _impossible(site, host, tenant, name) or taken.conflict(host, nic, tenant, name)
        if why:
            refused.append(Refused(host, nic.interface, nic.machine, why))
            continue
        taken.take(host, nic, tenant, name)
        port = Port(
            interface=nic.interface, mac=nic.mac, address=nic.address, host=host, dynamic=True
        )
        ports.setdefault((tenant, name), []).append(port)
    return Joined(site.with_ports(ports) if ports else site, tuple(refused))


def _impossible(site: Site, host: str, tenant: str, name: str) -> str:
    known = site.hosts.get(host)
    if known is None:
        return f"{host} is no host of this site"
    # A host is not told of tenants that are not for it: to it they do not exist.
    declared = site.tenants.get(tenant)
    if declared is None:
        return f"there is no tenant {tenant} here; {nearest(tenant, site.tenants)}"
    if not may_run(known, tenant):
        return f"machines of tenant {tenant} may not run on {host} (`hosts.{host}.tenants`)"
    if name not in declared.networks:
        return f"tenant {tenant} has no network {name}; {nearest(name, declared.networks)}"
    return ""


class _Taken:
    """What is somebody's already: in each network that is asked for, looked at once."""

    def __init__(
        self, site: Site, reserved: Mapping[tuple[str, str], Mapping[object, str]]
    ) -> None:
        self._site = site
        self._reserved = reserved
        self._interfaces = {
            (port.host, port.interface): f"{tenant}/{name}"
            for tenant, name, network in site.networks()
            for port in network.ports
            if not port.dynamic
        }
        self._owners: dict[tuple[str, str], dict[object, str]] = {}

    def conflict(self, host: str, nic: Nic, tenant: str, name: str) -> str:
        owner = self._interfaces.get((host, nic.interface))
        if owner is not None:
            return f"{nic.interface} is a port of {owner} already"
        network = self._site.network(tenant, name)
        owners = self._of(tenant, name, network)
        if not nic.lease:
            owners = {**self._reserved.get((tenant, name), {}), **owners}
        if nic.mac in owners:
            return f"MAC address {nic.mac} is {owners[nic.mac]}'s already"
        for address in nic.address:
            prefix = next((p for p in network.prefix if address in p), None)
            if prefix is None:
                return f"{address} is outside {listed(network.prefix)}"
            if is_reserved(address, prefix):
                return f"{address} is the network or broadcast address of {prefix}"
            if address in owners:
                return f"{address} is {owners[address]}'s already"
        return ""

    def take(self, host: str, nic: Nic, tenant: str, name: str) -> None:
        self._interfaces[host, nic.interface] = nic.network
        owners = self._owners[tenant, name]
        for value in (nic.mac, *nic.address):
            owners[value] = f"{nic.machine or nic.interface} on {host}"

    def _of(self, tenant: str, name: str, network: Network) -> dict[object, str]:
        owners = self._owners.get((tenant, name))
        if owners is None:
            owners = self._owners[tenant, name] = dict(_owners(self._site, tenant, name, network))
        return owners


def _owners(site: Site, tenant: str, name: str, network: Network) -> Iterator[tuple[object, str]]:
    for gateway in network.gateways():
        yield gateway.ip, "the gateway"
    for port in network.ports:
        if not port.dynamic or port.host != site.here:
            for value in (port.mac, *port.address):
                yield value, f"port {port.interface} on {port.host or 'the gateway host'}"
    for tunnel in site.tunnels():
        if not tunnel.beyond and (tunnel.tenant, tunnel.network) == (tenant, name):
            for owned in (*tunnel.macs, *tunnel.addresses):
                yield owned, f"tunnel {tunnel.full_name}"
