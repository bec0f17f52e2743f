"""The ground the attacks are made on: two tenants, a site, the internet, all addresses known.

    red/farm   r1 r2 r5     VLAN 101 head      tunnel `far` to cloud   open, NAT
    red/lab    r3 r4                           in WireGuard, to none   closed, NAT
    blue/farm  b1 b2 b9     VLAN 103 disk      tunnel `far` to moon    closed, NAT, /23 and /60
    blue/lab   b3 b4                                                   closed, no NAT
    blue/twin  b5 b6        the addresses of red/lab                   closed, NAT
    blue/open  b7 b8                                                   open, no NAT

    r1..b9 are machines behind ports of the gateway, pinned to their addresses but for r5 and b9;
    head and disk behind its trunk to the switch `tor`; `site` behind ext0; cloud, moon and web
    (192.0.2.80, also 169.254.169.254) behind the router `internet` on wan0. Two ends of a bare
    cable show that a frame can be sent and seen.

Everything has a fixed MAC address, so that frames can be made before there is any host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_interface

from dvn import addresses
from lab.topology import Access, Link, Machine, Node, Switch, Topology, Trunk

SITE, GATEWAY = "siege", "gw"
WAN4, WAN6 = "198.51.100.1", "2001:db8:1::1"
SITE4, SITE6 = "192.168.77.2", "fd77::2"
WEB4, WEB6 = "192.0.2.80", "2001:db8:2::80"
EVIL4, EVIL6 = "192.0.2.66", "2001:db8:2::66"  # web's machine may claim to be it
METADATA4, METADATA6 = "169.254.169.254", "fd00:ec2::254"
CLOUD4, MOON4 = "203.0.113.7", "203.0.113.200"
UNDECLARED_VLAN = 555
# A tunnel of red/lab in WireGuard, whose other end is never there. The keys are made of one byte
# each: nothing is secret here.
PRIVATE_KEY_FILE = "/run/dvn/siege.key"
PRIVATE_KEY = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
PUBLIC_KEY = "pOCSkrZRwni5dyxWn1+puxPZBrRqtoyd+dwrRAn4ogk="
PEER_KEY = "zo060cy2M+x7cMF4FKXHbs0CloUFDTRHRboFhw5YfVk="
SEALED_KEY = 0x5EA1
_OWN = ("/etc:empty",)  # directories of a machine that runs nothing


@dataclass(frozen=True)
class Net:
    """One network of the site."""

    tenant: str
    name: str
    number: int
    machines: tuple[str, ...]  # behind ports, pinned
    loose: tuple[str, ...] = ()  # behind ports that declare neither MAC nor address
    open: bool = False
    nat4: str = ""
    nat6: str = ""
    vlan: int = 0
    vlan_machine: str = ""
    remote: str = ""  # machine at the tunnel's other end
    remote4: str = ""
    key: int = 0
    services: tuple[str, ...] = ()
    lengths: tuple[int, int] = (24, 64)  # prefixes of other lengths stand in sets of another kind

    @property
    def full(self) -> str:
        return f"{self.tenant}-{self.name}"

    @property
    def bridge(self) -> str:
        return addresses.bridge_name(self.tenant, self.name)

    @property
    def mac(self) -> str:
        """The gateway's MAC address in this network."""
        return addresses.mac_address(SITE, GATEWAY, self.tenant, self.name)

    @property
    def gateway4(self) -> str:
        return f"10.{self.number}.0.1"

    @property
    def gateway6(self) -> str:
        return f"fd{self.number:02d}::1"

    @property
    def link_local(self) -> str:
        return addresses.link_local(self.mac).split("/")[0]

    @property
    def prefix4(self) -> str:
        return f"10.{self.number}.0.0/{self.lengths[0]}"

    @property
    def prefix6(self) -> str:
        return f"fd{self.number:02d}::/{self.lengths[1]}"

    @property
    def inside(self) -> str:
        """The place where frames come up from the bridge to the gateway."""
        return f"{GATEWAY}/{self.full}"


NETS: tuple[Net, ...] = (
    Net(
        "red", "farm", 1, ("r1", "r2"), ("r5",), True, "198.51.100.10", "2001:db8:1::10",
        101, "head", "cloud", CLOUD4, 0x1ED, ("tcp/22",),
    ),
    Net("red", "lab", 66, ("r3", "r4"), (), False, "198.51.100.11", "2001:db8:1::11"),
    Net(
        "blue", "farm", 2, ("b1", "b2"), ("b9",), False, "198.51.100.12", "2001:db8:1::12",
        103, "disk", "moon", MOON4, 0xB10E, (), (23, 60),
    ),
    Net("blue", "lab", 3, ("b3", "b4")),
    # The same addresses as red/lab's inside and outside, machine by machine.
    Net("blue", "twin", 66, ("b5", "b6"), (), False, "198.51.100.11", "2001:db8:1::11"),
    # Two open networks know the way to each other, by the host's main table.
    Net("blue", "open", 4, ("b7", "b8"), (), True),
)  # fmt: skip


