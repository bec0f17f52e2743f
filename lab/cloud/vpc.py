"""The VPC fabric: one lab host per VPC is its router, its firewall and its internet gateway.

Each instance hangs on a veth of its own (MTU 9001); there is no wire that two instances share. The
router answers ARP for the others (proxy ARP) and knows every instance's MAC by itself, so neither
broadcast nor a forged ARP goes anywhere. The uplink `igw` leads to the lab's internet router with
1500 bytes. The rules are `lab.cloud.network.compile_rules`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

from lab.cloud import conntrack
from lab.cloud.imds import MetadataService
from lab.cloud.machines import Launch
from lab.cloud.metadata import Metadata
from lab.cloud.network import (
    METADATA,
    UPLINK,
    Hop,
    Vpc,
    compile_rules,
    hops,
    internet_targets,
    public_addresses,
)
from lab.host import Host, HostDownError, LabError
from lab.hosts import Lab

MTU = 9001  # AWS: "Network MTU for your EC2 instance"
INTERNET_MTU = 1500
INSTANCE_DEVICE = "ens5"  # what Nitro instances call it
LINKS = IPv4Network("100.64.0.0/16")  # between the routers; seen by nobody else

_SYSCTLS = {
    "net.ipv4.ip_forward": "1",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
    "net.ipv4.conf.all.send_redirects": "0",
    "net.ipv4.conf.default.send_redirects": "0",
    "net.ipv4.conf.default.proxy_arp": "1",
    "net.ipv4.icmp_ratelimit": "0",
    "net.ipv6.conf.all.disable_ipv6": "1",
    "net.ipv6.conf.default.disable_ipv6": "1",
}
# Seconds; AWS: "Amazon EC2 security group connection tracking", "Idle connection timeouts".
_TIMEOUTS = {
    "nf_conntrack_tcp_timeout_established": 350,
    "nf_conntrack_udp_timeout": 30,
    "nf_conntrack_udp_timeout_stream": 180,
    "nf_conntrack_gre_timeout": 600,
    "nf_conntrack_gre_timeout_stream": 600,
    "nf_conntrack_icmp_timeout": 600,
    "nf_conntrack_generic_timeout": 600,
}


class Router:
    """One VPC's netns, and what was last put into it."""

    def __init__(self, host: Host, uplink: str, metadata: MetadataService) -> None:
        self.host = host
        self.uplink = uplink  # the next hop for the internet router
        self.metadata = metadata
        self.rules = ""
        self.hops: tuple[Hop, ...] = ()
        self.targets: dict[str, str] = {}
        self.private: frozenset[str] = frozenset()

    def apply(self, vpc: Vpc) -> None:
        rules = compile_rules(vpc)
        if rules != self.rules:
            self.host.run("nft", "-f", "-", input=rules)
            if not self.rules:
                self.host.inside(_set_timeouts)
                # Where nobody is: no ARP answer, no way out (AWS: a VPC's prefixes are local).
                _batch(self.host, *(f"route replace blackhole {cidr}" for cidr in vpc.cidrs))
            self.rules = rules
        self._steer(hops(vpc))
        targets = internet_targets(vpc)
        private = frozenset(a for nic in vpc.interfaces for a in nic.addresses)
        changed = {p for p in self.targets if targets.get(p) != self.targets[p]}
        moved = {targets[p] for p in targets if self.targets.get(p) != targets[p]}
        stale = changed | moved | {self.targets[p] for p in changed} | (self.private - private)
        self.targets, self.private = targets, private
        if stale:
            self.host.inside(partial(conntrack.forget, stale))

    def _steer(self, wanted: tuple[Hop, ...]) -> None:
        """Policy routes for the routes whose target is an interface."""
        if wanted == self.hops:
            return
        lines = [f"rule del fwmark {hop.mark}" for hop in self.hops]
        lines += [f"route flush table {hop.mark}" for hop in self.hops]
        for hop in wanted:
            lines.append(f"rule add fwmark {hop.mark} lookup {hop.mark} priority 100")
            route = f"default via {hop.address} dev {hop.device} onlink table {hop.mark}"
            lines.append(f"route replace {route}")
        self.host.run("ip", "-force", "-batch", "-", input="\n".join(lines) + "\n", check=False)
        self.hops = wanted


def _set_timeouts() -> None:
    folder = Path("/proc/sys/net/netfilter")
    for name, seconds in _TIMEOUTS.items():
        with suppress(FileNotFoundError):  # not every kernel tracks every protocol
            (folder / name).write_text(str(seconds))


