"""What packets feel of it: NAT and filters with few and with many entries, and the tunnels."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

from bench.converge.content import ADDRESS, SITE, UNDERLAY, make_site
from dvn.engine import Engine
from dvn.kernel.diff import diff
from dvn.kernel.linux import LinuxKernel
from dvn.kernel.state import KernelState
from dvn.spec import Port, Site
from lab import linux
from lab.host import Host
from lab.hosts import Lab
from lab.net import build
from lab.topology import Link, Machine, Topology

_INSIDE, _GATEWAY, _OUTSIDE = "10.0.0.9", "10.0.0.1", "198.51.100.2"
_SMALL = 64  # bytes of UDP data: packets a second, not bytes, are what is counted
_PREPARE = """
sysctl -q -w net.ipv4.conf.all.rp_filter=0
"""


def nat_paths(few: int, many: int, runs: int, seconds: int) -> dict[str, Any]:
    """TCP bit/s and small UDP packets/s through two gateways that differ in the number of NAT
    entries alone, in turn."""
    found: dict[str, Any] = {"few": few, "many": many}
    with Lab() as lab:
        hosts = build(lab, _two_gateways())
        for name, count in (("few", few), ("many", many)):
            found[f"{name}_elements"] = _filled(hosts[f"gw-{name}"], count)
            hosts[f"out-{name}"].script("ip route add 192.0.2.0/24 via " + ADDRESS)
        rows = {
            name: _Pair(hosts[f"in-{name}"], hosts[f"out-{name}"], _OUTSIDE)
            for name in ("few", "many")
        }
        found |= _in_turn(rows, runs, seconds)
    found["tcp_ratio"] = median(found["many_tcp"]) / median(found["few_tcp"])
    found["udp_ratio"] = median(found["many_udp"]) / median(found["few_udp"])
    return found


def tunnel_paths(runs: int, seconds: int) -> dict[str, Any]:
    """The same between two hosts on one cable: plain, through gretap, through WireGuard."""
    with Lab() as lab:
        hosts = build(lab, _two_hosts())
        one, two = hosts["one"], hosts["two"]
        for host, own, other, number in ((one, 1, 2, 1), (two, 2, 1, 2)):
            host.script(
                f"ip link add gre type gretap local 192.0.2.{own} remote 192.0.2.{other} key 7 "
                f"ttl 64 nopmtudisc ignore-df && ip link set gre mtu 1458 up && "
                f"ip address add 10.1.0.{number}/24 dev gre"
            )
        _wireguard(one, two)
        rows = {
            "plain": _Pair(one, two, "192.0.2.2"),
            "gretap": _Pair(one, two, "10.1.0.2"),
            "wireguard": _Pair(one, two, "10.2.0.2"),
        }
        return _in_turn(rows, runs, seconds)


class _Pair:
    def __init__(self, client: Host, server: Host, address: str) -> None:
        self.client, self.server, self.address = client, server, address


def _in_turn(rows: dict[str, _Pair], runs: int, seconds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number in range(runs):
        for name, pair in sorted(rows.items(), reverse=bool(number % 2)):
            found.setdefault(f"{name}_tcp", []).append(_tcp(pair, seconds))
            found.setdefault(f"{name}_udp", []).append(_udp(pair, seconds))
    return found


def _tcp(pair: _Pair, seconds: int) -> float:
    """bit/s that arrived."""
    end = _iperf(pair, seconds)["end"]
    return float(end["sum_received"]["bits_per_second"])


def _udp(pair: _Pair, seconds: int) -> float:
    """Packets/s that arrived."""
    end = _iperf(pair, seconds, "-u", "-l", str(_SMALL), "-b", "0")["end"]["sum"]
    return float((end["packets"] - end["lost_packets"]) / end["seconds"])


def _iperf(pair: _Pair, seconds: int, *options: str) -> Any:
    with _server(pair.server):
        argv = ("iperf3", "-J", "-c", pair.address, "-t", str(seconds), *options)
        for _attempt in range(20):
            done = pair.client.run(*argv, check=False, timeout=60)
            answer = json.loads(done.stdout or "{}")
            # Without its sums an answer is no measurement: the server's never came.
            if done.returncode == 0 and {"sum", "sum_received"} & answer.get("end", {}).keys():
                return answer
            time.sleep(0.2)  # the server is not there yet
    raise RuntimeError(f"iperf3: {answer.get('error')}")


@contextmanager
def _server(host: Host) -> Iterator[None]:
    process = host.spawn("iperf3", "-s", "-1")
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _two_gateways() -> Topology:
    nodes: list[Machine] = []
    links: list[Link] = []
    for name in ("few", "many"):
        nodes += [
            Machine(f"in-{name}", {"eth0": f"{_INSIDE}/24"}, {"default": _GATEWAY}),
            Machine(f"gw-{name}", {UNDERLAY: f"{ADDRESS}/24"}),
            Machine(f"out-{name}", {"eth0": f"{_OUTSIDE}/24"}),
        ]
        links += [
            Link(f"in-{name}:eth0", f"gw-{name}:tap0"),
            Link(f"gw-{name}:{UNDERLAY}", f"out-{name}:eth0"),
        ]
    return Topology(nodes=tuple(nodes), links=tuple(links))


def _two_hosts() -> Topology:
    return Topology(
        nodes=(
            Machine("one", {"eth0": "192.0.2.1/24"}),
            Machine("two", {"eth0": "192.0.2.2/24"}),
        ),
        links=(Link("one:eth0", "two:eth0"),),
    )


def _filled(gateway: Host, count: int) -> int:
    """A gateway with the rules and elements of `count` networks and the devices of the first: the
    others' would take long to make, and no packet meets them."""
    site = _with_port(make_site(count, tunnels=False))

    def fill() -> int:
        kernel = LinuxKernel()
        state = Engine(kernel).compiled(site)
        names = {link.name for link in state.links if link.alias.endswith("t0/n0")}
        others = {link.name for link in state.links} - names
        own = replace(
            state,
            links=tuple(link for link in state.links if link.name in names),
            addresses=tuple(a for a in state.addresses if a.link in {*names, UNDERLAY}),
            sysctls=tuple(s for s in state.sysctls if others.isdisjoint(s.key.split("/"))),
            things=tuple(thing for thing in state.things if thing.link not in others),
        )
        kernel.carry_out(diff(KernelState(), own).steps)
        return sum(len(each.elements) for table in own.tables for each in table.sets)

    # Not into its process ids: after that no thread starts, and many steps take one.
    return gateway.inside(fill, namespaces=linux.CLONE_NEWNET | linux.CLONE_NEWNS)


def _with_port(site: Site) -> Site:
    tenant = site.tenants["t0"]
    network = tenant.networks["n0"].model_copy(update={"ports": (Port(interface="tap0"),)})
    moved = tenant.model_copy(update={"networks": {**tenant.networks, "n0": network}})
    return site.model_copy(update={"tenants": {**site.tenants, "t0": moved}})


def _wireguard(one: Host, two: Host) -> None:
    keys = {}
    for host in (one, two):
        private = host.run("wg", "genkey").stdout.strip()
        public = host.run("wg", "pubkey", input=private).stdout.strip()
        keys[host] = (private, public)
    for host, other, own, far in ((one, two, 1, 2), (two, one, 2, 1)):
        host.write("/run/wg.key", keys[host][0] + "\n")
        host.script(
            "ip link add wg type wireguard && "
            f"wg set wg listen-port 51820 private-key /run/wg.key peer {keys[other][1]} "
            f"allowed-ips 10.2.0.0/24 endpoint 192.0.2.{far}:51820 && "
            f"ip address add 10.2.0.{own}/24 dev wg && ip link set wg mtu 1420 up"
        )


__all__ = ["SITE", "nat_paths", "tunnel_paths"]
