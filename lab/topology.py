"""What a lab network is made of, declared: machines, routers, NAT boxes, switches and cables.

    Topology(
        nodes=(
            Machine("head", {"eth0": "10.0.0.10/24"}, routes={"default": "10.0.0.1"}, cores=2),
            Router("internet", {"site": "10.0.0.1/24", "cloud": "203.0.113.254/24"}),
            Switch("tor", {"p1": Access(101), "up": Trunk((101, 102))}),
        ),
        links=(Link("head:eth0", "internet:site"), ...),
    )

Values only: lab.net builds them. A topology that cannot work is refused with all its problems.
"""

import ipaddress
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab import rtnl
from lab.host import PRIVATE
from lab.process import LabError

Addresses = Mapping[str, str | Sequence[str]]  # interface -> "ADDRESS/LENGTH", one or several
AnyInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


class TopologyError(LabError):
    """A topology that cannot be built; `.problems` has one sentence for each thing wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("the topology cannot be built:\n" + "\n".join(f"- {p}" for p in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Machine:
    """A host. routes: "default" or a prefix -> the next hop's address. See lab.host.HostSpec."""

    name: str
    addresses: Addresses = field(default_factory=dict)
    routes: Mapping[str, str] = field(default_factory=dict)
    cores: float | None = None
    memory_mb: int | None = None
    forward: bool = False
    private: tuple[str, ...] = PRIVATE
    sysctls: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None
    shown: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Router(Machine):
    """A machine that forwards, and counts what it forwards by protocol (lab.net.counters).

    count: pairs of interfaces between which it counts, both ways; none: everything forwarded.
    """

    forward: bool = True
    count: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class NatBox(Machine):
    """A router between `inside` and `outside` that hides the inside, and lets in only answers.

    one_to_one: public address -> inside address, both ways, every protocol (as an Elastic IP).
    masquerade: all else from inside leaves with the outside interface's address and other ports.
    """

    forward: bool = True
    inside: str = "inside"
    outside: str = "outside"
    masquerade: bool = True
    one_to_one: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Access:
    """A switch port in one VLAN, untagged."""

    vlan: int


@dataclass(frozen=True)
class Trunk:
    """A switch port that carries VLANs tagged; `native` untagged, if given."""

    vlans: tuple[int, ...]
    native: int | None = None


@dataclass(frozen=True)
class Switch:
    """A switch: one VLAN-filtering bridge. Ports are the interfaces that links give it."""

    name: str
    ports: Mapping[str, Access | Trunk]