class Fabric:
    """All VPCs. `find(vpc, address)` is what the metadata service may tell that address."""

    def __init__(
        self,
        lab: Lab,
        internet: Host,
        *,
        publics: str,
        find: Callable[[str, str], Metadata | None],
        clock: Callable[[], datetime],
    ) -> None:
        self._lab = lab
        self._internet = internet
        self._publics = publics
        self._find = find
        self._clock = clock
        self._lock = threading.RLock()
        self._routers: dict[str, Router] = {}
        self._announced: dict[str, str] = {}  # public address -> next hop

    def router(self, vpc_id: str) -> Router:
        """The VPC's router, made at first use."""
        with self._lock:
            if vpc_id not in self._routers:
                self._routers[vpc_id] = self._make(vpc_id)
            return self._routers[vpc_id]

    def _make(self, vpc_id: str) -> Router:
        number = len(self._routers)
        ours, theirs = str(LINKS[4 * number + 2]), str(LINKS[4 * number + 1])
        host = self._lab.host(f"vpc-{vpc_id.removeprefix('vpc-')[:8]}", sysctls=_SYSCTLS)
        device = f"vpc{number}"
        self._lab.link(host, UPLINK, self._internet, device, mtu=INTERNET_MTU)
        _batch(
            host,
            f"address add {ours}/30 dev {UPLINK}",
            f"address add {METADATA}/32 dev lo",
            "link set lo up",
            f"route replace default via {theirs}",
        )
        host.inside(lambda: Path(f"/proc/sys/net/ipv4/conf/{UPLINK}/proxy_arp").write_text("0"))
        _batch(self._internet, f"address add {theirs}/30 dev {device}")
        service = MetadataService(
            host.listen(METADATA, 80), partial(self._find, vpc_id), self._clock
        )
        return Router(host, ours, service)

    def sync(self, vpcs: tuple[Vpc, ...]) -> None:
        """See `lab.cloud.machines.Network`. A VPC gets its router with its internet gateway, or
        with its first instance: it takes seconds, and a launch should not."""
        with self._lock:
            wanted: dict[str, str] = {}
            for vpc in vpcs:
                if vpc.id not in self._routers and not (vpc.interfaces or vpc.internet):
                    continue
                router = self.router(vpc.id)
                router.apply(vpc)
                wanted.update(dict.fromkeys(public_addresses(vpc), router.uplink))
            self._announce(wanted)

    def _announce(self, wanted: dict[str, str]) -> None:
        """Have the internet router send each public address to its VPC."""
        gone = [a for a in self._announced if a not in wanted]
        new = [a for a in wanted if self._announced.get(a) != wanted[a]]
        lines = [f"route del {a}/32" for a in gone]
        lines += [f"route replace {a}/32 via {wanted[a]}" for a in new]
        if lines:
            _batch(self._internet, *lines)
        self._announced = dict(wanted)

    def plug(self, launch: Launch, host: Host) -> None:
        """Give the instance its network interface. Raises `LabError`."""
        nic, subnet = launch.nic, launch.subnet
        router = self.router(launch.vpc).host
        self._lab.link(router, nic.device, host, INSTANCE_DEVICE, mtu=MTU)
        # else a proxy answers ARP after up to 0.8 s (arp(7), proxy_delay)
        delay = Path(f"/proc/sys/net/ipv4/neigh/{nic.device}/proxy_delay")
        router.inside(lambda: delay.write_text("0"))
        prefix = IPv4Network(subnet.cidr).prefixlen
        inside = [f"link set {INSTANCE_DEVICE} address {nic.mac}"]
        inside += [f"address add {a}/{prefix} dev {INSTANCE_DEVICE}" for a in nic.addresses]
        _batch(host, *inside, f"route replace default via {subnet.router} dev {INSTANCE_DEVICE}")
        with self._lock:
            outside = [f"address add {subnet.router}/32 dev {nic.device}"]
            for address in nic.addresses:
                outside.append(f"route replace {address}/32 dev {nic.device}")
                neighbour = f"{address} lladdr {nic.mac} dev {nic.device}"
                outside.append(f"neigh replace {neighbour} nud permanent")
            _batch(router, *outside)

    def close(self) -> None:
        """Stop the metadata services; the hosts go with the lab."""
        with self._lock:
            for router in self._routers.values():
                router.metadata.close()
                with suppress(LabError, HostDownError):
                    self._lab.remove(router.host)
            self._routers.clear()


def _batch(host: Host, *lines: str) -> None:
    host.run("ip", "-batch", "-", input="\n".join(lines) + "\n")
