"""What a compiler pass is: what a site has once, what each network adds, what each tunnel adds.

A pass looks at one network (or one tunnel) at a time and never at the others, so that a change to
one of 4,000 is compiled by itself, and what it adds is found again by comparing what it added
before. `frame` has what does not depend on how many there are: tables, chains, rules, empty sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


@dataclass(frozen=True)
class NetworkOf:
    """One network with its names."""

    tenant: str
    name: str
    network: Network

    @property
    def bridge(self) -> str:
        return addresses.bridge_name(self.tenant, self.name)


@dataclass(frozen=True)
class Pass:
    """A feature. Each function is pure, and returns only what its own argument adds; a set of the
    frame is grown by a set of the same name with nothing but elements."""

    name: str
    frame: Callable[[Context], KernelState] | None = None
    network: Callable[[Context, NetworkOf], KernelState] | None = None
    tunnel: Callable[[Context, Tunnel], KernelState] | None = None

    def parts(self, context: Context) -> Iterator[KernelState]:
        """All that the pass makes of a site; nothing of a site without networks."""
        networks = tuple(NetworkOf(*row) for row in context.site.networks())
        if self.frame and networks:
            yield self.frame(context)
        if self.network:
            for network in networks:
                yield self.network(context, network)
        if self.tunnel:
            for tunnel in context.site.tunnels():
                yield self.tunnel(context, tunnel)