INTRUDER, INTRUDED = "x1", NETS[1]  # an interface nobody declared, in that network's bridge
BRIDGE_META = "bridge_meta"  # feature: nft can tell which bridge a frame is in


@dataclass(frozen=True)
class Nic:
    """One end of a cable: where frames are put on the wire, and who is there."""

    host: str
    interface: str
    mac: str
    ip4: str = ""
    ip6: str = ""
    net: Net | None = None

    @property
    def link_local(self) -> str:
        """As the kernel makes it of the MAC address."""
        return addresses.link_local(self.mac).split("/")[0]


def _mac(number: int) -> str:
    return f"02:d1:00:00:00:{number:02x}"


def _nics() -> Iterator[Nic]:
    number = 1
    for net in NETS:
        machines = [
            *net.machines,
            *([net.vlan_machine] if net.vlan_machine else []),
            *net.loose,
        ]
        for place, name in enumerate(machines, start=11):
            ip4, ip6 = f"10.{net.number}.0.{place}", f"fd{net.number:02d}::{place}"
            yield Nic(name, "eth0", _mac(number), ip4, ip6, net)
            number += 1
    yield Nic(INTRUDER, "eth0", _mac(0x31))
    yield Nic("site", "eth0", _mac(0x41), SITE4, SITE6)
    yield Nic("web", "eth0", _mac(0x42), WEB4, WEB6)
    yield Nic("cloud", "eth0", _mac(0x43), CLOUD4, "2001:db8:3::7")
    yield Nic("moon", "eth0", _mac(0x44), MOON4, "2001:db8:4::8")
    yield Nic(GATEWAY, "wan0", _mac(0x51), WAN4, WAN6)
    yield Nic(GATEWAY, "ext0", _mac(0x52), "192.168.77.1", "fd77::1")
    yield Nic(GATEWAY, "lan0", _mac(0x53))
    for place, interface in enumerate(("site", "web", "cloud", "moon")):
        yield Nic("internet", interface, _mac(0x61 + place))
    yield Nic("tor", "gw", _mac(0x71))
    yield Nic("cable", "one", _mac(0x81))


_ALL = tuple(_nics())
# A host with one cable by its name, others as `host:interface`.
NICS: Mapping[str, Nic] = {
    name: nic for nic in _ALL for name in (nic.host, f"{nic.host}:{nic.interface}")
}
CABLE = "cable"  # the place at the bare cable's other end
HOSTS = ("site", "web", "cloud", "moon")  # that belong to no network
INSIDERS = tuple(nic.host for nic in _ALL if nic.net)
ROUTER = "internet"  # sees all that leaves; few attacks call that a leak
UNDERLAY = "gw/gre"  # where GRE comes to the gateway itself
# Everywhere a marker may turn up. The router `internet` is on everybody's way and counts for none.
PLACES = frozenset({*INSIDERS, *HOSTS, INTRUDER, GATEWAY, *(net.inside for net in NETS)})


def net(full: str) -> Net:
    return next(each for each in NETS if each.full == full)


def insiders(net_: Net) -> tuple[str, ...]:
    return tuple(name for name in INSIDERS if NICS[name].net == net_)


def remote_address(net_: Net, version: int) -> str:
    """What the machine at the other end of the tunnel calls itself inside the network."""
    return f"10.{net_.number}.0.101" if version == 4 else f"fd{net_.number:02d}::101"


def remote_mac(net_: Net) -> str:
    return _mac(0xA0 + net_.number)


def port(machine: str) -> str:
    return f"tap-{machine}"


def topology(features: frozenset[str]) -> Topology:
    """Hosts and cables; without the feature `vlan`, no switch and nobody behind it."""
    nodes: list[Node] = []
    links: list[Link] = []
    for each in NETS:
        for name in insiders(each):
            if name == each.vlan_machine and "vlan" not in features:
                continue
            nic = NICS[name]
            routes = {"default": each.gateway4, "::/0": each.gateway6}
            four, six = each.lengths
            eth0 = (f"{nic.ip4}/{four}", f"{nic.ip6}/{six}", f"{nic.link_local}/64")
            nodes.append(Machine(name, {"eth0": eth0}, routes, private=_OWN))
            end = f"tor:{name}" if name == each.vlan_machine else f"{GATEWAY}:{port(name)}"
            links.append(Link(f"{name}:eth0", end))
    if "vlan" in features:
        access = {each.vlan_machine: Access(each.vlan) for each in NETS if each.vlan}
        # The trunk carries more than is declared: a switch is often more generous than needed.
        vlans = (*(each.vlan for each in NETS if each.vlan), UNDECLARED_VLAN)
        nodes.append(Switch("tor", {**access, "gw": Trunk(vlans)}))
        links.append(Link("tor:gw", f"{GATEWAY}:lan0"))
    else:
        nodes.append(Machine("tor", private=_OWN))
        links.append(Link("tor:gw", f"{GATEWAY}:lan0"))
    return Topology((*nodes, *_outside()), (*links, *_OUTSIDE_LINKS))


