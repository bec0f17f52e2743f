"""What a compiler pass is: what a site has once, what each network adds, what each tunnel adds.

A pass looks at one network (or one tunnel) at a time and never at the others, so that a change to
one of 4,000 is compiled by itself, and what it adds is found again by comparing what it added
before. `frame` has what does not depend on how many there are: tables, chains, rules, empty sets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dvn import addresses
from dvn.kernel.state import Host, KernelState
from dvn.spec import Network, Site, Tunnel

EMPTY = KernelState()


@dataclass(frozen=True)
class Context:
    """What every part of a compile may look at. Of `site` a network's part reads only what belongs
    to no network: its name, host, underlay, prefixes."""

    site: Site
    host: Host

    @property
    def own_key(self) -> str:
        """This host's WireGuard public key; "" without one."""
        own = self.site.underlay.wireguard if self.site.underlay else None
        secret = self.host.secrets.get(own.private_key_file) if own else None
        return secret.public if secret else ""


@dataclass(frozen=True)
class NetworkOf:
    """One network with its names, and with those of its tunnels that the file declares."""

    tenant: str
    name: str
    network: Network
    tunnels: tuple[Tunnel, ...] = ()

    @property
    def bridge(self) -> str:
        return addresses.bridge_name(self.tenant, self.name)


def networks_of(site: Site) -> tuple[NetworkOf, ...]:
    """All networks of a site."""
    tunnels: dict[tuple[str, str], list[Tunnel]] = {}
    for tunnel in site.tunnels():
        if not tunnel.dynamic:
            tunnels.setdefault((tunnel.tenant, tunnel.network), []).append(tunnel)
    return tuple(
        NetworkOf(tenant, name, network, tuple(tunnels.get((tenant, name), ())))
        for tenant, name, network in site.networks()
    )


@dataclass(frozen=True)
class Pass:
    """A feature. Each function is pure, and returns only what its own argument adds; a set of the
    frame is grown by a set of the same name with nothing but elements."""

    name: str
    frame: Callable[[Context], KernelState] | None = None
    network: Callable[[Context, NetworkOf], KernelState] | None = None
    tunnel: Callable[[Context, Tunnel], KernelState] | None = None
