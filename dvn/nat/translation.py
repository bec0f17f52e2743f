"""Network address translation: shared and own outside addresses, and forwarded ports, by maps.

Toward the site (see zones.py) a network keeps its own addresses; toward the internet it has the
declared ones. An outside address must be on the host for answers to come back: where it is not, it
is added to the underlay's interface, marked by its address protocol as ours.

The maps go by the connection's mark (tracking.py), since two networks may have the same addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dvn.allocate import mark_of
from dvn.kernel.state import (
    Address,
    Element,
    KernelState,
    NftChain,
    NftRule,
    NftSet,
    NftTable,
    grown,
    table_name,
)
from dvn.passes import EMPTY, Context, NetworkOf, Pass
from dvn.spec import Nat
from dvn.values import Address as AnyAddress

# A UDP port that is forwarded belongs to its machine, also as a source port (tracking.py): others
# that happen to have it get one of these instead.
SPARE_PORTS = (61000, 65535)
_SPARE = f"{SPARE_PORTS[0]}-{SPARE_PORTS[1]}"
_FAMILIES = ((4, "ip"), (6, "ip6"))

_OUT = (
    NftRule.of("oifname @networks return", "between networks nothing is translated"),
    NftRule.of("ip daddr @site4 return", "the site sees the real address"),
    NftRule.of("ip6 daddr @site6 return", "the site sees the real address"),
    *(
        NftRule.of(text, why)
        for version, ip in _FAMILIES
        for text, why in (
            (
                f"snat {ip} to ct mark . {ip} saddr map @single_out{version}",
                "a machine's own address outside",
            ),
            (
                (f"snat {ip} to ct mark . {ip} saddr . udp sport map @reserved_out{version}"),
                "a forwarded port is the same both ways",
            ),
            (
                (f"udp sport @reserved snat {ip} to ct mark map @snat{version}:{_SPARE}"),
                "another's forwarded port is not taken",
            ),
            (
                (f"udp sport @reserved ct mark @masquerade{version} masquerade to :{_SPARE}"),
                "another's forwarded port is not taken",
            ),
            (f"snat {ip} to ct mark map @snat{version}", "the address a network has outside"),
            (
                f"ct mark @masquerade{version} meta nfproto ipv{version} masquerade",
                "the address of the way out",
            ),
        )
    ),
)
_IN = (
    NftRule.of("iifname @networks return", "from a network nothing comes in"),
    *(
        NftRule.of(text, why)
        for version, ip in _FAMILIES
        for text, why in (
            (f"dnat {ip} to {ip} daddr map @single_in{version}", "a machine's own address outside"),
            (
                f"dnat {ip} to {ip} daddr . meta l4proto . th dport map @forward_in{version}",
                "a forwarded port",
            ),
        )
    ),
)
_CHAINS = (
    NftChain("translate_in", _IN, "nat", "prerouting", -100, "accept"),
    NftChain("translate_out", _OUT, "nat", "postrouting", 100, "accept"),
)


def _sets() -> Iterator[NftSet]:
    yield NftSet("reserved", ("inet_service",))
    for version, ip in _FAMILIES:
        address = f"ipv{version}_addr"
        for name, key, data, words in (
            ("snat", ("mark",), address, ""),
            ("masquerade", ("mark",), "", ""),
            ("single", ("ifname", address), "", ""),
            ("single_zones", (address,), "integer", f"{ip} daddr : ct zone"),
            ("single_out", ("mark", address), address, ""),
            ("single_in", (address,), address, ""),
            (
                "forward_zones",
                (address, "inet_proto", "inet_service"),
                "integer",
                f"{ip} daddr . meta l4proto . th dport : ct zone",
            ),
            (
                "forward_in",
                (address, "inet_proto", "inet_service"),
                f"{address} . inet_service",
                "",
            ),
            ("reserved_inner", ("ifname", address, "inet_service"), "", ""),
            (
                "reserved_out",
                ("mark", address, "inet_service"),
                f"{address} . inet_service",
                "",
            ),
        ):
            yield NftSet(f"{name}{version}", key, data=data, typeof=words)


_SETS = {each.name: each for each in _sets()}


def _frame(context: Context) -> KernelState:
    return _state(context, _SETS.values(), _CHAINS)


def _network(context: Context, owned: NetworkOf) -> KernelState:
    """Elements of the maps, and the addresses they translate to."""
    nat = owned.network.nat
    if nat is None:
        return EMPTY
    number = context.numbers[owned.tenant, owned.name]
    elements: dict[str, set[Element]] = {}
    for name, element in _elements(owned, nat, str(number), str(mark_of(number))):
        elements.setdefault(name, set()).add(element)
    state = _state(context, grown(_SETS, elements))
    return KernelState(addresses=tuple(_addresses(context, nat)), tables=state.tables)


def _elements(owned: NetworkOf, nat: Nat, zone: str, mark: str) -> Iterator[tuple[str, Element]]:
    families = {prefix.version for prefix in owned.network.prefix}
    for address in nat.snat:
        yield f"snat{address.version}", (mark, str(address))
    if nat.masquerade:
        for version in families:
            yield f"masquerade{version}", (mark,)
    for inside, outside in nat.one_to_one.items():
        version = inside.version
        yield f"single{version}", (owned.bridge, str(inside))
        yield f"single_zones{version}", (str(outside), zone)
        yield f"single_out{version}", (mark, str(inside), str(outside))
        yield f"single_in{version}", (str(outside), str(inside))
    # Several ways to one machine's port: what it starts by itself leaves by the lowest.
    reserved: dict[tuple[AnyAddress, int], Element] = {}
    for forward in sorted(nat.forward, key=lambda f: (str(f.outside), f.port)):
        version, inner = forward.to.version, str(forward.inner_port)
        way = (str(forward.outside), forward.protocol, str(forward.port))
        yield f"forward_zones{version}", (*way, zone)
        yield f"forward_in{version}", (*way, str(forward.to), inner)
        if forward.protocol == "udp":
            yield "reserved", (str(forward.port),)
            yield f"reserved_inner{version}", (owned.bridge, str(forward.to), inner)
            out: Element = (mark, str(forward.to), inner, str(forward.outside), str(forward.port))
            reserved.setdefault((forward.to, forward.inner_port), out)
    for (address, _port), out in reserved.items():
        yield f"reserved_out{address.version}", out


def _addresses(context: Context, nat: Nat) -> Iterator[Address]:
    if context.site.underlay is None:
        return
    outside = (*nat.snat, *nat.one_to_one.values(), *(f.outside for f in nat.forward))
    for address in dict.fromkeys(outside):
        if str(address) not in context.host.addresses:
            length = 32 if address.version == 4 else 128
            yield Address(context.site.underlay.interface, f"{address}/{length}")


def _state(
    context: Context, sets: Iterable[NftSet], chains: tuple[NftChain, ...] = ()
) -> KernelState:
    name = table_name(context.site.site)
    return KernelState(tables=(NftTable("inet", name, tuple(sets), chains),))


TRANSLATION = Pass("translation", frame=_frame, network=_network, routed=True)