def _outside() -> tuple[Node, ...]:
    return (
        Machine(
            GATEWAY,
            {"wan0": (f"{WAN4}/24", f"{WAN6}/64"), "ext0": ("192.168.77.1/24", "fd77::1/64")},
            {"default": "198.51.100.254", "::/0": "2001:db8:1::fe"},
        ),
        Machine(
            "internet",
            {
                "site": ("198.51.100.254/24", "2001:db8:1::fe/64"),
                "web": ("192.0.2.254/24", "2001:db8:2::fe/64"),
                "cloud": ("203.0.113.126/25", "2001:db8:3::fe/64"),
                "moon": ("203.0.113.254/25", "2001:db8:4::fe/64"),
            },
            {f"{METADATA4}/32": WEB4, f"{METADATA6}/128": WEB6},
            forward=True,
            private=_OWN,
        ),
        _host("site", f"{SITE4}/24", f"{SITE6}/64", "192.168.77.1", "fd77::1"),
        _host("web", f"{WEB4}/24", f"{WEB6}/64", "192.0.2.254", "2001:db8:2::fe"),
        _host("cloud", f"{CLOUD4}/25", "2001:db8:3::7/64", "203.0.113.126", "2001:db8:3::fe"),
        _host("moon", f"{MOON4}/25", "2001:db8:4::8/64", "203.0.113.254", "2001:db8:4::fe"),
        Machine("cable", private=_OWN),
        Machine(INTRUDER, private=_OWN),
    )


def _host(name: str, ip4: str, ip6: str, via4: str, via6: str) -> Machine:
    eth0 = (ip4, ip6, f"{NICS[name].link_local}/64")
    return Machine(name, {"eth0": eth0}, {"default": via4, "::/0": via6}, private=_OWN)


_OUTSIDE_LINKS = (
    Link(f"{GATEWAY}:wan0", "internet:site"),
    Link(f"{GATEWAY}:ext0", "site:eth0"),
    *(Link(f"internet:{name}", f"{name}:eth0") for name in ("web", "cloud", "moon")),
    Link("cable:one", "cable:two"),
    Link(f"{INTRUDER}:eth0", f"{GATEWAY}:{port(INTRUDER)}"),
)


def site_text(features: frozenset[str]) -> str:
    """The site file of the gateway."""
    sealed = "gretap" in features and "wireguard" in features
    identity = f", wireguard: {{private_key_file: {PRIVATE_KEY_FILE}}}" if sealed else ""
    lines = [
        f"site: {SITE}",
        f"host: {GATEWAY}",
        f"underlay: {{interface: wan0, address: {WAN4}{identity}}}",
        "tenants:",
    ]
    for tenant in dict.fromkeys(each.tenant for each in NETS):
        lines += [f"  {tenant}:", "    networks:"]
        for each in NETS:
            if each.tenant == tenant:
                lines += _network(each, features)
        lines += ["    tunnels:"] if "gretap" in features else []
        for each in NETS:
            if each.tenant == tenant and each.remote and "gretap" in features:
                ends = f"network: {each.name}, remote: {each.remote4}, key: {each.key}"
                lines.append(f"      far: {{{ends}, transport: plain{_pins(each)}}}")
        if tenant == "red" and sealed:
            ends = f"network: lab, remote: {MOON4}, key: {SEALED_KEY}, peer_key: {PEER_KEY}"
            lines.append(f"      sealed: {{{ends}, transport: wireguard}}")
    return "\n".join(lines) + "\n"


def _network(each: Net, features: frozenset[str]) -> Iterator[str]:
    yield f"      {each.name}:"
    yield f'        prefix: [{each.prefix4}, "{each.prefix6}"]'
    yield f"        access: {'open' if each.open else 'closed'}"
    if each.nat4:
        yield f'        nat: {{snat: [{each.nat4}, "{each.nat6}"]}}'
    if each.vlan and "vlan" in features:
        yield f"        vlan: {{id: {each.vlan}, uplink: lan0}}"
    if each.services:
        yield f"        services: [{', '.join(each.services)}]"
    yield "        ports:"
    for name in each.machines:
        nic = NICS[name]
        pins = f"mac: '{nic.mac}', address: [{nic.ip4}, '{nic.ip6}']"
        yield f"        - {{interface: {port(name)}, {pins}}}"
    for name in each.loose:
        yield f"        - {{interface: {port(name)}}}"


def _pins(each: Net) -> str:
    """One tunnel is pinned, as a lease's is, the other not."""
    if each.tenant != "blue":
        return ""
    inner = f"{remote_address(each, 4)}, '{remote_address(each, 6)}'"
    return f", macs: '{remote_mac(each)}', addresses: [{inner}]"


def version_of(address: str) -> int:
    return ip_interface(address).version


def is_link_local(address: str) -> bool:
    return version_of(address) == 6 and IPv6Address(address).is_link_local
