"""What a user declares: tenants, their networks, and the tunnels that extend them.

Frozen values; an error names file, line and the fix. `check_site` has the rules that need more than
one value at a time (checks.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from dvn import checks
from dvn.forms import Model, fault, problems_of, unplaced, validate
from dvn.problems import Path_, Problem, SpecError
from dvn.values import (
    Address,
    AddressField,
    Interface,
    Ipv4Field,
    Mac,
    Name,
    Prefix,
    PrefixField,
    Service,
    in_range,
    not_yet,
    one_or_more,
)

if TYPE_CHECKING:
    from dvn.located import Located

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


class Vlan(Model):
    """802.1Q toward the site's switches."""

    id: Annotated[int, AfterValidator(in_range("VLAN id", 1, 4094))]
    """The tag of this network's frames on the uplink."""
    uplink: Interface = Field(examples=["eth1"])
    """The interface toward the switches (the trunk)."""


class Nat(Model):
    """Addresses the network's machines have outside; one for each family at most."""

    snat: Annotated[tuple[AddressField, ...], BeforeValidator(one_or_more)]
    """The outer source address of the network's packets to the internet."""


class Port(Model):
    """An interface of this host that belongs to the network, such as a VM's tap."""

    interface: Interface
    """Its name, as `ip link` shows it."""
    mac: Mac | None = None
    """The only source MAC address let through here; any unless given."""
    address: AddressField | None = None
    """The only source address of its family let through here; any of the prefix unless given."""


