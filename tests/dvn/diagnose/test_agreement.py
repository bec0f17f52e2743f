"""The walk and the running kernel agree on where packets come out, whatever the packet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from dvn import located
from dvn.diagnose.build import Described, build
from dvn.diagnose.capturing import Capture
from dvn.diagnose.describe import describe
from dvn.diagnose.flows import Flows
from dvn.diagnose.frames import Packet
from dvn.diagnose.surroundings import read_ruleset, read_scene
from dvn.diagnose.walk import Walk, Walker
from dvn.engine import Engine
from dvn.spec import parse_site
from lab.host import Host
from lab.hosts import Lab
from tests.dvn.diagnose.agreement import Seen, Sent, Wires, numbered
from tests.dvn.diagnose.packets import Generator, Station, answer

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

PLAIN = os.environ.get("DVN_TEST_PLAIN") == "1"  # on a kernel without 802.1Q and GRE
SITE = """
site: cnaf
host: gw
underlay: {interface: wan0, address: 198.51.100.1}
tenants:
  cms:
    networks:
      farm:
        prefix: [10.9.0.0/24, "fd00:9::/64"]
        access: open
        nat: {snat: 198.51.100.10}
        services: [tcp/22, udp/53]
        VLAN101
        ports:
          - {interface: tap3, mac: 02:00:00:00:00:03, address: 10.9.0.3}
          - {interface: tap4}
    TUNNELS
  atlas:
    networks:
      farm:
        prefix: [10.8.0.0/24, "fd00:8::/64"]
        nat: {snat: 198.51.100.11}
        VLAN102
        ports:
          - {interface: tap5, mac: 02:00:00:00:00:05, address: "fd00:8::5"}
          - {interface: tap6}
      store:
        prefix: 10.8.1.0/24
        ports: [{interface: tap7, mac: 02:00:00:00:00:07, address: 10.8.1.7}]
    policy: [{from: farm, to: store, services: [tcp/443, udp/53]}]
  lhcb:
    networks:
      farm:  # the same addresses as atlas has, behind the same one outside
        prefix: [10.8.0.0/24, "fd00:8::/64"]
        nat:
          snat: 198.51.100.11
          one_to_one: {10.8.0.8: 198.51.100.12}
          forward:
            - {protocol: tcp, outside: 198.51.100.11, port: 443, to: 10.8.0.9, to_port: 22}
            - {protocol: udp, outside: 198.51.100.11, port: 53, to: 10.8.0.9}
        ports:
          - {interface: tap8, mac: 02:00:00:00:00:08, address: 10.8.0.8}
          - {interface: tap9}
"""
FAR = (
    "8.8.8.8", "192.0.2.9", "2001:db8:5::8", "192.168.77.9", "169.254.169.254",
    "198.51.100.1", "198.51.100.10", "198.51.100.11", "198.51.100.11", "198.51.100.12",
)  # fmt: skip
SEEDS = [int(seed) for seed in os.environ.get("DVN_TEST_SEED", "20").split(",")]


TUNNELS = """
    tunnels:
      bari: {network: farm, remote: 203.0.113.7, key: 42, transport: plain}
