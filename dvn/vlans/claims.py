"""What each port, tunnel and uplink may claim to be: the sets that isolation.py's rules look into.

Each adds elements of its own and looks at no other; a set never has to know how many there are.

- `members`: all interfaces that may be in our bridges; `network_of`: their network's number.
- `port_mac`, `port4`, `port6`: (interface, what it is pinned to); `pinned_*`: interfaces that are.
- `owned_mac`, `owned4`, `owned6`: (network, what one alone may use): the gateway's, and all pins.
- `prefix*`: (network, where unpinned ones take their addresses from), as dvn/prefixsets.py has it.
- `nd_*`: the same as numbers, for fields that nft knows by their place in the packet only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address

from dvn import addresses, prefixsets
from dvn.kernel.state import Element, KernelState, NftSet, NftTable, table_name
from dvn.passes import EMPTY, Context, NetworkOf
from dvn.spec import Tunnel
from dvn.values import Address

_MAC, _TARGET = "@th,208,48", "@th,64,128"  # isolation.py says what is there

SETS: tuple[NftSet, ...] = (
    NftSet("bridges", ("ifname",)),
    NftSet("members", ("ifname",)),
    NftSet("uplinks", ("ifname",)),
    NftSet("network_of", ("ifname",), data="mark"),
    NftSet("port_mac", ("ifname", "ether_addr")),
    NftSet("port4", ("ifname", "ipv4_addr")),
    NftSet("port6", ("ifname", "ipv6_addr")),
    NftSet("pinned_mac", ("ifname",)),
    NftSet("pinned4", ("ifname",)),
    NftSet("pinned6", ("ifname",)),
    NftSet("owned_mac", ("mark", "ether_addr")),
    NftSet("owned4", ("mark", "ipv4_addr")),
    NftSet("owned6", ("mark", "ipv6_addr")),
    NftSet("prefix4", ("mark", "ipv4_addr"), interval=True),
    NftSet("prefix6", ("mark", "ipv6_addr"), interval=True),
    NftSet(prefixsets.exact("prefix", 4), ("mark", "ipv4_addr")),
    NftSet(prefixsets.exact("prefix", 6), ("mark", "ipv6_addr")),
    NftSet("nd_port_mac", ("ifname", "integer"), typeof=f"iifname . {_MAC}"),
    NftSet("nd_owned_mac", ("mark", "integer"), typeof=f"meta mark . {_MAC}"),
    NftSet("nd_port6", ("ifname", "integer"), typeof=f"iifname . {_TARGET}"),
    NftSet("nd_owned6", ("mark", "integer"), typeof=f"meta mark . {_TARGET}"),
)
_BY_NAME = {each.name: each for each in SETS}
# A pin stands in two sets: under its interface, and under its network.
_PINS: Mapping[str, str] = {
    "port_mac": "owned_mac",
    "port4": "owned4",
    "port6": "owned6",
    "nd_port_mac": "nd_owned_mac",
    "nd_port6": "nd_owned6",
}


@dataclass(frozen=True)
class Attachment:
    """One interface in a network's bridge, and what it is pinned to; what is empty is not."""

    interface: str
    number: str
    macs: tuple[str, ...] = ()
    addresses: tuple[Address, ...] = ()
    uplink: bool = False
    beyond: frozenset[str] | None = None  # of a tunnel between our hosts: the kinds it is pinned to

    def elements(self) -> Iterator[tuple[str, Element]]:
        one = (self.interface,)
        yield "members", one
        yield "network_of", (self.interface, self.number)
        if self.uplink:
            yield "uplinks", one
        for kind in self._pinned():
            yield f"pinned{kind}", one
        # A machine may always have the link-local address that its MAC address makes.
        local = [_link_local(mac) for mac in self.macs]
        pins = [*_macs(self.macs), *_addresses((*self.addresses, *local))]
        for name, value in pins:
            port = f"nd_port{name[2:]}" if name.startswith("nd") else f"port{name}"
            yield port, (self.interface, value)
            yield _PINS[port], (self.number, value)

    def _pinned(self) -> Iterator[str]:
        """The kinds of which nothing else may come in here."""
        if self.beyond is not None:
            yield from ("_mac" if kind == "mac" else kind for kind in sorted(self.beyond))
            return
        if self.macs:
            yield "_mac"
        yield from sorted({str(address.version) for address in self.addresses})


