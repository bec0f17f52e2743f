"""DHCP, router advertisements and DNS on a real kernel, with the clients that people have."""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from dvn import located
from dvn.engine import Engine
from dvn.ipam import Span, choose
from dvn.services import names
from dvn.services.process import RUN
from dvn.spec import Site, parse_site
from lab.hosts import Lab
from lab.net import build
from lab.process import wait_for
from lab.topology import Link, Machine, Topology

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

PINNED, FREE = "02:00:00:00:00:03", "02:00:00:00:00:04"
MTU = 1458
RANGE = Span(ipaddress.ip_address("10.9.0.50"), ipaddress.ip_address("10.9.0.51"))
SITE = f"""
site: cnaf
underlay: {{interface: lan0, address: 10.7.0.1}}
tenants:
  cms:
    networks:
      farm:
        prefix: [10.9.0.0/24, "fd00:9::/64"]
        dhcp: {{range: [10.9.0.50, 10.9.0.51], domain: farm.example}}
        ports:
          - {{interface: tap1, mac: "{PINNED}", address: [10.9.0.33, "fd00:9::33"]}}
          - {{interface: tap2}}
      plain: {{prefix: 10.8.0.0/24, ports: [{{interface: tap3}}]}}
"""
# What busybox's client learns, one word a line.
TELL = """#!/bin/sh
[ "$1" = bound ] && echo "$ip $router $dns $mtu $domain $lease" > /tmp/told
exit 0
"""