""".strip()
# The gateway's own answers would carry the numbers of what they answer.
QUIET = """
table inet quiet {
  chain output { type filter hook output priority 10; policy drop;
    meta l4proto gre accept
  }
}
"""


def site_text() -> str:
    vlans, tunnels = ("", "") if PLAIN else ("vlan: {{id: {}, uplink: lan0}}", TUNNELS)
    text = SITE.replace("TUNNELS", tunnels)
    for id_ in ("101", "102"):
        text = text.replace(f"VLAN{id_}", vlans.format(id_))
    return text


@dataclass
class Place:
    gateway: Host
    world: Host
    wires: Wires
    walker: Walker
    stations: tuple[Station, ...]
    flows: Flows = field(default_factory=Flows)  # the connections the kernel knows


INTERFACES = ("wan0", "lan0", "ext0", "tap3", "tap4", "tap5", "tap6", "tap7", "tap8", "tap9")


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Lab() as lab:
        gateway, world = lab.host("gw"), lab.host("world")
        for name in INTERFACES:
            lab.link(gateway, name, world, name)
        world.script(
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=1;"
            + ";".join(f"ip link set {name} arp off" for name in INTERFACES)
        )
        gateway.script(
            "ip address add 198.51.100.1/24 dev wan0;"
            "ip address add 192.168.77.1/24 dev ext0;"
            "ip -6 address add 2001:db8::1/64 dev wan0 nodad;"
            "ip route add default via 198.51.100.254;"
            "ip -6 route add default via 2001:db8::254"
        )
        site = parse_site(located.loads(site_text()))
        engine = Engine()
        gateway.inside(lambda: engine.apply(site))
        bridges = gateway.script("ip -br link show type bridge").stdout.split("\n")
        names = tuple(line.split()[0] for line in bridges if line)
        stations = _stations(gateway)
        _know(gateway, stations)
        gateway.run("nft", "-f", "-", input=QUIET)
        words = gateway.inside(lambda: engine.compiled(site)).tables
        walker = gateway.inside(lambda: Walker(read_ruleset().with_words(words), read_scene()))
        wires = Wires(world, gateway, INTERFACES)
        with wires.open((*names, *INTERFACES)):
            yield Place(gateway, world, wires, walker, stations)


def _stations(gateway: Host) -> tuple[Station, ...]:
    def mac(device: str) -> str:
        return gateway.read(f"/sys/class/net/{device}/address").strip()

    farm, atlas, store = mac("b-cms-farm"), mac("b-atlas-farm"), mac("b-atlas-store")
    cms = (farm, "10.9.0.1", "fd00:9::1")
    far = (atlas, "10.8.0.1", "fd00:8::1")
    twin = (mac("b-lhcb-farm"), "10.8.0.1", "fd00:8::1")
    wan = (mac("wan0"), "198.51.100.1", "2001:db8::1")
    found = [
        Station("tap3", "02:00:00:00:00:03", "10.9.0.3", "fd00:9::3", *cms),
        Station("tap4", "02:00:00:00:00:04", "10.9.0.4", "fd00:9::4", *cms),
        Station("tap5", "02:00:00:00:00:05", "10.8.0.5", "fd00:8::5", *far),
        Station("tap6", "02:00:00:00:00:06", "10.8.0.6", "fd00:8::6", *far),
        Station("tap7", "02:00:00:00:00:07", "10.8.1.7", "fd00:88::7", store, "10.8.1.1", "::1"),
        Station("tap8", "02:00:00:00:00:08", "10.8.0.8", "fd00:8::8", *twin),
        Station("tap9", "02:00:00:00:00:09", "10.8.0.9", "fd00:8::9", *twin),
        Station("wan0", "02:00:00:00:01:fe", "198.51.100.254", "2001:db8::254", *wan),
        Station("ext0", "02:00:00:00:02:02", "192.168.77.2", "2001:db8:77::2",
                mac("ext0"), "192.168.77.1", "2001:db8:77::1"),
    ]  # fmt: skip
    if not PLAIN:
        found += [
            Station("lan0", "02:00:00:00:00:10", "10.9.0.10", "fd00:9::10", *cms, tag=101),
            Station("lan0", "02:00:00:00:00:11", "10.8.0.10", "fd00:8::10", *far, tag=102),
        ]
    return tuple(found)


def _know(gateway: Host, stations: tuple[Station, ...]) -> None:
    """The gateway knows every station, so that nothing waits for an answer nobody gives."""
    bridges = {"tap3": "b-cms-farm", "tap4": "b-cms-farm", "tap5": "b-atlas-farm",
               "tap6": "b-atlas-farm", "tap7": "b-atlas-store", "tap8": "b-lhcb-farm",
               "tap9": "b-lhcb-farm"}  # fmt: skip
    lines = ["for d in /sys/class/net/b-*; do echo 0 > $d/bridge/ageing_time; done"]
    for one in stations:
        device = bridges.get(one.enters, one.enters)
        port = one.enters
        if one.enters == "lan0":
            tenant = "cms" if one.tag == 101 else "atlas"
            device, port = f"b-{tenant}-farm", f"v-{tenant}-farm"
        lines += [
            f"ip neighbour replace {one.four} lladdr {one.mac} dev {device} nud permanent",
            # The host has no IPv6 where the network has none.
            (
                f"[ $(cat /proc/sys/net/ipv6/conf/{device}/disable_ipv6) = 1 ] || "
                f"ip neighbour replace {one.six} lladdr {one.mac} dev {device} nud permanent"
            ),
        ]
        if device != one.enters:
            lines.append(f"bridge fdb replace {one.mac} dev {port} master static")
    lines.append(
        "ip neighbour replace 192.168.77.9 lladdr 02:00:00:00:02:09 dev ext0 nud permanent"
    )
    gateway.script("; ".join(lines))


@pytest.mark.parametrize("seed", SEEDS)
def test_six_hundred_packets_come_out_where_the_walk_says(place: Place, seed: int) -> None:
    first = SEEDS.index(seed) * 2000
    generator = Generator(place.stations, FAR, seed, first)
    sent = [*generator.packets(600), *generator.honest(FAR[0])]
    walks, seen = _compared(place, sent)
    # Controls: both verdicts are there in numbers, and packets came out in every kind of place.
    delivered = [walk for walk in walks.values() if walk.exits]
    assert 100 < len(delivered) < len(sent) - 100
    assert {"host", "wan0", "tap3", "tap4", "tap6"} <= {d for w in delivered for d in w.devices}
    # The answers find their way back, also to networks with the same addresses.
    answers = [*_answers(place, sent, seen, first + 1000)]
    assert len(answers) > 20
    walks, _seen_answers = _compared(place, answers)
    back = {device for walk in walks.values() for device in walk.devices}
    assert {"tap3", "tap5", "tap8", "tap9"} <= back


def _compared(place: Place, sent: list[Sent]) -> tuple[dict[int, Walk], dict[int, Seen]]:
    seen = place.wires.send(sent)
    walks = {one.number: place.walker.walk(one.packet, one.enters, place.flows) for one in sent}
    wrong = [
        _story(one, walks[one.number], seen.get(one.number))
        for one in sent
        if _exits(walks[one.number]) != _seen(seen.get(one.number))
    ]
    assert not wrong, f"{len(wrong)} of {len(sent)} disagree:\n" + "\n".join(wrong[:5])
    return walks, seen


def _answers(place: Place, sent: list[Sent], seen: dict[int, Seen], first: int) -> Iterator[Sent]:
    """From outside, to what came out there."""
    for number, one in enumerate(sent, first):
        for frame in seen[one.number].frames.get("wan0", ()) if one.number in seen else ():
            packet = answer(frame, one, number)
            if packet is not None:
                yield Sent(number, "wan0", packet)
                break


def test_a_capture_has_what_passed_and_nothing_else(place: Place) -> None:
    """Behind the bridge's filters: what they drop is not seen there."""
    tap3, tap4 = place.stations[0], place.stations[1]
    honest = Described(tap3.four, tap4.four, "udp", mac=tap3.mac, to_mac=tap4.mac, dport=53)
    packets = [
        replace(honest, payload=numbered(900001)),
        replace(honest, payload=numbered(900002), dport=54),
        replace(honest, payload=numbered(900003), mac="02:00:00:00:00:99"),
        replace(honest, payload=numbered(900004)),
    ]
    capture = place.gateway.inside(lambda: Capture("b-cms-farm", filter_="udp port 53"))
    with capture:
        place.wires.send([Sent(n, "tap3", build(p)) for n, p in enumerate(packets)])
        limits = iter([5.0, 5.0, 0.0])
        frames = [*capture.frames(lambda: next(limits))]
    assert [f.data for f in frames] == [build(packets[0]).frame, build(packets[3]).frame]
    assert all(f.length == len(f.data) and f.time_ns > 0 for f in frames)


