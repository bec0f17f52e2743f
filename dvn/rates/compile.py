"""Rate caps of networks and ports.

A network's cap counts what passes its gateway: between its machines and everything else. A port's
counts all that passes the port. `in` is what the machines receive, `out` what they send.
"""

from __future__ import annotations

from collections.abc import Iterator

from dvn import addresses
from dvn.kernel.state import Ifb, KernelState, Link, alias, merge
from dvn.kernel.things import Thing
from dvn.passes import EMPTY, Context, NetworkOf, Pass
from dvn.rates.things import Detour, Shaper
from dvn.spec.rate import Rate, bits

_MTU = 65535  # it never fragments or refuses: what it gets came in by another device


def _rates(context: Context, owned: NetworkOf) -> KernelState:
    network, site = owned.network, context.site.site
    parts = []
    if network.rate:
        device = addresses.network_rate_name(owned.tenant, owned.name)
        stamp = alias(site, "rate", owned.tenant, owned.name)
        parts.append(_capped(site, owned.bridge, network.rate, device, stamp))
    for port in network.on(context.site.here):
        if port.rate and port.interface in context.host.links:
            device = addresses.port_rate_name(port.interface)
            stamp = alias(site, "port-rate", owned.tenant, owned.name)
            parts.append(_capped(site, port.interface, port.rate, device, stamp))
    return merge(parts) if parts else EMPTY


def _capped(site: str, link: str, rate: Rate, device: str, stamp: str) -> KernelState:
    return KernelState(
        links=(Link(device, stamp, Ifb(), _MTU),) if rate.outward else (),
        things=tuple(_things(site, link, rate, device)),
    )


def _things(site: str, link: str, rate: Rate, device: str) -> Iterator[Thing]:
    if rate.inward:
        yield Shaper(link, bits(rate.inward), site)
    if rate.outward:
        yield Shaper(device, bits(rate.outward), site)
        yield Detour(link, device, site)


RATES = Pass("rates", network=_rates)
