"""Ports: interfaces of this host in a network. What they may claim to be: claims.py."""

from __future__ import annotations

from dvn.kernel.state import KernelState, Port
from dvn.passes import EMPTY, Context, NetworkOf, Pass


def _ports(context: Context, owned: NetworkOf) -> KernelState:
    """Enslave each declared interface that is there."""
    here = owned.network.on(context.site.here)
    there = [port.interface for port in here if port.interface in context.host.links]
    if not there:
        return EMPTY
    return KernelState(
        ports=tuple(Port(interface, owned.bridge) for interface in there),
        raised=frozenset(there),
    )


PORTS = Pass("ports", network=_ports)
