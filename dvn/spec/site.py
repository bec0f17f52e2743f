"""A site: its tenants, their networks and tunnels, and where tunnels leave this host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field

from dvn import checks
from dvn.forms import Model
from dvn.problems import Path_, Problem, SpecError
from dvn.spec.fabric import Fabric, Hypervisor, fabric_tunnels
from dvn.spec.network import Network, Port
from dvn.spec.policy import Policy
from dvn.spec.tunnel import Tunnel, TunnelSpec
from dvn.spec.underlay import Underlay
from dvn.values import Address, Interface, Name, NotInFiles, PrefixField, one_or_more


class Tenant(Model):
    """An owner of networks, and of the jobs whose machines join them."""

    networks: dict[Name, Network] = Field(default_factory=dict)
    """Its networks, by name."""
    tunnels: dict[Name, TunnelSpec] = Field(default_factory=dict)
    """Its fixed tunnels, by name. Those of borrowed machines come and go by themselves."""
    policy: tuple[Policy, ...] = ()
    """What may pass between its networks; nothing unless written here."""


class Site(Model):
    """The whole file of one site: its gateway host, and the hosts that belong to it."""

    site: Name = Field(examples=["mysite"])
    """The site's name: it marks everything that is ours in the kernel and in the cloud."""
    host: Name | None = None
    """The name of this host, the gateway."""
    underlay: Underlay | None = None
    """Where tunnels leave this host. Needed as soon as there are tunnels or pools."""
    hosts: dict[Name, Hypervisor] = Field(default_factory=dict)
    """Hypervisors whose machines are in these networks, by name; each runs `dvn agent`."""
    fabric: Fabric | None = None
    """What joins them to this host. Needed as soon as there are hosts."""
    here: Annotated[Name | None, NotInFiles()] = None
    """Whose part of the site this is: one of `hosts`; None on the gateway host."""
    upstream: Annotated[Underlay | None, NotInFiles()] = None
    """In a host's part: the gateway's end of its tunnels."""
    closed: Annotated[tuple[Interface, ...], NotInFiles()] = ()
    """In a host's part: interfaces of machines that are in no network, and reach nothing."""
    site_prefixes: Annotated[tuple[PrefixField, ...], BeforeValidator(one_or_more)] = ()
    """The site's public prefixes: closed networks do not reach them. Private ones always count."""
    tenants: dict[Name, Tenant] = Field(default_factory=dict)
    """Who owns networks, by name."""

    def tunnels(self) -> tuple[Tunnel, ...]:
        """All of them: those of the file and of leases, in the order of their names, then those
        between hosts."""
        # A copy of a site takes along what was remembered, and has other tenants.
        remembered = self.__dict__.get("_tunnels")
        if remembered is None or remembered[0] is not self.tenants:
            remembered = self.__dict__["_tunnels"] = (self.tenants, self._all_tunnels())
        found: tuple[Tunnel, ...] = remembered[1]
        return found

    def _all_tunnels(self) -> tuple[Tunnel, ...]:
        written = (
            Tunnel.of(tenant_name, name, tunnel)
            for tenant_name, tenant in sorted(self.tenants.items())
            for name, tunnel in sorted(tenant.tunnels.items())
        )
        return (*written, *fabric_tunnels(self))

    def networks(self) -> Iterator[tuple[str, str, Network]]:
        """(tenant, name, network) in the order of their names."""
        for tenant_name, tenant in sorted(self.tenants.items()):
            for name, network in sorted(tenant.networks.items()):
                yield tenant_name, name, network

    def network(self, tenant: str, name: str) -> Network:
        """KeyError if there is none."""
        return self.tenants[tenant].networks[name]

    def local_of(self, tunnel: Tunnel) -> Address | None:
        """The outer source of a tunnel: its own, else the underlay's address of the family."""
        if tunnel.local or not self.underlay or not tunnel.remote:
            return tunnel.local
        return self.underlay.of(tunnel.remote.version)

    def with_reserved(self, taken: Mapping[tuple[str, str], Iterable[Address]]) -> Site:
        """This site, whose DHCP leaves out the addresses that others give, such as to borrowed
        machines; by (tenant, network)."""
        tenants = dict(self.tenants)
        for (tenant_name, name), addresses in taken.items():
            tenant = tenants.get(tenant_name)
            network = tenant.networks.get(name) if tenant else None
            if tenant is None or network is None or network.dhcp is None:
                continue
            reserved = sorted({*network.dhcp.reserved, *addresses}, key=int)
            dhcp = network.dhcp.model_copy(update={"reserved": tuple(reserved)})
            changed = {**tenant.networks, name: network.model_copy(update={"dhcp": dhcp})}
            tenants[tenant_name] = tenant.model_copy(update={"networks": changed})
        return self.model_copy(update={"tenants": tenants})

    def with_ports(self, ports: Mapping[tuple[str, str], Iterable[Port]]) -> Site:
        """This site with more ports, by (tenant, network), in place of those of the same interface
        and host. Nothing is checked (hosts/joining.py does)."""
        tenants = dict(self.tenants)
        for (tenant_name, name), more in ports.items():
            tenant = tenants[tenant_name]
            network = tenant.networks[name]
            come = {(port.host, port.interface): port for port in more}
            stay = (p for p in network.ports if (p.host, p.interface) not in come)
            update = {"ports": (*stay, *come.values())}
            networks = {**tenant.networks, name: network.model_copy(update=update)}
            tenants[tenant_name] = tenant.model_copy(update={"networks": networks})
        return self.model_copy(update={"tenants": tenants})

    def with_tunnels(self, tunnels: Iterable[Tunnel]) -> Site:
        """This site and more tunnels, such as those of leases.

        Raises SpecError if one is not possible: tenant or network unknown, name or key taken.
        """
        tenants = dict(self.tenants)
        problems: list[Problem] = []
        for tunnel in tunnels:
            tenant = tenants.get(tunnel.tenant)
            path: Path_ = ("tenants", tunnel.tenant, "tunnels", tunnel.name)
            if tenant is None:
                problems.append(
                    Problem(
                        "",
                        0,
                        f"there is no tenant {tunnel.tenant!r}",
                        "declare it, or end the lease",
                        path,
                    )
                )
            elif tunnel.name in tenant.tunnels:
                problems.append(
                    Problem(
                        "",
                        0,
                        f"tunnel {tunnel.name!r} is there already",
                        "give each tunnel of a tenant its own name",
                        path,
                    )
                )
            else:
                more = {**tenant.tunnels, tunnel.name: tunnel.spec()}
                tenants[tunnel.tenant] = tenant.model_copy(update={"tunnels": more})
        if problems:
            raise SpecError(problems)
        grown = self.model_copy(update={"tenants": tenants})
        check_site(grown)
        return grown


def check_site(site: Site) -> None:
    """The rules between values once more, for a site that came from no file. Raises SpecError."""
    networks = frozenset((tenant, network) for tenant, network, _ in site.networks())
    found = checks.conflicts(site, checks.Declared(networks, site.underlay is not None))
    if found:
        raise SpecError(found)
