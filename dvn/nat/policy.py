"""What a tenant lets pass between its networks: routes both ways, connections as declared.

A pair of networks that a policy joins knows the other's prefix in its own table, and what they talk
of is in one zone of the two, the one with the lower number, so that an answer finds its connection.
What may start is a matter of sets (zones.py, chain `crossing`); without a policy a network's table
does not even know the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dvn import addresses
from dvn.allocate import mark_of, table_of
from dvn.kernel.state import Element, KernelState, NftSet, NftTable, table_name
from dvn.nat.things import Route
from dvn.passes import EMPTY, Context, NetworkOf, Pass

# name, types of the key, type of the value, whether part of the key is a prefix, nft's own words
_SETS: tuple[tuple[str, tuple[str, ...], str, bool, str], ...] = (
    ("joined", ("ifname", "ifname"), "", False, ""),
    ("may_start", ("ifname", "ifname"), "", False, ""),
    ("may_use", ("ifname", "ifname", "inet_proto", "inet_service"), "", False, ""),
    ("peers4", ("ifname", "ipv4_addr"), "integer", True, "iifname . ip daddr : ct zone"),
    ("peers6", ("ifname", "ipv6_addr"), "integer", True, "iifname . ip6 daddr : ct zone"),
)


def _frame(context: Context) -> KernelState:
    return _state(context, {})


def _network(context: Context, owned: NetworkOf) -> KernelState:
    """What the network knows of its peers; they know as much of it by their own parts."""
    if not owned.peers:
        return EMPTY
    number = context.numbers[owned.tenant, owned.name]
    elements: dict[str, set[Element]] = {}
    for name, element in _elements(context, owned, number):
        elements.setdefault(name, set()).add(element)
    routes = {
        Route(table_of(number), str(prefix), addresses.bridge_name(owned.tenant, peer.name)): None
        for peer in owned.peers
        for prefix in peer.prefix
    }
    state = _state(context, elements)
    return KernelState(tables=state.tables, things=tuple(routes))


def _elements(context: Context, owned: NetworkOf, number: int) -> Iterator[tuple[str, Element]]:
    for peer in owned.peers:
        bridge = addresses.bridge_name(owned.tenant, peer.name)
        both = min(number, context.numbers[owned.tenant, peer.name])
        yield "joined", (owned.router, bridge)
        # The mark of what passes between them is neither's own (zones.py, `owns`).
        yield "owns", (owned.router, str(mark_of(both)))
        for prefix in peer.prefix:
            yield f"peers{prefix.version}", (owned.bridge, str(prefix), str(both))
        if peer.starts == "we" and not peer.services:
            yield "may_start", (owned.router, bridge)
        elif peer.starts == "we":
            for service in peer.services:
                yield "may_use", (owned.router, bridge, *service.split("/"))


def _state(context: Context, elements: Mapping[str, set[Element]]) -> KernelState:
    sets = [
        NftSet(name, key, frozenset(elements.get(name, ())), data, interval=interval, typeof=words)
        for name, key, data, interval, words in _SETS
    ]
    if "owns" in elements:
        sets.append(NftSet("owns", ("ifname", "mark"), frozenset(elements["owns"])))
    return KernelState(tables=(NftTable("inet", table_name(context.site.site), tuple(sets)),))


POLICY = Pass("policy", frame=_frame, network=_network, routed=True)
