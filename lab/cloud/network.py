"""What a VPC lets pass, as values, and its translation to one nftables ruleset. Pure.

The VPC is one router. Every network interface (ENI) hangs on a veth of its own there, the internet
gateway is the device `igw`. The rules follow the AWS pages "Security group rules", "Connection
tracking", "Internet gateways", "NAT gateways" and "Source/destination check":

* security groups are stateful; what a group does not allow is dropped without an answer;
* the protocol is a name or a number: 47 is GRE; ports mean type and code for ICMP; -1 means any;
* an interface may only send from, and only gets packets to, its own addresses, unless its
  source/destination check is off;
* no broadcast, no multicast;
* the internet gateway translates one public address to one private address, any protocol, and
  drops what has no public address;
* a NAT gateway passes TCP, UDP and ICMP only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Literal

UPLINK = "igw"
METADATA = "169.254.169.254"

_NAT_MARK = 0x10000  # packet marks choose the NAT gateway ...
_HOP_MARK = 0x20000  # ... or the interface that a route names


@dataclass(frozen=True, slots=True)
class Permission:
    """One rule of a security group. `cidr` or `group` is the other side; ports None mean any."""

    protocol: str  # "-1" any, "tcp", "udp", "icmp", or a protocol number
    from_port: int | None = None
    to_port: int | None = None
    cidr: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    id: str
    ingress: tuple[Permission, ...] = ()
    egress: tuple[Permission, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """One line of a route table; `target` is the id of the NAT gateway or interface."""

    cidr: str
    kind: Literal["internet", "nat", "interface", "blackhole"]
    target: str = ""


@dataclass(frozen=True, slots=True)
class Subnet:
    id: str
    cidr: str
    routes: tuple[Route, ...] = ()

    @property
    def router(self) -> str:
        """The VPC router's address: the first one of the subnet (AWS: "Subnet sizing")."""
        return str(IPv4Network(self.cidr)[1])


@dataclass(frozen=True, slots=True)
class Interface:
    """An ENI of a living instance."""

    id: str
    instance: str
    subnet: str
    mac: str
    addresses: tuple[str, ...]
    groups: tuple[str, ...] = ()
    public: str | None = None
    checked: bool = True  # source/destination check

    @property
    def device(self) -> str:
        """The veth on the router's side; at most 15 characters."""
        return f"v{self.id.removeprefix('eni-')[:12]}"


@dataclass(frozen=True, slots=True)
class NatGateway:
    id: str
    subnet: str
    public: str | None


