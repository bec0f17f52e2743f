"""Two tenants who have the same addresses, and how to talk as one of them.

red:   farm  10.7.0.10 ── VLAN 201 ──┐
       store 10.6.0.10 ── VLAN 203 ──┤                               ┌ 192.0.2.1 and 203.0.113.x
blue:  farm  10.7.0.10 ── VLAN 202 ──┴ tor ═802.1Q═ gw ─198.51.100.0/24─ internet
                                                    └─ ext0 ── office 192.168.77.2, the site
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from dvn.engine import Engine
from dvn.spec import Site, site_from_json
from dvn.status import Applied
from lab.host import Host
from lab.hosts import Lab
from lab.net import build
from lab.topology import Access, Link, Machine, Router, Switch, Topology, Trunk

INSIDE, STORE, OUTSIDE, SHARED = "10.7.0.10", "10.6.0.10", "192.0.2.1", "198.51.100.10"
OTHER = "198.51.100.11"
OWN = {"red": "198.51.100.21", "blue": "198.51.100.22"}
MACHINES = {"red": ("10.7.0", 201), "blue": ("10.7.0", 202), "store": ("10.6.0", 203)}
WAIT_S, LONG_S = 3.0, 20.0  # for what shall not happen, and for what shall


def site() -> dict[str, Any]:
    """As JSON, to be changed and read again."""

    def forward(protocol: str, port: int, to: int) -> dict[str, Any]:
        return {"protocol": protocol, "outside": SHARED, "port": port, "to": INSIDE, "to_port": to}

    def farm(vlan: int, number: int) -> dict[str, Any]:
        return {
            "prefix": ["10.7.0.0/24"],
            "vlan": {"id": vlan, "uplink": "lan0"},
            "nat": {
                "snat": [SHARED],
                "forward": [forward("tcp", 8080 + number, 80), forward("udp", 5300 + number, 53)],
            },
        }

    store = {"prefix": ["10.6.0.0/24"], "vlan": {"id": 203, "uplink": "lan0"}}
    return {
        "site": "cnaf",
        "underlay": {"interface": "wan0", "address": "198.51.100.1"},
        "tenants": {
            "red": {
                "networks": {"farm": farm(201, 1), "store": store},
                "policy": [{"from": "farm", "to": "store", "services": ["tcp/5001"]}],
            },
            "blue": {"networks": {"farm": farm(202, 2)}},
        },
    }


def topology() -> Topology:
    return Topology(
        nodes=(
            *(
                Machine(name, {"eth0": f"{net}.10/24"}, {"default": f"{net}.1"})
                for name, (net, _vlan) in MACHINES.items()
            ),
            Switch(
                "tor",
                {n: Access(vlan) for n, (_net, vlan) in MACHINES.items()}
                | {"gw": Trunk((201, 202, 203))},
            ),
            Machine(
                "gw",
                {"wan0": "198.51.100.1/24", "ext0": "192.168.77.1/24"},
                {"default": "198.51.100.254"},
            ),
            Machine("office", {"eth0": "192.168.77.2/24"}, {"default": "192.168.77.1"}),
            Router("internet", {"site": "198.51.100.254/24"}),
        ),
        links=(
            *(Link(f"{name}:eth0", f"tor:{name}") for name in MACHINES),
            Link("tor:gw", "gw:lan0"),
            Link("gw:wan0", "internet:site"),
            Link("gw:ext0", "office:eth0"),
        ),
    )


class Twins:
    """The hosts, and an engine in the gateway."""

    def __init__(self, lab: Lab) -> None:
        self.hosts = build(lab, topology())
        self.engine = Engine()
        self.hosts["internet"].script(f"ip address add {OUTSIDE}/32 dev lo")

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def apply(self, content: dict[str, Any] | None = None) -> Applied:
        wanted: Site = site_from_json(content or site())
        return self["gw"].inside(lambda: self.engine.apply(wanted))

    def plan(self, content: dict[str, Any] | None = None) -> tuple[str, ...]:
        wanted: Site = site_from_json(content or site())
        return self["gw"].inside(lambda: self.engine.plan(wanted)).lines()

    def gw(self, script: str) -> str:
        return self["gw"].script(script).stdout

    def tcp(self, name: str, to: tuple[str, int], source: tuple[str, int]) -> socket.socket:
        """A connection from a chosen address and port. OSError if there is none."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            made.settimeout(WAIT_S)
            # An end of another test may still wait out its last segments (RFC 9293, 3.6.1).
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                made.bind(source)
                made.connect(to)
            except OSError:
                made.close()
                raise
            return made

        return self[name].inside(make)

    def datagrams(self, name: str, address: str, port: int) -> socket.socket:
        return self._bound(name, socket.SOCK_DGRAM, 0, (address, port))

    def raw(self, name: str, protocol: int, address: str) -> socket.socket:
        """A socket of an IP protocol without ports."""
        return self._bound(name, socket.SOCK_RAW, protocol, (address, 0))

    def _bound(
        self, name: str, kind: socket.SocketKind, protocol: int, to: tuple[str, int]
    ) -> socket.socket:
        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, kind, protocol)
            made.settimeout(LONG_S)
            made.bind(to)
            return made

        return self[name].inside(make)


def echo_request(identity: int, payload: bytes) -> bytes:
    """RFC 792."""
    head = struct.pack("!BBHHH", 8, 0, 0, identity, 1)
    words = struct.unpack(f"!{len(head + payload) // 2}H", head + payload)
    total = sum(words)
    total = (total >> 16) + (total & 0xFFFF)
    total = ~(total + (total >> 16)) & 0xFFFF
    return struct.pack("!BBHHH", 8, 0, total, identity, 1) + payload


def passes(
    sender: socket.socket, receiver: socket.socket, data: bytes = b"still there", wait: float = 0
) -> bool:
    """Whether what one end of a connection sends arrives at the other within `wait` seconds."""
    receiver.settimeout(wait or LONG_S)
    try:
        sender.sendall(data)
    except (ConnectionResetError, BrokenPipeError):  # it was told that there is no connection
        return False
    return arrives(lambda: receiver.recv(len(data))) == data


def arrives(receive: Callable[[], bytes]) -> bytes:
    with suppress(OSError):
        return receive()
    return b""
