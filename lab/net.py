"""Builds a declared Topology in a Lab, and watches the traffic in it.

Interfaces, addresses and routes are made without a fork (lab.rtnl); switches with one `ip` and one
`bridge`, counters and NAT with one `nft` a node.
"""

import json
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lab import linux, rtnl
from lab.host import Host, HostSpec
from lab.hosts import Lab
from lab.process import CommandTimeoutError, LabError, stop, wait_for
from lab.topology import Access, Machine, NatBox, Node, Router, Switch, Topology, listed

_FORWARDING = {
    "net.ipv4.ip_forward": "1",
    "net.ipv6.conf.all.forwarding": "1",
    # Linux asks for the neighbour of a forwarded packet from its link-local address only.
    "net.ipv6.conf.default.addr_gen_mode": "0",
}
SWITCH = "br0"
_AT_ONCE = 4  # nodes configured at a time: the commands wait for forks and module loading

TABLE = "lab_traffic"
_COUNTER = "seen_"  # a counter cannot be called by a word of nft's own, such as tcp
# What a router tells apart, in this order; the first that fits counts. nft(8) expressions.
PROTOCOLS: Mapping[str, tuple[str, ...]] = {
    "gre": ("meta l4proto gre",),
    "esp": ("meta l4proto esp",),
    "tls": ("tcp dport { 443, 8443 }", "tcp sport { 443, 8443 }"),
    "tcp": ("meta l4proto tcp",),
    "udp": ("meta l4proto udp",),
    "icmp": ("meta l4proto { icmp, ipv6-icmp }",),
    "other": ("meta l4proto != 255",),
}


@dataclass(frozen=True)
class Traffic:
    """What was counted: packets, and bytes of the IP packets."""

    packets: int
    bytes: int


def build(lab: Lab, topology: Topology) -> dict[str, Host]:
    """Make every node and link of the topology; returns the hosts by name, switches too.

    LabError if the kernel refuses something. What was made before goes with the lab.
    """
    hosts = {node.name: lab.add(_spec(node)) for node in topology.nodes}
    for link in topology.links:
        (a, ifa), (b, ifb) = link.ends
        lab.link(hosts[a], ifa, hosts[b], ifb, mtu=link.mtu)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        # All run to their end; then the first that failed is raised.
        done = [pool.submit(_configure_node, hosts[node.name], node) for node in topology.nodes]
    for future in done:
        future.result()
    return hosts


def _configure_node(host: Host, node: Node) -> None:
    if isinstance(node, Switch):
        _configure_switch(host, node)
        return
    configure(host, node)
    if isinstance(node, Router):
        host.run("nft", "-f", "-", input=_counting(node))
    if isinstance(node, NatBox):
        host.run("nft", "-f", "-", input=_nat(node))


def configure(host: Host, machine: Machine) -> None:
    """Give a host the addresses and routes of its declaration; its links must be there."""
    addresses = [
        (interface, text)
        for interface, texts in machine.addresses.items()
        for text in listed(texts)
    ]
    if isinstance(machine, NatBox):
        # The box answers ARP for its public addresses; the translation comes before delivery.
        addresses += [(machine.outside, f"{public}/32") for public in machine.one_to_one]

    def assign() -> None:
        with rtnl.Netlink() as netlink:
            for interface, text in addresses:
                _named(partial(netlink.add_address, interface, text), f"{interface} {text}")
            for prefix, via in machine.routes.items():
                _named(partial(netlink.add_route, prefix, via), f"route {prefix} via {via}")

    try:
        host.inside(assign, namespaces=linux.CLONE_NEWNET)
    except OSError as error:
        raise LabError(f"{host.name}: {error}") from error


def _named(action: partial[None], what: str) -> None:
    try:
        action()
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror}") from error


def _spec(node: Node) -> HostSpec:
    if isinstance(node, Switch):
        return HostSpec(node.name)
    forwarding = _FORWARDING if node.forward else {}
    sysctls = {**forwarding, **node.sysctls}
    return HostSpec(
        node.name, node.cores, node.memory_mb, node.private, sysctls, node.root, node.shown
    )


def _configure_switch(host: Host, switch: Switch) -> None:
    """One bridge, no VLAN but the declared ones, no spanning tree, no multicast chatter."""
    links = [
        f"link add {SWITCH} type bridge vlan_filtering 1 vlan_default_pvid 0 mcast_snooping 0",
        *(f"link set dev {port} master {SWITCH}" for port in switch.ports),
        f"link set dev {SWITCH} up",
    ]
    vlans = []
    for name, port in switch.ports.items():
        if isinstance(port, Access):
            vlans.append(f"vlan add dev {name} vid {port.vlan} pvid untagged")
            continue
        vlans += [f"vlan add dev {name} vid {vlan}" for vlan in port.vlans if vlan != port.native]
        if port.native is not None:
            vlans.append(f"vlan add dev {name} vid {port.native} pvid untagged")
    host.run("ip", "-batch", "-", input="\n".join(links))
    host.run("bridge", "-batch", "-", input="\n".join(vlans))