def _exits(walk: Walk) -> frozenset[str]:
    """Where it came out, from whom and to whom: the addresses as NAT left them."""
    return frozenset(
        "host" if each.device == "host" else f"{_wire(each.device)} {_ends(each.packet)}"
        for each in walk.exits
    )


def _wire(device: str) -> str:
    """The wire that what leaves by a tunnel is seen on."""
    return "wan0" if device.startswith("t-") else device


def _seen(seen: Seen | None) -> frozenset[str]:
    if seen is None:
        return frozenset()
    return frozenset(
        f"{device} {_ends(packet)}" if device != "host" else device
        for device, packets in seen.frames.items()
        for packet in packets
    )


def _ends(packet: Packet) -> str:
    return f"{packet.ip.source} > {packet.ip.destination}" if packet.ip else packet.source


def _story(sent: Sent, walk: Walk, seen: Seen | None) -> str:
    lines = [
        f"#{sent.number} into {sent.enters}: {describe(sent.packet)}",
        f"   {sent.packet.frame[:60].hex()}",
        f"   kernel: {sorted(_seen(seen)) or 'nowhere'}; walk: {sorted(_exits(walk)) or 'nowhere'}",
    ]
    lines += [f"      {hop.where} {hop.device}: {hop.words} {hop.verdict}" for hop in walk.hops]
    return "\n".join(lines)
