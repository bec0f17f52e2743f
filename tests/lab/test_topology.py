"""Declared networks: refused when they cannot work; built, they carry and hold back packets."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.host import Host
from lab.hosts import Lab
from lab.net import build, capture, counters
from lab.process import LabError
from lab.topology import (
    Access,
    Link,
    Machine,
    NatBox,
    Router,
    Switch,
    Topology,
    TopologyError,
    Trunk,
)

HERE = Machine("here", {"eth0": "10.0.0.1/24"})
THERE = Machine("there", {"eth0": "10.0.0.2/24"})
CABLE = Link("here:eth0", "there:eth0")


def test_a_topology_that_works_is_accepted() -> None:
    topology = Topology((HERE, THERE), (CABLE,))
    assert topology.node("there") is THERE


@pytest.mark.parametrize(
    ("nodes", "links", "problem"),
    [
        ((HERE, HERE), (), "2 nodes are called here"),
        ((HERE,), (CABLE,), "there is no node there"),
        ((HERE, THERE), (CABLE, CABLE), "here:eth0 is the end of 2 links"),
        ((HERE, THERE), (CABLE, Link("here", "there:b")), "write NODE:INTERFACE"),
        ((HERE, THERE), (Link("here:eth0", "there:eth0", mtu=10),), "mtu 10"),
        ((HERE, THERE), (Link("here:eth0", "there:sixteen-letters-"),), "1 to 15 bytes"),
        ((HERE,), (), "interface eth0 has addresses, but no link"),
        (
            (HERE, Machine("there", {"eth0": "10.0.0.300/24"})),
            (CABLE,),
            "there:eth0: '10.0.0.300/24' does not appear",
        ),
        ((HERE, Machine("there", {"eth0": "10.0.0.3"})), (CABLE,), "lacks its prefix length"),
        (
            (HERE, Machine("there", {"eth0": "10.0.0.2/24"}, {"default": "10.1.0.1"})),
            (CABLE,),
            "no interface is in the next hop's network",
        ),
        (
            (HERE, Machine("there", {"eth0": "10.0.0.2/24"}, {"default": "10.0.0.2"})),
            (CABLE,),
            "that is its own address",
        ),
        (
            (HERE, Machine("there", {"eth0": "10.0.0.2/24"}, {"fd00::/64": "10.0.0.1"})),
            (CABLE,),
            "one is IPv4, the other IPv6",
        ),
        ((HERE, Switch("there", {"eth0": Access(5000)})), (CABLE,), "VLAN id 5000"),
        ((HERE, Switch("there", {"eth0": Trunk((1, 0))})), (CABLE,), "VLAN id 0"),
        ((HERE, Switch("there", {})), (CABLE,), "port eth0 has a link, but no Access or Trunk"),
        (
            (HERE, Switch("there", {"eth0": Access(5), "p9": Access(5)})),
            (CABLE,),
            "port p9 has no link",
        ),
        ((HERE, Router("there", count=(("eth0", "eth7"),))), (CABLE,), "count at eth7"),
        ((HERE, NatBox("there", inside="eth0")), (CABLE,), "interface outside has no link"),
        (
            (HERE, NatBox("there", inside="eth0", outside="eth0", one_to_one={"x": "10.0.0.1"})),
            (CABLE,),
            "one_to_one: Expected 4 octets",
        ),
    ],
)
def test_a_topology_that_cannot_work_says_why(
    nodes: tuple[Machine, ...], links: tuple[Link, ...], problem: str
) -> None:
    with pytest.raises(TopologyError, match="the topology cannot be built") as caught:
        Topology(nodes, links)
    assert any(problem in text for text in caught.value.problems), caught.value.problems


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(TopologyError) as caught:
        Topology((HERE, HERE), (Link("here:eth0", "nowhere:eth0", mtu=1),))
    assert len(caught.value.problems) == 3


# An internet with a site behind a switch, and a home behind a NAT box.
INTERNET = Topology(
    nodes=(
        Machine("a", {"eth0": "10.9.0.11/24"}, {"default": "10.9.0.1"}),
        Machine("b", {"eth0": "10.9.0.12/24"}),
        Machine("c", {"eth0": "10.9.0.13/24"}),
        Switch(
            "switch",
            {"p1": Access(101), "p2": Access(101), "p3": Access(102), "up": Trunk((101, 102))},
        ),
        Machine(
            "gw",
            {"wan0": ("198.51.100.1/24", "fd00:51::1/64")},
            {"default": "198.51.100.254", "fd00:c0::/64": "fd00:51::fe"},
            forward=True,
        ),
        Router(
            "internet",
            {
                "site": ("198.51.100.254/24", "fd00:51::fe/64"),
                "cloud": ("203.0.113.254/24", "fd00:c0::fe/64"),
                "home": "192.0.2.254/24",
            },
            {"10.9.0.0/24": "198.51.100.1"},
            count=(("site", "cloud"),),
        ),
        Machine(
            "server",
            {"eth0": ("203.0.113.7/24", "fd00:c0::7/64")},
            {"default": "203.0.113.254", "fd00:51::/64": "fd00:c0::fe"},
        ),
        NatBox(
            "box",
            {"inside": "192.168.1.1/24", "outside": "192.0.2.1/24"},
            {"default": "192.0.2.254"},
            one_to_one={"192.0.2.20": "192.168.1.20"},
        ),
        Switch("hub", {"box": Access(1), "p1": Access(1), "p2": Access(1)}),
        Machine("laptop", {"eth0": "192.168.1.10/24"}, {"default": "192.168.1.1"}),
        Machine("public", {"eth0": "192.168.1.20/24"}, {"default": "192.168.1.1"}),
    ),
    links=(
        Link("a:eth0", "switch:p1"),
        Link("b:eth0", "switch:p2"),
        Link("c:eth0", "switch:p3"),
        Link("gw:lan0", "switch:up"),
        Link("gw:wan0", "internet:site"),
        Link("server:eth0", "internet:cloud"),
        Link("box:outside", "internet:home"),
        Link("box:inside", "hub:box"),
        Link("laptop:eth0", "hub:p1"),
        Link("public:eth0", "hub:p2"),
    ),
)


@pytest.fixture(scope="module")
def hosts() -> Iterator[dict[str, Host]]:
    with Lab() as lab:
        yield build(lab, INTERNET)


def pings(host: Host, address: str, *options: str) -> bool:
    """Whether one of up to three echo requests is answered, waiting one second for each."""
    result = host.run("ping", "-c3", "-i0.2", "-W1", "-w3", *options, address, check=False)
    return " 0 received" not in result.stdout and result.returncode in (0, 1)


def reach(host: Host, listener: Host, address: str, port: int) -> str | None:
    """Connect by TCP; the peer address that the listener saw, None if nothing came."""
    with listener.listen("0.0.0.0", port) as server:  # all of a lab host, nothing of ours
        server.settimeout(3)
        try:
            with host.connect(address, port, timeout=3):
                return str(server.accept()[1][0])
        except OSError:
            return None


@pytest.mark.kernel
class TestPackets:
    def test_ping_across_a_router(self, hosts: dict[str, Host]) -> None:
        assert pings(hosts["gw"], "203.0.113.7")
        assert pings(hosts["gw"], "fd00:c0::7")

    def test_nothing_goes_where_no_route_leads(self, hosts: dict[str, Host]) -> None:
        assert pings(hosts["a"], "10.9.0.12")  # the positive control
        assert not pings(hosts["b"], "203.0.113.7")  # it has no default route

    def test_a_switch_keeps_vlans_apart(self, hosts: dict[str, Host]) -> None:
        a, c = hosts["a"], hosts["c"]
        assert pings(a, "10.9.0.12")
        assert not pings(a, "10.9.0.13")
        # The same two hosts, when the port is moved to the VLAN: it was the VLAN that held it.
        move = "bridge vlan del dev p3 vid $1; bridge vlan add dev p3 vid $2 pvid untagged"
        hosts["switch"].script(move, "102", "101")
        try:
            a.run("ip", "neigh", "flush", "all")
            assert pings(a, "10.9.0.13")
        finally:
            hosts["switch"].script(move, "101", "102")
        a.run("ip", "neigh", "flush", "all")
        c.run("ip", "neigh", "flush", "all")
        assert not pings(a, "10.9.0.13")

    def test_a_trunk_carries_its_vlans_tagged(self, hosts: dict[str, Host]) -> None:
        gw = hosts["gw"]
        gw.script("""
            ip link add link lan0 name lan0.101 type vlan id 101
            ip link set lan0.101 up
            ip address add 10.9.0.1/24 dev lan0.101
        """)
        assert pings(hosts["a"], "10.9.0.1")
        assert not pings(hosts["c"], "10.9.0.1")
        assert pings(hosts["a"], "203.0.113.7")  # by gw and the internet

    def test_masquerade_shows_the_box(self, hosts: dict[str, Host]) -> None:
        assert reach(hosts["laptop"], hosts["server"], "203.0.113.7", 5001) == "192.0.2.1"

    def test_one_to_one_works_both_ways(self, hosts: dict[str, Host]) -> None:
        assert reach(hosts["public"], hosts["server"], "203.0.113.7", 5002) == "192.0.2.20"
        assert reach(hosts["server"], hosts["public"], "192.0.2.20", 5003) == "203.0.113.7"

    def test_nobody_gets_in_uninvited(self, hosts: dict[str, Host]) -> None:
        server, laptop = hosts["server"], hosts["laptop"]
        server.run("ip", "route", "add", "192.168.1.0/24", "via", "203.0.113.254")
        hosts["internet"].run("ip", "route", "add", "192.168.1.0/24", "via", "192.0.2.1")
        try:
            assert reach(server, laptop, "192.168.1.10", 5004) is None
            hosts["box"].run("nft", "delete", "chain", "ip", "lab_nat", "forward")
            assert reach(server, laptop, "192.168.1.10", 5004) is not None  # the control
        finally:
            server.run("ip", "route", "del", "192.168.1.0/24")
            hosts["internet"].run("ip", "route", "del", "192.168.1.0/24")

    def test_a_router_counts_by_protocol(self, hosts: dict[str, Host]) -> None:
        gw, server, internet = hosts["gw"], hosts["server"], hosts["internet"]
        for host, own, other, inner in (
            (gw, "198.51.100.1", "203.0.113.7", "172.16.0.1/30"),
            (server, "203.0.113.7", "198.51.100.1", "172.16.0.2/30"),
        ):
            host.script(
                """
                ip link add g1 type gretap local $1 remote $2 key 7
                ip link set g1 up
                ip address add $3 dev g1
                """,
                *(own, other, inner),
            )
        before = counters(internet)
        gw.run("ping", "-c5", "-i0.01", "-s100", "172.16.0.2")
        after = counters(internet)
        grown = after["gre"].packets - before["gre"].packets
        assert grown >= 10, after
        # IPv4 20, GRE with key 8, Ethernet 14, IPv4 20, ICMP 8, data 100
        assert after["gre"].bytes - before["gre"].bytes >= 10 * 170
        assert after["icmp"] == before["icmp"]  # what is inside is not seen
        assert reach(gw, server, "203.0.113.7", 8443)
        assert counters(internet)["tls"].packets > before["tls"].packets
        assert reach(hosts["laptop"], server, "203.0.113.7", 5005)
        assert counters(internet)["tcp"] == before["tcp"]  # not between the counted links

    def test_a_capture_has_what_passed(self, hosts: dict[str, Host], tmp_path: Path) -> None:
        file = tmp_path / "cloud.pcap"
        with capture(hosts["internet"], "cloud", file, "icmp") as running:
            hosts["gw"].run("ping", "-c3", "-i0.01", "203.0.113.7")
        assert running.packets == 6
        assert pcap_packets(file) == 6
        assert [entry.name for entry in tmp_path.iterdir()] == ["cloud.pcap"]

    def test_a_capture_that_cannot_start_says_why(
        self, hosts: dict[str, Host], tmp_path: Path
    ) -> None:
        with (
            pytest.raises(LabError, match=r"internet:nowhere: tcpdump ended at once: .*nowhere"),
            capture(hosts["internet"], "nowhere", tmp_path / "x.pcap"),
        ):
            pass


def pcap_packets(file: Path) -> int:
    """How many packets a pcap file holds (libpcap's savefile format, pcap-savefile(5))."""
    data = file.read_bytes()
    assert struct.unpack_from("I", data)[0] == 0xA1B2C3D4
    at, packets = 24, 0
    while at < len(data):
        at += 16 + struct.unpack_from("I", data, at + 8)[0]
        packets += 1
    assert at == len(data)  # the last packet is whole
    return packets


@pytest.mark.kernel
def test_a_link_refused_by_the_kernel_is_named() -> None:
    with Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.link(a, "eth0", b, "eth0")
        with pytest.raises(LabError, match="link a:eth0 - b:eth1: File exists"):
            lab.link(a, "eth0", b, "eth1")
