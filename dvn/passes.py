"""What a compiler pass is: what a site has once, what each network adds, what each tunnel adds.

A pass looks at one network (or one tunnel) at a time and never at the others, so that a change to
one of 4,000 is compiled by itself, and what it adds is found again by comparing what it added
before. `frame` has what does not depend on how many there are: tables, chains, rules, empty sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from dvn import addresses
from dvn.kernel.state import Host, KernelState
from dvn.spec import Network, Site, Tenant, Tunnel
from dvn.values import Prefix

EMPTY = KernelState()


@dataclass(frozen=True)
class Context:
    """What every part of a compile may look at. Of `site` a network's part reads only what belongs
    to no network: its name, host, underlay, prefixes; of `numbers` its own and its peers'."""

    site: Site
    host: Host
    numbers: Mapping[tuple[str, str], int] = field(default_factory=dict)  # (tenant, network)

    @cached_property
    def others_numbers(self) -> frozenset[int]:
        return self.host.others_numbers(self.site.site)

    @property
    def own_key(self) -> str:
        """This host's WireGuard public key; "" without one."""
        own = self.site.underlay.wireguard if self.site.underlay else None
        secret = self.host.secrets.get(own.private_key_file) if own else None
        return secret.public if secret else ""


@dataclass(frozen=True)
class Peer:
    """Another network of the tenant that a policy joins with one. `starts`: who may start
    connections, `services` to which services; () stands for all."""

    name: str
    prefix: tuple[Prefix, ...]
    starts: Literal["we", "they"]
    services: tuple[str, ...] = ()


@dataclass(frozen=True)
class NetworkOf:
    """One network with its names, those of its tunnels that the file declares, and what a policy
    lets it see of others."""

    tenant: str
    name: str
    network: Network
    tunnels: tuple[Tunnel, ...] = ()
    peers: tuple[Peer, ...] = ()

    @property
    def bridge(self) -> str:
        return addresses.bridge_name(self.tenant, self.name)

    @property
    def router(self) -> str:
        """The VRF device. Packets that the network sends have come in by the *bridge* while they
        are at prerouting, and by the *router* from then on: at forward and input."""
        return addresses.router_name(self.tenant, self.name)


def _peers(tenant: Tenant, name: str) -> Iterator[Peer]:
    for policy in tenant.policy:
        for own, other, starts in (
            (policy.from_, policy.to, "we"),
            (policy.to, policy.from_, "they"),
        ):
            if own == name and other in tenant.networks:
                prefix = tenant.networks[other].prefix
                yield Peer(other, prefix, starts, policy.services)  # type: ignore[arg-type]


def networks_of(site: Site) -> tuple[NetworkOf, ...]:
    """All networks of a site, each with its tunnels and peers."""
    tunnels: dict[tuple[str, str], list[Tunnel]] = {}
    for tunnel in site.tunnels():
        if not tunnel.dynamic:
            tunnels.setdefault((tunnel.tenant, tunnel.network), []).append(tunnel)
    return tuple(
        NetworkOf(
            tenant,
            name,
            network,
            tuple(tunnels.get((tenant, name), ())),
            tuple(_peers(site.tenants[tenant], name)),
        )
        for tenant, name, network in site.networks()
    )


@dataclass(frozen=True)
class Pass:
    """A feature. Each function is pure, and returns only what its own argument adds; a set of the
    frame is grown by a set of the same name with nothing but elements. `routed`: what a network
    adds is for its gateway host; hosts that have bridges of it only (spec/fabric.py) do without."""

    name: str
    frame: Callable[[Context], KernelState] | None = None
    network: Callable[[Context, NetworkOf], KernelState] | None = None
    tunnel: Callable[[Context, Tunnel], KernelState] | None = None
    routed: bool = False