@dataclass(frozen=True, slots=True)
class Vpc:
    id: str
    cidrs: tuple[str, ...]
    internet: bool = False  # an internet gateway is attached
    subnets: tuple[Subnet, ...] = ()
    groups: tuple[Group, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    nat_gateways: tuple[NatGateway, ...] = ()

    def subnet(self, subnet_id: str) -> Subnet:
        return next(s for s in self.subnets if s.id == subnet_id)


@dataclass(frozen=True, slots=True)
class Hop:
    """A route whose next hop is an interface: packets with `mark` go to `address` on `device`."""

    mark: int
    device: str
    address: str


def internet_targets(vpc: Vpc) -> dict[str, str]:
    """Public -> private, for every interface that can be reached from the internet.

    An address is of use only where the subnet's routes lead to the internet gateway.
    """
    if not vpc.internet:
        return {}
    open_subnets = {s.id for s in vpc.subnets if any(r.kind == "internet" for r in s.routes)}
    return {
        nic.public: nic.addresses[0]
        for nic in vpc.interfaces
        if nic.public and nic.addresses and nic.subnet in open_subnets
    }


def working_nat_gateways(vpc: Vpc) -> tuple[NatGateway, ...]:
    """Those that have an address, in a subnet with a route to the internet gateway."""
    if not vpc.internet:
        return ()
    open_subnets = {s.id for s in vpc.subnets if any(r.kind == "internet" for r in s.routes)}
    return tuple(n for n in vpc.nat_gateways if n.public and n.subnet in open_subnets)


def public_addresses(vpc: Vpc) -> frozenset[str]:
    """What the internet must route to this VPC."""
    gateways = {n.public for n in working_nat_gateways(vpc) if n.public}
    return frozenset(internet_targets(vpc)) | gateways


def hops(vpc: Vpc) -> tuple[Hop, ...]:
    """The interfaces that routes name as their target, each with its packet mark."""
    wanted = sorted({r.target for s in vpc.subnets for r in s.routes if r.kind == "interface"})
    nics = {nic.id: nic for nic in vpc.interfaces}
    return tuple(
        Hop(_HOP_MARK + number, nics[target].device, nics[target].addresses[0])
        for number, target in enumerate(wanted, start=1)
        if target in nics
    )


def compile_rules(vpc: Vpc) -> str:
    """The whole ruleset of the VPC router, for `nft -f`: replaces the former one at once."""
    lines = ["table ip vpc", "delete table ip vpc", "table ip vpc {"]
    lines += _sets(vpc)
    for group in sorted(vpc.groups, key=lambda g: g.id):
        lines += _chain(_name(group.id, "in"), _permissions(vpc, group.ingress, "saddr"))
        lines += _chain(_name(group.id, "out"), _permissions(vpc, group.egress, "daddr"))
    for nic in vpc.interfaces:
        known = [g for g in nic.groups if any(group.id == g for group in vpc.groups)]
        lines += _chain(f"in_{nic.device}", [f"jump {_name(g, 'in')}" for g in known])
        lines += _chain(f"out_{nic.device}", [f"jump {_name(g, 'out')}" for g in known])
    for subnet in vpc.subnets:
        lines += _chain(_name(subnet.id, "routes"), _routes(vpc, subnet))
    lines += _base_chains(vpc)
    lines.append("}")
    return "\n".join(lines) + "\n"


def _name(aws_id: str, what: str) -> str:
    return f"{aws_id.replace('-', '_')}_{what}"


def _chain(name: str, rules: Iterable[str]) -> list[str]:
    return [f"\tchain {name} {{", *(f"\t\t{rule}" for rule in rules), "\t}"]


def _set(kind: str, name: str, of: str, elements: Iterable[str], flags: str = "") -> list[str]:
    listed = sorted(elements)
    lines = [f"\t{kind} {name} {{", f"\t\ttype {of}"]
    if flags:
        lines.append(f"\t\tflags {flags}")
    if listed:
        lines.append(f"\t\telements = {{ {', '.join(listed)} }}")
    return [*lines, "\t}"]


def _sets(vpc: Vpc) -> Iterator[str]:
    nics = vpc.interfaces
    targets = internet_targets(vpc)
    owned = [f'"{nic.device}" . {a}' for nic in nics for a in nic.addresses]
    yield from _set("set", "owned", "ifname . ipv4_addr", owned)
    unchecked = [f'"{nic.device}"' for nic in nics if not nic.checked]
    yield from _set("set", "unchecked", "ifname", unchecked)
    own = [*vpc.cidrs, "169.254.0.0/16", "127.0.0.0/8"]
    yield from _set("set", "own_prefixes", "ipv4_addr", own, flags="interval")
    yield from _set("set", "addressed", "ipv4_addr", targets.values())
    inbound = [f"{public} : {private}" for public, private in targets.items()]
    yield from _set("map", "inbound", "ipv4_addr : ipv4_addr", inbound)
    outbound = [f"{private} : {public}" for public, private in targets.items()]
    yield from _set("map", "outbound", "ipv4_addr : ipv4_addr", outbound)
    for name, prefix in (("leaving", "out"), ("entering", "in")):
        verdicts = [f'"{nic.device}" : goto {prefix}_{nic.device}' for nic in nics]
        yield from _set("map", name, "ifname : verdict", verdicts)
    routes = [f'"{nic.device}" : goto {_name(nic.subnet, "routes")}' for nic in nics]
    yield from _set("map", "towards", "ifname : verdict", routes)


def _permissions(vpc: Vpc, permissions: tuple[Permission, ...], side: str) -> Iterator[str]:
    for permission in permissions:
        match = _protocol(permission)
        if permission.group is not None:
            members = sorted(
                a for n in vpc.interfaces if permission.group in n.groups for a in n.addresses
            )
            if not members:
                continue
            yield f"ip {side} {{ {', '.join(members)} }} {match}accept"
        elif permission.cidr is not None and IPv4Network(permission.cidr, False).prefixlen:
            yield f"ip {side} {IPv4Network(permission.cidr, False)} {match}accept"
        elif permission.cidr is not None:
            yield f"{match}accept"


def _protocol(permission: Permission) -> str:
    protocol = {"6": "tcp", "17": "udp", "1": "icmp"}.get(permission.protocol, permission.protocol)
    low, high = permission.from_port, permission.to_port
    if protocol in ("-1", "all"):
        return ""
    if protocol == "icmp":
        if low is None or low < 0:
            return "ip protocol icmp "
        code = "" if high is None or high < 0 else f"icmp code {high} "
        return f"icmp type {low} {code}"
    if protocol in ("tcp", "udp"):
        if low is None or high is None or low < 0 or (low, high) == (0, 65535):
            return f"ip protocol {protocol} "
        return f"{protocol} dport {low if low == high else f'{low}-{high}'} "
    return f"ip protocol {int(protocol)} "


def _routes(vpc: Vpc, subnet: Subnet) -> Iterator[str]:
    """What may leave by the uplink, longest prefix first, and which NAT gateway it takes."""
    gateways = {n.id: n for n in working_nat_gateways(vpc)}
    marks = _nat_marks(vpc)
    for route in _by_length(subnet):
        where = _destination(route)
        if route.kind == "internet" and vpc.internet:
            yield f"{where}ip saddr @addressed accept"
        elif route.kind == "nat" and route.target in gateways:
            passed = f"{where}ip protocol {{ icmp, tcp, udp }} "
            yield f"{passed}meta mark set {marks[route.target]:#x} accept"
        yield f"{where}drop"
    yield "drop"


def _by_length(subnet: Subnet) -> list[Route]:
    return sorted(subnet.routes, key=lambda r: -IPv4Network(r.cidr).prefixlen)


def _destination(route: Route) -> str:
    return "" if IPv4Network(route.cidr).prefixlen == 0 else f"ip daddr {route.cidr} "


def _nat_marks(vpc: Vpc) -> dict[str, int]:
    return {n.id: _NAT_MARK + i for i, n in enumerate(working_nat_gateways(vpc), start=1)}


def _steering(vpc: Vpc) -> Iterator[str]:
    marks = {hop.device: hop.mark for hop in hops(vpc)}
    devices = {nic.id: nic.device for nic in vpc.interfaces}
    for subnet in vpc.subnets:
        sources = [n.device for n in vpc.interfaces if n.subnet == subnet.id]
        for route in reversed(_by_length(subnet)):  # the longest prefix has the last word
            if not sources:
                continue
            mark = marks.get(devices.get(route.target, ""), 0) if route.kind == "interface" else 0
            where = ", ".join(f'"{device}"' for device in sources)
            yield (
                f"iifname {{ {where} }} ip daddr != @own_prefixes "
                f"{_destination(route)}meta mark set {mark:#x}"
            )


def _base_chains(vpc: Vpc) -> Iterator[str]:
    yield from _chain(
        "arriving",
        [
            "type filter hook prerouting priority raw; policy drop;",
            'iifname "lo" accept',
            "fib daddr type { broadcast, multicast } counter drop",
            f'iifname "{UPLINK}" ip saddr @own_prefixes counter drop',
            f'iifname "{UPLINK}" ip daddr @own_prefixes counter drop',
            f'iifname "{UPLINK}" accept',
            "iifname @unchecked accept",
            "iifname . ip saddr @owned accept",
            'counter drop comment "source check"',
        ],
    )
    if hops(vpc):
        steering = ["type filter hook prerouting priority mangle; policy accept;", *_steering(vpc)]
        yield from _chain("steering", steering)
    yield from _chain(
        "from_internet",
        [
            "type nat hook prerouting priority dstnat; policy accept;",
            f'iifname "{UPLINK}" dnat to ip daddr map @inbound',
        ],
    )
    # Security groups do not apply to the metadata service (AWS: "Security group basics").
    yield from _chain(
        "to_router",
        [
            "type filter hook input priority filter; policy drop;",
            'iifname "lo" accept',
            f'iifname "{UPLINK}" drop',
            "ct state established,related accept",
            f"ip daddr {METADATA} tcp dport 80 accept",
        ],
    )
    # Three chains one after the other: an accept in one still leaves the word to the next.
    yield from _chain(
        "sender_groups",
        [
            "type filter hook forward priority filter; policy drop;",
            f'iifname "{UPLINK}" oifname "{UPLINK}" drop',
            f'iifname "{UPLINK}" accept',
            "ct state established,related accept",
            "iifname vmap @leaving",
        ],
    )
    yield from _chain(
        "receiver_groups",
        [
            "type filter hook forward priority filter + 1; policy drop;",
            f'oifname "{UPLINK}" accept',
            "oifname != @unchecked oifname . ip daddr != @owned counter drop",
            "ct state established,related accept",
            "oifname vmap @entering",
        ],
    )
    yield from _chain(
        "route_tables",
        [
            "type filter hook forward priority filter + 2; policy drop;",
            f'oifname != "{UPLINK}" accept',
            "iifname vmap @towards",
        ],
    )
    marks = _nat_marks(vpc)
    yield from _chain(
        "to_internet",
        [
            "type nat hook postrouting priority srcnat; policy accept;",
            *(
                f'oifname "{UPLINK}" meta mark {marks[n.id]:#x} snat to {n.public}'
                for n in working_nat_gateways(vpc)
            ),
            f'oifname "{UPLINK}" snat to ip saddr map @outbound',
        ],
    )
