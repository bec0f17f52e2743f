"""A small site for kernel tests, and how to try it.

cms:   head 10.9.0.10 ──┐ VLAN 101                          ┌── cloud 203.0.113.7
                        tor ══802.1Q══ gw ──198.51.100.0/24── internet (192.0.2.1)
atlas: disk 10.8.0.10 ──┘ VLAN 102  │  └─ gretap key 42 ────┘   inner 10.9.0.101
                                    └─ ext0 ── stranger 192.168.77.2, who is not ours
"""

from __future__ import annotations

import threading
from contextlib import suppress

from dvn import located
from dvn.engine import Engine
from dvn.spec import Site, parse_site
from dvn.status import Applied
from lab.host import Host
from lab.hosts import Lab
from lab.net import build
from lab.topology import Access, Link, Machine, Router, Switch, Topology, Trunk

SITE = """
site: cnaf
host: gw
underlay: {interface: wan0, address: 198.51.100.1}
tenants:
  cms:
    networks:
      farm:
        prefix: [10.9.0.0/24, "fd00:9::/64"]
        vlan: {id: 101, uplink: lan0}
        access: open
        nat: {snat: 198.51.100.10}
        services: [tcp/22]
    tunnels:
      bari: {network: farm, remote: 203.0.113.7, key: 42, transport: plain}
  atlas:
    networks:
      disk:
        prefix: 10.8.0.0/24
        vlan: {id: 102, uplink: lan0}
        nat: {snat: 198.51.100.11}
      closed: {prefix: 10.8.1.0/24, vlan: {id: 103, uplink: lan0}}
"""
OUTSIDE = "192.0.2.1"
CLOUD_TUNNEL = (
    "ip link add dvn0 mtu 1458 type gretap local 203.0.113.7 remote 198.51.100.1 key {key} "
    "ttl 64 nopmtudisc ignore-df && ip address add 10.9.0.101/24 dev dvn0 && ip link set dvn0 up"
)


def topology() -> Topology:
    ends = {"head": ("10.9.0", 101), "disk": ("10.8.0", 102), "shut": ("10.8.1", 103)}
    access = {name: Access(vlan) for name, (_net, vlan) in ends.items()}
    machines = [
        Machine(name, {"eth0": f"{net}.10/24"}, {"default": f"{net}.1"})
        for name, (net, _vlan) in ends.items()
    ]
    return Topology(
        nodes=(
            *machines,
            Switch("tor", {**access, "gw": Trunk((101, 102, 103))}),
            Machine(
                "gw",
                {"wan0": "198.51.100.1/24", "ext0": "192.168.77.1/24"},
                {"default": "198.51.100.254"},
            ),
            Machine("stranger", {"eth0": "192.168.77.2/24"}, {"default": "192.168.77.1"}),
            Router("internet", {"site": "198.51.100.254/24", "cloud": "203.0.113.254/24"}),
            Machine("cloud", {"eth0": "203.0.113.7/24"}, {"default": "203.0.113.254"}),
        ),
        links=(
            *(Link(f"{name}:eth0", f"tor:{name}") for name in ends),
            Link("tor:gw", "gw:lan0"),
            Link("gw:wan0", "internet:site"),
            Link("gw:ext0", "stranger:eth0"),
            Link("internet:cloud", "cloud:eth0"),
        ),
    )


class Place:
    """The hosts, and an engine in the gateway."""

    def __init__(self, lab: Lab) -> None:
        self.hosts = build(lab, topology())
        self.site = parse_site(located.loads(SITE))
        self.engine = Engine()
        self.hosts["internet"].script(f"ip address add {OUTSIDE}/32 dev lo")
        self.hosts["cloud"].script(CLOUD_TUNNEL.format(key=42))

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def apply(self, site: Site | None = None) -> Applied:
        wanted = site or self.site
        return self["gw"].inside(lambda: self.engine.apply(wanted))

    def plan(self) -> tuple[str, ...]:
        return self["gw"].inside(lambda: self.engine.plan(self.site)).lines()

    def gw(self, script: str) -> str:
        return self["gw"].script(script).stdout

    def pings(self, source: str, target: str, *options: str) -> bool:
        """Whether one of two echo requests is answered."""
        argv = ["ping", "-n", "-q", "-c", "1", "-W", "1", *options, target]
        return any(self[source].run(*argv, check=False).returncode == 0 for _ in range(2))

    def connects(self, source: str, server: str, address: str, port: int = 5001) -> str | None:
        """The source address a server sees of a TCP connection; None if there is none."""
        with self[server].listen("0.0.0.0" if "." in address else "::", port) as listener:
            listener.settimeout(10)
            try:
                with self[source].connect(address, port, timeout=3):
                    connection, peer = listener.accept()
                    connection.close()
            except OSError:
                return None
            return str(peer[0])

    def transfers(self, source: str, server: str, address: str, size: int) -> bool:
        """Whether `size` bytes go to the server and come back as they were."""
        data = bytes(range(256)) * (size // 256)
        with self[server].listen("0.0.0.0", 5002) as listener:

            def echo() -> None:
                with suppress(OSError):
                    connection, _peer = listener.accept()
                    with connection:
                        connection.settimeout(30)
                        got = bytearray()
                        while len(got) < len(data):
                            got += connection.recv(1 << 16)
                        connection.sendall(bytes(got))

            server_thread = threading.Thread(target=echo, daemon=True)
            server_thread.start()
            with self[source].connect(address, 5002, timeout=10) as client:
                client.settimeout(30)
                client.sendall(data)
                back = bytearray()
                while len(back) < len(data):
                    piece = client.recv(1 << 16)
                    if not piece:
                        break
                    back += piece
            server_thread.join(5)
        return bytes(back) == data