class Network(Model):
    """One layer-2 segment of one tenant, with the gateway's address in it."""

    prefix: Annotated[
        tuple[PrefixField, ...],
        BeforeValidator(one_or_more),
        Field(min_length=1, examples=["10.9.0.0/24"]),
    ]
    """The network's addresses, IPv4 or IPv6 or both. No two networks may overlap."""
    gateway: Annotated[tuple[AddressField, ...], BeforeValidator(one_or_more)] = ()
    """This host's address in each prefix; its first address unless given."""
    vlan: Vlan | None = None
    """How the network is reached through the site's switches; leave out if it is not."""
    access: Literal["open", "closed"] = "closed"
    """`open`: the network may reach the site and the internet, and the site may reach it; `closed`:
    the internet only, and only with `nat`."""
    nat: Nat | None = None
    """The address its machines have outside; without it packets leave untranslated."""
    ports: tuple[Port, ...] = ()
    """Interfaces of this host that belong to the network."""
    services: tuple[Service, ...] = ()
    """Services of this host that the network may use, such as `udp/53`; none unless given."""
    rate: Annotated[NotYet, not_yet("a rate limit")] = None
    dhcp: Annotated[NotYet, not_yet("DHCP")] = None

    def gateways(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """The gateway's address in each prefix: the declared one, else the first of the prefix."""
        return tuple(_interface_of(prefix, self.gateway) for prefix in self.prefix)


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
    dynamic: bool = False

    def spec(self) -> TunnelSpec:
        return TunnelSpec(
            network=self.network,
            remote=self.remote,
            key=self.key,
            local=self.local,
            transport=self.transport,
            dynamic=self.dynamic,
        )


class Tenant(Model):
    """An owner of networks, and of the jobs whose machines join them."""

    networks: dict[Name, Network] = Field(default_factory=dict)
    """Its networks, by name."""
    tunnels: dict[Name, TunnelSpec] = Field(default_factory=dict)
    """Its fixed tunnels, by name. Those of borrowed machines come and go by themselves."""


class Site(Model):
    """The whole file of one site, for one host."""

    site: Name = Field(examples=["mysite"])
    """The site's name: it marks everything that is ours in the kernel and in the cloud."""
    host: Name | None = None
    """The name of this host; only for people."""
    underlay: Underlay | None = None
    """Where tunnels leave this host. Needed as soon as there are tunnels or pools."""
    site_prefixes: Annotated[tuple[PrefixField, ...], BeforeValidator(one_or_more)] = ()
    """The site's public prefixes: closed networks do not reach them. Private ones always count."""
    tenants: dict[Name, Tenant] = Field(default_factory=dict)
    """Who owns networks, by name."""

    def tunnels(self) -> tuple[Tunnel, ...]:
        return tuple(
            Tunnel(
                tenant=tenant_name,
                name=name,
                network=tunnel.network,
                remote=tunnel.remote,
                key=tunnel.key,
                local=tunnel.local,
                transport=tunnel.transport,
                dynamic=tunnel.dynamic,
            )
            for tenant_name, tenant in sorted(self.tenants.items())
            for name, tunnel in sorted(tenant.tunnels.items())
        )

    def networks(self) -> Iterator[tuple[str, str, Network]]:
        """(tenant, name, network) in the order of their names."""
        for tenant_name, tenant in sorted(self.tenants.items()):
            for name, network in sorted(tenant.networks.items()):
                yield tenant_name, name, network

    def network(self, tenant: str, name: str) -> Network:
        """KeyError if there is none."""
        return self.tenants[tenant].networks[name]

    def local_of(self, tunnel: Tunnel) -> IPv4Address | None:
        """The outer source of a tunnel: its own, else the underlay's address on this host."""
        return tunnel.local or (self.underlay.address if self.underlay else None)

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


def _interface_of(prefix: Prefix, chosen: tuple[Address, ...]) -> IPv4Interface | IPv6Interface:
    address = next((a for a in chosen if a in prefix), prefix[1])
    text = f"{address}/{prefix.prefixlen}"
    return IPv4Interface(text) if prefix.version == 4 else IPv6Interface(text)


def parse_site(doc: Located, *, also: Iterable[str] = ()) -> Site:
    """The site a file declares; `also` names top-level keys that are somebody else's.

    Raises SpecError with every problem in the file, those between values too.
    """
    doc = doc.without_keys(also)
    problems: list[Problem] = []
    try:
        site = Site.model_validate(doc.plain())
    except ValidationError as error:
        problems += problems_of(error, Site, doc)
        partial = _valid_part(doc, problems)
        if partial is None:
            raise SpecError(problems) from None
        site = partial
    problems += [problem.placed(doc) for problem in checks.conflicts(site, _declared(doc))]
    problems += [problem.placed(doc) for problem in _not_in_files(site)]
    if problems:
        raise SpecError(problems)
    return site


def _not_in_files(site: Site) -> Iterator[Problem]:
    for tunnel in site.tunnels():
        if tunnel.dynamic:
            path: Path_ = ("tenants", tunnel.tenant, "tunnels", tunnel.name, "dynamic")
            yield Problem("", 0, "a tunnel in a file is not dynamic", "remove the key", path)


def _valid_part(doc: Located, problems: list[Problem]) -> Site | None:
    """The site without the entries that have problems, so that the rest is checked as well."""
    for path in {_entry(problem.path) for problem in problems}:
        doc = doc.without(*path)
    if "site" not in doc:
        return None
    try:
        return validate(Site, doc)
    except SpecError:
        return None


def _entry(path: Path_) -> Path_:
    """The network, tunnel or top-level key that a path lies in."""
    return path[:4] if path[:1] == ("tenants",) and len(path) >= 4 else path[:1]


def _declared(doc: Located) -> checks.Declared:
    """What the file names, also where that has problems of its own."""
    names = set()
    tenants = doc.get("tenants")
    for tenant in tenants.keys() if tenants else ():
        networks = tenants.child(tenant).get("networks") if tenants else None
        names |= {(tenant, network) for network in (networks.keys() if networks else ())}
    return checks.Declared(frozenset(names), "underlay" in doc)


def check_site(site: Site) -> None:
    """The rules between values once more, for a site that came from no file. Raises SpecError."""
    networks = frozenset((tenant, network) for tenant, network, _ in site.networks())
    found = checks.conflicts(site, checks.Declared(networks, site.underlay is not None))
    if found:
        raise SpecError(found)


def site_from_json(data: object) -> Site:
    """A site that `Site.model_dump(mode="json")` made; trusts nothing. Raises SpecError."""
    try:
        site = Site.model_validate(data)
    except ValidationError as error:
        raise SpecError(unplaced(error, Site)) from None
    check_site(site)
    return site