class Place:
    """pinned ── tap1 gw tap2 ── free; plain ── tap3: a network without DHCP. `site` resolves."""

    def __init__(self, lab: Lab) -> None:
        ends = {"pinned": "tap1", "free": "tap2", "plain": "tap3"}
        nodes = [Machine(name) for name in ends]
        gw = Machine("gw", {"lan0": "10.7.0.1/24"}, forward=True)
        site = Machine("site", {"eth0": "10.7.0.10/24"})
        links = [Link(f"gw:{tap}", f"{name}:eth0") for name, tap in ends.items()]
        links.append(Link("gw:lan0", "site:eth0"))
        self.hosts = build(lab, Topology(nodes=(gw, site, *nodes), links=tuple(links)))
        for name, mac in (("pinned", PINNED), ("free", FREE)):
            self.hosts[name].script(f"ip link set eth0 address {mac}")
            self.hosts[name].write("/tmp/tell", TELL, mode=0o755)
        self.hosts["gw"].write("/etc/resolv.conf", "nameserver 10.7.0.10\n")
        self.site = parse_site(located.loads(SITE))
        self.engine = Engine()

    def apply(self, site: Site | None = None) -> tuple[str, ...]:
        wanted = site or self.site
        return self.hosts["gw"].inside(lambda: self.engine.apply(wanted)).steps

    def plan(self) -> tuple[str, ...]:
        """By one that remembers nothing."""
        return self.hosts["gw"].inside(lambda: Engine().plan(self.site)).lines()

    def pid(self) -> str:
        """Of the serving process, as the gateway counts."""
        return self.gw(f"pgrep -f 'dvn.services.[s]erver {RUN}/cnaf'").strip()

    def gw(self, script: str) -> str:
        return self.hosts["gw"].script(script).stdout

    def lease(self, name: str, *options: str) -> list[str]:
        """address, router, resolver, MTU, domain, seconds; [] without an answer."""
        host = self.hosts[name]
        client = ("busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "2", "-T", "2")
        host.script("rm -f /tmp/told")
        host.run(*client, "-s", "/tmp/tell", *options, check=False)
        return host.script("cat /tmp/told || true").stdout.split()

    def has(self, name: str, *addresses: str) -> None:
        commands = [f"ip address add {address} dev eth0 nodad" for address in addresses]
        self.hosts[name].script("; ".join(["ip address flush dev eth0 scope global", *commands]))

    def asks(self, name: str, question: str, *, tcp: bool = False) -> bytes:
        labels = names.packed_name(question)
        data = struct.pack("!HHHHHH", 9, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!HH", 1, 1)
        kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM

        def ask() -> bytes:
            with socket.socket(socket.AF_INET, kind) as sock:
                sock.settimeout(10)
                sock.connect(("10.9.0.1", 53))
                sock.send(struct.pack("!H", len(data)) + data if tcp else data)
                return sock.recv(1000)[2 if tcp else 0 :]

        return self.hosts[name].inside(ask)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Lab() as lab:
        place = Place(lab)
        place.apply()
        yield place


def test_what_the_file_says_is_what_machines_get(place: Place) -> None:
    assert place.apply() == ()
    told = place.lease("pinned")
    assert told == ["10.9.0.33", "10.9.0.1", "10.9.0.1", str(MTU), "farm.example", "3600"]
    assert ipaddress.ip_address(place.lease("free")[0]) in RANGE
    # The control of the filters: where nothing is served, nobody answers.
    place.hosts["plain"].write("/tmp/tell", TELL, mode=0o755)
    assert place.lease("plain", "-t", "1", "-T", "1") == []


def test_ipv6_machines_find_the_router_and_an_address(place: Place) -> None:
    host = place.hosts["pinned"]
    host.script(  # the lab's hosts do nothing of this by themselves
        "echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra; ip address add fe80::3/64 dev eth0"
    )
    routes = "ip -6 route show default"
    wait_for(lambda: "via fe80::" in host.script(routes).stdout, 20, what="a router")
    assert host.script("cat /proc/sys/net/ipv6/conf/eth0/mtu").stdout.strip() == str(MTU)
    assert "fd00:9:" not in host.script("ip -6 address show dev eth0").stdout  # by DHCPv6 alone
    host.run("dhclient", "-6", "-1", "-sf", "/bin/true", "-lf", "/tmp/l6", "-pf", "/tmp/p6", "eth0")
    leases = host.script("cat /tmp/l6; kill $(cat /tmp/p6)").stdout
    assert "iaaddr fd00:9::33" in leases
    assert "dhcp6.name-servers fd00:9::1" in leases


def test_leases_outlive_the_process(place: Place) -> None:
    """Killed, it is missed and started again, and gives nobody what another has."""
    mine = place.lease("free")[0]
    place.gw(f"kill -9 {place.pid()}")
    assert any(line.startswith("+ service of b-cms-farm") for line in place.plan())
    place.apply()
    assert place.plan() == ()
    # One who would get it from a server that knows nothing.
    rival = next(
        f"01{number:012x}"
        for number in range(100)
        if str(choose(RANGE, f"4:01{number:012x}", (), {})) == mine
    )
    assert place.lease("free", "-x", f"0x3d:{rival}")[0] != mine
    assert place.lease("free")[0] == mine


def test_a_bridge_made_again_is_served_again(place: Place) -> None:
    pid = place.pid()
    place.gw("ip link delete b-cms-farm")
    place.apply()
    assert place.pid() == pid
    assert place.lease("pinned")[0] == "10.9.0.33"


@pytest.mark.long
def test_an_address_in_use_is_not_given(place: Place) -> None:
    place.hosts["gw"].inside(lambda: place.engine.destroy("cnaf"))
    place.gw("rm -r /var/lib/dvn/cnaf")
    place.apply()
    first = choose(RANGE, f"4:01{FREE.replace(':', '')}", (), {})
    other = RANGE.last if first == RANGE.first else RANGE.first
    # Not the kernel's own answer on `pinned`: its filter lets it claim nothing else.
    place.gw("nft flush chain bridge dvn-cnaf isolation")
    place.has("pinned", f"{first}/24")
    try:
        assert place.lease("free")[0] == str(other)
    finally:
        place.has("pinned")
        place.apply()


@pytest.mark.long
def test_names(place: Place) -> None:
    """Its own, those of machines, and by the host's resolver all others."""
    place.lease("free", "-x", "hostname:worker7")
    place.has("free", f"{place.lease('free', '-x', 'hostname:worker7')[0]}/24")
    for tcp in (False, True):
        assert place.asks("free", "gateway.farm.example", tcp=tcp)[-4:] == bytes((10, 9, 0, 1))
    assert place.asks("free", "worker7.farm.example")[-4:-1] == bytes((10, 9, 0))
    assert place.asks("free", "nobody.farm.example")[3] & 0x0F == names.NO_NAME

    def resolver(sock: socket.socket) -> None:
        data, source = sock.recvfrom(1000)
        asked = names.question(data)
        assert asked is not None
        sock.sendto(names.response(asked, 0, (ipaddress.ip_address("192.0.2.80"),)), source)

    def listen() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("10.7.0.10", 53))
        return sock

    with place.hosts["site"].inside(listen) as upstream:
        thread = threading.Thread(target=resolver, args=(upstream,), daemon=True)
        thread.start()
        answer = place.asks("free", "www.example.org")
        thread.join(10)
    assert answer[:2] == b"\0\x09"
    assert answer[-4:] == bytes((192, 0, 2, 80))


def test_a_change_is_told_and_the_end_leaves_nothing(place: Place) -> None:
    pid = place.pid()
    longer = parse_site(located.loads(SITE.replace("domain: farm.example", "lease: 2h")))
    assert [step[:23] for step in place.apply(longer)] == ["~ service of b-cms-farm"]
    assert place.pid() == pid
    assert place.lease("pinned")[-1] == "7200"
    place.hosts["gw"].inside(lambda: place.engine.destroy("cnaf"))
    assert place.gw(f"ls -d /proc/{pid} {RUN}/cnaf 2>/dev/null || true") == ""
    assert "leases" in place.gw("ls /var/lib/dvn/cnaf/services")
