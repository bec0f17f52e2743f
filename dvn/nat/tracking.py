"""Conntrack zones and marks: whose connection a packet belongs to. Constant rules; maps do it.

Networks may have the same addresses, so each has a conntrack zone. Both directions of a connection
are in it, where both can be told by what they carry: what comes from or goes to the gateway itself,
what an open network talks of with the site, one-to-one addresses. Two cases share an outside
address with others:

- Out through a shared address: only the *original* direction is in the zone. The answer comes to
  the shared address, in nobody's zone, and is told from others by the port that NAT chose.
- In by a forwarded port: only the *reply* direction is in the zone.

Which of these a packet starts is seen by its first packet alone (TCP), or by its ports (a UDP port
that is forwarded is reserved: it is nobody's source port outside). Every other packet looks for a
connection in its zone, both directions, and so finds what is there and never another network's:
the kernel looks into nobody's zone only for packets whose original direction alone is zoned
(nf_conntrack_core.c, resolve_normal_ct), and zones.py drops what was found there by accident.

A connection has its network's mark; answers that must be routed by it get it as the packet's own.
"""

from __future__ import annotations

from collections.abc import Iterable

from dvn.allocate import mark_of
from dvn.kernel.state import (
    Element,
    KernelState,
    NftChain,
    NftRule,
    NftSet,
    NftTable,
    grown,
    merge,
    table_name,
)
from dvn.nat.debts import DEBTS
from dvn.nat.routers import by_mark
from dvn.passes import Context, NetworkOf, Pass

_SYN = "tcp flags & (fin | syn | rst | ack) == syn"

# Between raw (-300) and conntrack (-200), so that a zone can be set. At this hook packets of a
# network come in by its bridge; when the kernel shows them once more, as the router's, they have
# their connection already.
_INNER = (
    NftRule.of("ct zone set iifname . ip daddr map @peers4", "to a network that a policy joins"),
    NftRule.of("ct zone set iifname . ip6 daddr map @peers6", "to a network that a policy joins"),
    NftRule.of(
        "iifname @shared4 ip daddr != @site4 ip daddr != 224.0.0.0/3 "
        "iifname . ip saddr != @single4 jump shared",
        "out through a shared address",
    ),
    NftRule.of(
        "iifname @shared6 ip6 daddr != @site6 ip6 daddr != ff00::/8 "
        "iifname . ip6 saddr != @single6 jump shared",
        "out through a shared address",
    ),
    NftRule.of("ct zone set iifname map @zones", "in the network's zone, both directions"),
)
_SHARED = (
    NftRule.of(f"{_SYN} jump started", "the first packet of a connection"),
    NftRule.of("meta l4proto tcp return", "goes on, or answers what came in"),
    NftRule.of("iifname . ip saddr . udp sport @reserved_inner4 return", "a forwarded port"),
    NftRule.of("iifname . ip6 saddr . udp sport @reserved_inner6 return", "a forwarded port"),
    NftRule.of("icmp type != echo-request return", "an answer, or an error"),
    NftRule.of("icmpv6 type != echo-request return", "an answer, or an error"),
    NftRule.of("jump started", "may be the first packet"),
)
_STARTED = (
    NftRule.of("fib daddr type local return", "to the gateway host itself"),
    NftRule.of("ct original zone set iifname map @zones", "the answer comes to a shared address"),
)
_OUTER = (
    NftRule.of("ct zone set ip daddr map @single_zones4", "to a machine's own address outside"),
    NftRule.of("ct zone set ip6 daddr map @single_zones6", "to a machine's own address outside"),
    NftRule.of("ct zone set ip daddr map @open_zones4", "to an open network"),
    NftRule.of("ct zone set ip6 daddr map @open_zones6", "to an open network"),
    *(
        NftRule.of(
            f"{first}ct reply zone set {family} daddr . meta l4proto . {protocol} dport "
            f"map @forward_zones{version}",
            "to a forwarded port",
        )
        for protocol, first in (("tcp", f"{_SYN} "), ("udp", ""))
        for version, family in ((4, "ip"), (6, "ip6"))
    ),
)
_ZONING = (
    NftRule.of("iifname @networks jump from_network", "from a network"),
    NftRule.of("iifname != @networks jump from_outside", "from anywhere else"),
)
_MARK = NftRule.of("ct mark set ct zone map @marks", "each has its network's mark")
_MARKING = (
    _MARK,
    *(
        NftRule.of(
            f"iifname != @networks meta nfproto ipv{version} ct mark @routed{version} "
            "meta mark set ct mark",
            "routed by the mark",
        )
        for version in (4, 6)
    ),
)
_OUTPUT = (NftRule.of("ct zone set oifname map @zones", "from the gateway itself to a network"),)
_CHAINS = (
    NftChain("zoning", _ZONING, "filter", "prerouting", -290, "accept"),
    NftChain("from_network", _INNER),
    NftChain("shared", _SHARED),
    NftChain("started", _STARTED),
    NftChain("from_outside", _OUTER),
    NftChain("marking", _MARKING, "filter", "prerouting", -150, "accept"),
    NftChain("zoning_out", _OUTPUT, "filter", "output", -290, "accept"),
    NftChain("marking_out", (_MARK,), "filter", "output", -150, "accept"),
)

# name, types of the key, type of the value, whether part of the key is a prefix, nft's own words
_GROWN: tuple[tuple[str, tuple[str, ...], str, bool, str], ...] = (
    ("zones", ("ifname",), "integer", False, "iifname : ct zone"),
    ("marks", ("integer",), "mark", False, "ct zone : ct mark"),
    ("routed4", ("mark",), "", False, ""),
    ("routed6", ("mark",), "", False, ""),
    ("shared4", ("ifname",), "", False, ""),
    ("shared6", ("ifname",), "", False, ""),
    ("open_zones4", ("ipv4_addr",), "integer", True, "ip daddr : ct zone"),
    ("open_zones6", ("ipv6_addr",), "integer", True, "ip6 daddr : ct zone"),
)
_SETS = {
    name: NftSet(name, key, data=data, interval=interval, typeof=words)
    for name, key, data, interval, words in _GROWN
}


def _frame(context: Context) -> KernelState:
    debts = NftTable("inet", table_name(context.site.site), (DEBTS,))
    return merge([_state(context, _SETS.values(), _CHAINS), KernelState(tables=(debts,))])


def _network(context: Context, owned: NetworkOf) -> KernelState:
    number = context.numbers[owned.tenant, owned.name]
    network, zone, mark = owned.network, str(number), str(mark_of(number))
    elements: dict[str, set[Element]] = {
        "zones": {(owned.bridge, zone)},
        "marks": {(zone, mark)},
    }
    for version in by_mark(owned):
        elements[f"routed{version}"] = {(mark,)}
    for prefix in network.prefix:
        if network.nat and network.nat.translates(prefix.version):
            elements[f"shared{prefix.version}"] = {(owned.bridge,)}
        if network.access == "open":
            elements.setdefault(f"open_zones{prefix.version}", set()).add((str(prefix), zone))
    return _state(context, grown(_SETS, elements))


def _state(
    context: Context, sets: Iterable[NftSet], chains: tuple[NftChain, ...] = ()
) -> KernelState:
    name = table_name(context.site.site)
    return KernelState(tables=(NftTable("inet", name, tuple(sets), chains),))


TRACKING = Pass("tracking", frame=_frame, network=_network, routed=True)
