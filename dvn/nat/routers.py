"""Each network has a router of its own: a VRF device, whose table its bridge is routed by.

So the addresses of networks may overlap. What the table does not know, the host's own tables do:
the kernel goes on to them, and so finds the way to the internet and to the site. The other way,
an `open` network stands in the main table, where the host and the site find it; a `closed` one does
not, and what comes back to it through NAT is led by its mark (things.py, tracking.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dvn.allocate import table_of
from dvn.kernel.state import KernelState, Link, Sysctl, Vrf, alias
from dvn.kernel.things import Thing
from dvn.nat.things import MAIN_TABLE, Route, rules
from dvn.passes import Context, NetworkOf, Pass

_MTU = 65535  # it only passes on; the bridge has the network's


def _router(context: Context, owned: NetworkOf) -> KernelState:
    number = context.numbers[owned.tenant, owned.name]
    link = Link(
        name=owned.router,
        alias=alias(context.site.site, "router", owned.tenant, owned.name),
        params=Vrf(table_of(number)),
        mtu=_MTU,
    )
    return KernelState(
        links=(link,),
        sysctls=tuple(_sysctls(owned.router)),
        things=tuple(_things(context, owned, number)),
    )


def _things(context: Context, owned: NetworkOf, number: int) -> Iterator[Thing]:
    network = owned.network
    if network.access == "open":
        for prefix in network.prefix:
            yield Route(MAIN_TABLE, str(prefix), owned.bridge)
    else:
        for version in by_mark(owned):
            for rule in rules(version, number):
                yield replace(rule, shared=True) if rule.leads_to(context.others_numbers) else rule


def by_mark(owned: NetworkOf) -> Iterator[int]:
    """The families in which packets to the network are routed by its mark: those where it is not
    in the main table, and something may come from outside, be it answers only."""
    network = owned.network
    if network.access == "open" or network.nat is None:
        return
    for version in (4, 6):
        if any(prefix.version == version for prefix in network.prefix) and (
            network.nat.leaves(version) or network.nat.enters(version)
        ):
            yield version


def _sysctls(router: str) -> Iterator[Sysctl]:
    # Of the bridge is what route lookups ask (vlans/bridges.py): the kernel makes them for the
    # link a packet came by (ip_rcv_finish). An ICMP redirect to this host is the router's.
    yield Sysctl(f"net/ipv4/conf/{router}/accept_redirects", "0")


ROUTERS = Pass("routers", network=_router, routed=True)