@dataclass(frozen=True)
class Link:
    """A cable between two ends, each "NODE:INTERFACE"; mtu in bytes."""

    a: str
    b: str
    mtu: int = 1500

    @property
    def ends(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Both ends as (node, interface)."""
        return _end(self.a), _end(self.b)


Node = Machine | Switch


@dataclass(frozen=True)
class Topology:
    """Nodes and the links between them; checked as a whole when made (TopologyError)."""

    nodes: tuple[Node, ...]
    links: tuple[Link, ...] = ()

    def __post_init__(self) -> None:
        if problems := tuple(_problems(self)):
            raise TopologyError(problems)

    def node(self, name: str) -> Node:
        """The node of that name; KeyError if there is none."""
        return {node.name: node for node in self.nodes}[name]


def listed(addresses: str | Sequence[str]) -> tuple[str, ...]:
    """One address or several, as several; an empty text is none."""
    if isinstance(addresses, str):
        return (addresses,) if addresses else ()
    return tuple(addresses)


def _end(text: str) -> tuple[str, str]:
    node, _, interface = text.partition(":")
    return node, interface


def _problems(topology: Topology) -> Iterator[str]:
    names = [node.name for node in topology.nodes]
    for name, times in Counter(names).items():
        if times > 1:
            yield f"{times} nodes are called {name}: give each its own name"
    ends = [end for link in topology.links for end in link.ends]
    for end, times in Counter(ends).items():
        if times > 1:
            yield f"{':'.join(end)} is the end of {times} links: an interface has one cable"
    for link in topology.links:
        yield from _link_problems(link, names)
    for node in topology.nodes:
        interfaces = {interface for name, interface in ends if name == node.name}
        if isinstance(node, Switch):
            yield from _switch_problems(node, interfaces)
        else:
            yield from _machine_problems(node, interfaces)
    yield from _double_addresses(topology.nodes)


def _link_problems(link: Link, names: Sequence[str]) -> Iterator[str]:
    for text, (name, interface) in zip((link.a, link.b), link.ends, strict=True):
        if not interface:
            yield f"link end {text!r}: write NODE:INTERFACE"
            continue
        if name not in names:
            yield f"link {link.a} - {link.b}: there is no node {name}"
        try:
            rtnl.check_name(interface)
        except ValueError as error:
            yield f"link {link.a} - {link.b}: {error}"
    if not 68 <= link.mtu <= 65535:
        yield f"link {link.a} - {link.b}: mtu {link.mtu} is not between 68 and 65535"


def _switch_problems(switch: Switch, interfaces: set[str]) -> Iterator[str]:
    for port in sorted(interfaces - set(switch.ports)):
        yield f"switch {switch.name}: port {port} has a link, but no Access or Trunk"
    for port in sorted(set(switch.ports) - interfaces):
        yield f"switch {switch.name}: port {port} has no link"
    for name, kind in switch.ports.items():
        for vlan in _vlans(kind):
            if not 1 <= vlan <= 4094:
                yield f"switch {switch.name} port {name}: VLAN id {vlan} is not between 1 and 4094"


def _vlans(port: Access | Trunk) -> tuple[int, ...]:
    if isinstance(port, Access):
        return (port.vlan,)
    return port.vlans if port.native is None else (*port.vlans, port.native)


def _machine_problems(machine: Machine, interfaces: set[str]) -> Iterator[str]:
    local: list[AnyInterface] = []
    for interface, addresses in machine.addresses.items():
        if interface not in interfaces and interface != "lo":
            yield f"{machine.name}: interface {interface} has addresses, but no link"
        for text in listed(addresses):
            try:
                local.append(ipaddress.ip_interface(text))
            except ValueError as error:
                yield f"{machine.name}:{interface}: {error}"
            else:
                if "/" not in text:
                    yield f"{machine.name}:{interface}: {text} lacks its prefix length, as in /24"
    for prefix, via in machine.routes.items():
        yield from _route_problems(machine.name, prefix, via, local)
    if isinstance(machine, Router):
        for pair in machine.count:
            for interface in sorted(set(pair) - interfaces):
                yield f"router {machine.name}: it is to count at {interface}, which has no link"
    if isinstance(machine, NatBox):
        for side in (machine.inside, machine.outside):
            if side not in interfaces:
                yield f"NAT box {machine.name}: interface {side} has no link"
        for pair in machine.one_to_one.items():
            for address in pair:
                try:
                    ipaddress.IPv4Address(address)
                except ValueError as error:
                    yield f"NAT box {machine.name}, one_to_one: {error}"


def _route_problems(
    name: str, prefix: str, via: str, local: Iterable[AnyInterface]
) -> Iterator[str]:
    try:
        hop = ipaddress.ip_address(via)
        if prefix != "default" and ipaddress.ip_network(prefix).version != hop.version:
            yield f"{name}: route {prefix} via {via}: one is IPv4, the other IPv6"
    except ValueError as error:
        yield f"{name}: route {prefix} via {via}: {error}"
        return
    if not any(hop in own.network for own in local):
        yield f"{name}: route {prefix} via {via}: no interface is in the next hop's network"
    if any(hop == own.ip for own in local):
        yield f"{name}: route {prefix} via {via}: that is its own address"


def _double_addresses(nodes: Iterable[Node]) -> Iterator[str]:
    """Only exact doubles of a whole topology: separate sites may well use the same prefixes."""
    for node in nodes:
        if isinstance(node, Switch):
            continue
        texts = [text for addresses in node.addresses.values() for text in listed(addresses)]
        for text, times in Counter(texts).items():
            if times > 1:
                yield f"{node.name}: {text} is on {times} of its interfaces"