def _link_local(mac: str) -> IPv6Address:
    return IPv6Address(addresses.link_local(mac).split("/")[0])


def _macs(macs: Iterable[str]) -> Iterator[tuple[str, str]]:
    for mac in macs:
        yield "_mac", mac
        yield "nd_mac", str(int(mac.replace(":", ""), 16))


def _addresses(some: Iterable[Address]) -> Iterator[tuple[str, str]]:
    for address in some:
        yield str(address.version), str(address)
        if address.version == 6:
            yield "nd6", hex(int(address))  # as nft shows a number of more than 64 bits


def _gateway(context: Context, owned: NetworkOf, number: str) -> Iterator[tuple[str, Element]]:
    """What nobody in the network may use: the gateway's, and what is no machine's address."""
    mac = addresses.mac_address(
        context.site.site, context.site.host or "", owned.tenant, owned.name
    )
    reserved: list[Address] = []
    for prefix, gateway in zip(owned.network.prefix, owned.network.gateways(), strict=True):
        where, written = prefixsets.place("prefix", prefix)
        yield where, (number, written)
        reserved += [gateway.ip, prefix.network_address]
        if prefix.version == 4:
            reserved.append(prefix.broadcast_address)
        else:
            reserved.append(_link_local(mac))
    for name, value in [*_macs([mac]), *_addresses(reserved)]:
        yield (
            _PINS[f"nd_port{name[2:]}" if name.startswith("nd") else f"port{name}"],
            (
                number,
                value,
            ),
        )


def network_claims(context: Context, owned: NetworkOf) -> KernelState:
    """The gateway's claims, those of the declared ports, and the uplink's lack of them.

    Of all declared ports, also those that are not there now: a tap is filtered from its first
    frame on, whoever puts it into the bridge.
    """
    number = str(addresses.network_number(owned.tenant, owned.name))
    attached = [
        Attachment(port.interface, number, (port.mac,) if port.mac else (), port.address)
        for port in owned.network.on(context.site.here)
    ]
    if owned.network.vlan:
        uplink = addresses.vlan_name(owned.tenant, owned.name)
        attached.append(Attachment(uplink, number, uplink=True))
    found: dict[str, set[Element]] = {"bridges": {(owned.bridge,)}}
    for name, element in _gateway(context, owned, number):
        found.setdefault(name, set()).add(element)
    return _state(context, attached, found)


def tunnel_claims(context: Context, tunnel: Tunnel) -> KernelState:
    """A `gre` tunnel carries packets, not frames, and is in no bridge.

    On a tunnel between our own hosts the machines of the other end are let in as if they were
    ports here; on that to the gateway, whatever the gateway lets through.
    """
    if tunnel.type != "gretap":
        return EMPTY
    number = str(addresses.network_number(tunnel.tenant, tunnel.network))
    name = addresses.tunnel_name(tunnel.tenant, tunnel.name)
    beyond = tunnel.beyond
    if beyond is None:
        attached = Attachment(name, number, tunnel.macs, tunnel.addresses)
    else:
        attached = Attachment(
            name, number, beyond.macs, beyond.addresses, beyond.uplink, beyond.pinned
        )
    return _state(context, [attached], {})


def _state(
    context: Context, attached: Iterable[Attachment], found: dict[str, set[Element]]
) -> KernelState:
    for attachment in attached:
        for name, element in attachment.elements():
            found.setdefault(name, set()).add(element)
    sets = tuple(_BY_NAME[name].filled(frozenset(elements)) for name, elements in found.items())
    table = NftTable("bridge", table_name(context.site.site), sets)
    return KernelState(tables=(table,))


def claims_of(tables: Iterable[NftTable], interfaces: Collection[str]) -> dict[str, set[Element]]:
    """What the sets hold of some interfaces: how a tunnel that a lease brought keeps its pins when
    somebody who does not know the lease applies a file (tunnels/dynamic.py)."""
    there = {each.name: each.elements for table in tables for each in table.sets}
    found: dict[str, set[Element]] = {}
    for each in SETS:
        if each.type[0] == "ifname" and each.name != "bridges":
            found[each.name] = {e for e in there.get(each.name, ()) if e[0] in interfaces}
    numbers = {element[0]: element[1] for element in found["network_of"]}
    for port, owned in _PINS.items():
        found[owned] = {
            (numbers[interface], value) for interface, value in found[port] if interface in numbers
        }
    return found