def _counting(router: Router) -> str:
    lines = [f"table inet {TABLE} {{"]
    lines += [f"  counter {_COUNTER}{name} {{ }}" for name in PROTOCOLS]
    lines += ["  chain tell {"]
    lines += [
        f'    {match} counter name "{_COUNTER}{name}" return'
        for name, matches in PROTOCOLS.items()
        for match in matches
    ]
    lines += ["  }", "  chain forward {", "    type filter hook forward priority -300;"]
    if router.count:
        pairs = [p for a, b in router.count for p in (f'"{a}" . "{b}"', f'"{b}" . "{a}"')]
        lines += [f"    iifname . oifname {{ {', '.join(pairs)} }} jump tell"]
    else:
        lines += ["    jump tell"]
    return "\n".join([*lines, "  }", "}", ""])


def _nat(box: NatBox) -> str:
    """The maps are named, so that addresses can come and go while the box runs."""
    public = ", ".join(f"{a} : {b}" for a, b in box.one_to_one.items())
    private = ", ".join(f"{b} : {a}" for a, b in box.one_to_one.items())

    def elements(text: str) -> str:
        return f"elements = {{ {text} }}" if text else ""

    return f"""
table ip lab_nat {{
  map inside_of {{
    type ipv4_addr : ipv4_addr
    {elements(public)}
  }}
  map public_of {{
    type ipv4_addr : ipv4_addr
    {elements(private)}
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    iifname "{box.outside}" dnat to ip daddr map @inside_of
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    oifname "{box.outside}" snat to ip saddr map @public_of
    {f'oifname "{box.outside}" masquerade' if box.masquerade else ""}
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    ct status dnat accept
    iifname "{box.inside}" oifname "{box.outside}" accept
  }}
}}
"""


def counters(router: Host) -> dict[str, Traffic]:
    """What a Router has forwarded since it was built, by the names of PROTOCOLS."""
    listing = router.run("nft", "-j", "list", "counters", "table", "inet", TABLE).stdout
    entries = [e["counter"] for e in json.loads(listing)["nftables"] if "counter" in e]
    return {e["name"].removeprefix(_COUNTER): Traffic(e["packets"], e["bytes"]) for e in entries}


class Capture:
    """A running capture. Its file is complete when the capture has ended."""

    def __init__(self, host: Host, interface: str, file: Path, expression: str) -> None:
        self.file = file
        self.packets = 0  # written to the file; known when the capture has ended
        self._where = f"{host.name}:{interface}"
        self._log = file.with_name(file.name + ".log")
        self._log.unlink(missing_ok=True)
        # tcpdump writes to a file that we opened: it cannot see ours from inside the host.
        with file.open("wb") as sink, self._log.open("wb") as log:
            self._process: subprocess.Popen[bytes] = host.spawn(
                *(
                    "tcpdump",
                    "-i",
                    interface,
                    "-n",
                    "-U",
                    "--immediate-mode",
                    "-Z",
                    "root",
                    "-w",
                    "-",
                ),
                *([expression] if expression else []),
                stdout=sink,
                stderr=log,
            )
        try:
            wait_for(self._started, 30, what=f"tcpdump at {self._where}")
        except (LabError, KeyboardInterrupt):
            stop(self._process)
            self._log.unlink(missing_ok=True)
            raise

    def _started(self) -> bool:
        if self._process.poll() is not None:
            raise LabError(f"{self._where}: tcpdump ended at once: {self._said()}")
        return "listening on" in self._said()

    def _counts(self) -> tuple[int, int]:
        """Packets written and packets that fitted the filter, as tcpdump says on SIGUSR1."""
        before = self._log.stat().st_size
        self._process.send_signal(signal.SIGUSR1)
        pattern = rb"(\d+) packets? captured, (\d+) packets? received"

        def told() -> re.Match[bytes] | None:
            if self._process.poll() is not None:
                raise LabError(f"{self._where}: tcpdump ended by itself: {self._said()}")
            return re.search(pattern, self._log.read_bytes()[before:])

        match = wait_for(told, 30, what=f"the counts of tcpdump at {self._where}", interval=0.02)
        return int(match[1]), int(match[2])

    def _said(self) -> str:
        return self._log.read_text(errors="replace").strip()

    def stop(self) -> int:
        """End the capture; returns how many packets are in the file: all that have passed."""
        if not self._log.exists():
            return self.packets
        try:
            # On SIGINT tcpdump drops what it has not read yet: first let it come to our moment.
            _, passed = self._counts()
            wait_for(
                lambda: self._counts()[0] >= passed, 30, what=f"tcpdump to read {passed} packets"
            )
            self._process.send_signal(signal.SIGINT)
            self._process.wait(timeout=30)
            if match := re.search(r"(\d+) packets? captured\n", self._said()):
                self.packets = int(match[1])
        except subprocess.TimeoutExpired as error:
            raise CommandTimeoutError(f"{self._where}: tcpdump did not stop") from error
        finally:
            stop(self._process)
            self._log.unlink()
        return self.packets


@contextmanager
def capture(host: Host, interface: str, file: Path, expression: str = "") -> Iterator[Capture]:
    """Capture what passes an interface ("any" for all) into file (pcap) while the block runs.

    expression: a pcap-filter(7). The capture runs when the block begins, and is whole at its end.
    """
    running = Capture(host, interface, file, expression)
    try:
        yield running
    finally:
        running.stop()
