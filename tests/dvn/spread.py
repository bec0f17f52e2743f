"""Three hosts of one site on one wire, and machines of two tenants spread over them.

cms:   head ── gw ──┐            ┌── hv1 ── a1        10.9.0.10, .11, .12
                    lan ─────────┤
atlas:              │            └── hv2 ── a2
       internet ────┘   b1 at hv1, b2 at hv2: the same prefix, and the addresses of a1 and a2

`any1`, a machine of cms at hv1, is pinned to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from dvn import located
from dvn.engine import Engine
from dvn.hosts.slices import narrowed, slice_of
from dvn.spec import Site, parse_site
from dvn.status import Applied
from lab.host import Host
from lab.hosts import Lab
from lab.net import build
from lab.topology import Access, Link, Machine, Router, Switch, Topology

OUTSIDE = "192.0.2.1"
UNDERLAY = {"gw": "198.51.100.1", "hv1": "198.51.100.11", "hv2": "198.51.100.12"}
# machine: (host, its interface there, tenant, address)
MACHINES = {
    "head": ("gw", "tap0", "cms", "10.9.0.10"),
    "a1": ("hv1", "tap0", "cms", "10.9.0.11"),
    "a2": ("hv2", "tap0", "cms", "10.9.0.12"),
    "any1": ("hv1", "tap2", "cms", "10.9.0.13"),
    "b1": ("hv1", "tap1", "atlas", "10.9.0.11"),
    "b2": ("hv2", "tap1", "atlas", "10.9.0.12"),
}
SITE = """
site: cnaf
host: gw
underlay: {interface: wan0, address: 198.51.100.1}
fabric: {transport: plain, shape: SHAPE}
hosts:
  hv1: {underlay: {interface: wan0, address: 198.51.100.11}}
  hv2: {underlay: {interface: wan0, address: 198.51.100.12}}
tenants:
  cms:
    networks:
      farm:
        prefix: [10.9.0.0/24, "fd00:9::/64"]
        nat: {snat: 198.51.100.10}
        ports:
        - {interface: tap0, mac: "MAC:head", address: [10.9.0.10, "fd00:9::10"]}
        - {host: hv1, interface: tap0, mac: "MAC:a1", address: [10.9.0.11, "fd00:9::11"]}
        - {host: hv1, interface: tap2}
        - {host: hv2, interface: tap0, mac: "MAC:a2", address: [10.9.0.12, "fd00:9::12"]}
  atlas:
    networks:
      farm:
        prefix: 10.9.0.0/24
        nat: {snat: 198.51.100.10}
        ports:
        - {host: hv1, interface: tap1, mac: "MAC:b1", address: 10.9.0.11}
        - {host: hv2, interface: tap1, mac: "MAC:b2", address: 10.9.0.12}
"""


def mac_of(name: str) -> str:
    return f"02:00:00:00:01:{list(MACHINES).index(name):02x}"


def a_site(shape: str = "star") -> Site:
    return parse_site(located.loads(with_macs(SITE.replace("SHAPE", shape))))


def with_macs(text: str) -> str:
    for name in MACHINES:
        text = text.replace(f"MAC:{name}", mac_of(name))
    return text


def topology() -> Topology:
    def machine(name: str) -> Machine:
        _host, _interface, tenant, address = MACHINES[name]
        addresses = [f"{address}/24"]
        if tenant == "cms":
            addresses.append(f"fd00:9::{address.rpartition('.')[2]}/64")
        return Machine(name, {"eth0": addresses}, {"default": "10.9.0.1"})

    return Topology(
        nodes=(
            *(machine(name) for name in MACHINES),
            *(
                Machine(name, {"wan0": f"{address}/24"}, {"default": "198.51.100.254"})
                for name, address in UNDERLAY.items()
            ),
            Switch("lan", {name: Access(1) for name in (*UNDERLAY, "out")}),
            Router("internet", {"site": "198.51.100.254/24"}),
        ),
        links=(
            *(Link(f"{host}:wan0", f"lan:{host}") for host in UNDERLAY),
            Link("lan:out", "internet:site"),
            *(
                Link(f"{name}:eth0", f"{host}:{interface}")
                for name, (host, interface, _tenant, _address) in MACHINES.items()
            ),
        ),
    )


class Spread:
    """The hosts, each with an engine of its own."""

    def __init__(self, lab: Lab) -> None:
        self.hosts = build(lab, topology())
        self.engines = {name: Engine() for name in UNDERLAY}
        self.hosts["internet"].script(f"ip address add {OUTSIDE}/32 dev lo")
        for name in MACHINES:
            self.hosts[name].script(f"ip link set eth0 address {mac_of(name)}")

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def apply(self, site: Site) -> Mapping[str, Applied]:
        return dict(self._applied(site))

    def _applied(self, site: Site) -> Iterator[tuple[str, Applied]]:
        for name, engine in self.engines.items():
            part = site if name == "gw" else narrowed(slice_of(site, name))
            yield name, self[name].inside(partial(engine.apply, part))

    def pings(self, source: str, target: str, *options: str) -> bool:
        """Whether one of two echo requests is answered."""
        argv = ["ping", "-n", "-q", "-c", "1", "-W", "1", *options, target]
        return any(self[source].run(*argv, check=False).returncode == 0 for _ in range(2))
