"""The ground as real hosts: built once, then given one state of the gateway after the other."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Self

from dvn import located
from dvn.compile import compile_site
from dvn.kernel.diff import diff
from dvn.kernel.linux import LinuxKernel
from dvn.kernel.nft import Nft
from dvn.kernel.nftcommands import LoadTable
from dvn.kernel.state import KernelState, NftTable
from dvn.spec import Site, parse_site
from dvn.tunnels.secrets import read_secrets
from lab import linux
from lab.attacks import ground
from lab.attacks.case import Case, Phase, Role, Shot
from lab.attacks.fence import Fence, one_cpu, receiver
from lab.attacks.wire import RAW4, RAW6, Sightings, Wires, delivered, sender, watch
from lab.host import Host
from lab.hosts import Lab
from lab.net import SWITCH, build
from lab.rtnl import Netlink, set_up

_SIOCSIFHWADDR, _ARPHRD_ETHER = 0x8924, 1
_NFNL_CT_DELETE, _NETLINK_NETFILTER = 1 << 8 | 2, 12
_REQUEST_ACK = 0x5
_SITE_FORWARDING = "/proc/sys/net/ipv4/conf/ext0/forwarding"
QUIET_S, LIMIT_S = 0.25, 20.0
_WARM_S = (0.25, 1.5, 3.0)  # neighbour discovery asks again after one second (RFC 4861, 10)
# Flows of a case must last from its first frame to its last, however slow the machine.
_LASTING = {"udp_timeout": "3600", "icmp_timeout": "3600", "tcp_timeout_syn_sent": "3600"}

# Machines answer for their addresses and say nothing else: no reset, no error, no echo reply. What
# comes to them is seen on the wire before their own stack drops it.
_QUIET = """
table inet quiet {
  chain input {
    type filter hook input priority 0; policy drop;
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
  }
  chain output {
    type filter hook output priority 0; policy drop;
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
  }
}
"""

Change = Callable[[KernelState], KernelState]


class Bench:
    """Hosts, wires and the gateway's kernel. `features`: what this kernel has of lab.kernel's; what
    it lacks is left out of the ground, and the cases that need it are not run."""

    def __init__(self, lab: Lab, features: frozenset[str]) -> None:
        self.features = features
        self.hosts = build(lab, ground.topology(features))
        self.site: Site = parse_site(located.loads(ground.site_text(features)))
        self._kernel = LinuxKernel()
        if "wireguard" in features:
            self._gateway().write(ground.PRIVATE_KEY_FILE, ground.PRIVATE_KEY + "\n", 0o600)
        self._dress()
        self._wires: Wires | None = None
        self._warm = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._wires:
            self._wires.close()
        self._kernel.close()

    def possible(self, case: Case) -> bool:
        return case.needs <= self.features

    def apply(self, change: Change | None = None) -> KernelState:
        """Bring the gateway to what its site file says, changed by `change`; returns it.

        Raises KernelError, SpecError. As the engine does it, but without its verification, which
        would find out what `change` did.
        """
        wanted = self._gateway().inside(partial(self._apply, change))
        if self._wires is None:
            self._wires = self._open_wires()
            self._gateway().inside(_lasting, namespaces=linux.CLONE_NEWNET)
        self._forget()
        return wanted

    def _apply(self, change: Change | None) -> KernelState:
        for _pass in range(2):  # what is made first may be seen by the second look
            view = self._kernel.look(self.site.site)
            host = replace(view.host, secrets=read_secrets(self.site))
            wanted = compile_site(self.site, host).state
            self.features |= {ground.BRIDGE_META} if view.host.bridge_meta else set()
            if change:
                wanted = change(wanted)
            keys = [sysctl.key for sysctl in wanted.sysctls]
            observed = _with_sysctls(view.state, self._kernel, keys)
            for step in diff(observed, wanted).steps:
                self._kernel.perform(step)
        return wanted

    def run(self, cases: Iterable[Case]) -> tuple[Sightings, int]:
        """All cases at once, phase by phase: what was seen, and how many frames were sent."""
        assert self._wires, "apply comes first"
        chosen = tuple(cases)
        sightings, before = Sightings(), self._wires.sent
        with one_cpu():
            if not self._warm:
                self._acquaint(self._wires, chosen)
            self._forget_flows()
            self._forget_places()
            self._wires.discard()
            for phase in Phase:
                # Of each case the first frame, then the second: a handshake keeps its order.
                for shots in rounds(chosen, phase):
                    self._wires.inject(shots, sightings)
                self._wires.settle(sightings, QUIET_S, LIMIT_S)
        return sightings, self._wires.sent - before

    def _acquaint(self, wires: Wires, cases: Iterable[Case]) -> None:
        """The gateway learns its neighbours by the first packets, and their order suffers."""
        simple = [case for case in cases if not any(s.phase == Phase.SETUP for s in case.shots)]
        shots = [shot for shots in rounds(simple, Phase.CONTROL) for shot in shots]
        wanted = {
            (case.number, place)
            for case in simple
            if any(shot.phase == Phase.CONTROL for shot in case.shots)
            for place in case.arrives_at
        }
        for wait_s in _WARM_S:
            seen = Sightings()
            wires.inject(shots, seen)
            wires.settle(seen, wait_s, LIMIT_S)
            if all(place in seen.places(number, Role.CONTROL) for number, place in wanted):
                break
        self._warm = True

    # -- building

    def _gateway(self) -> Host:
        return self.hosts[ground.GATEWAY]

    def _dress(self) -> None:
        """MAC addresses, the cable, quiet machines, the metadata service's address."""
        silent = {*ground.INSIDERS, *ground.HOSTS, ground.INTRUDER} & set(self.hosts)
        nics: dict[str, set[ground.Nic]] = {}
        for nic in ground.NICS.values():
            if nic.host in self.hosts:
                nics.setdefault(nic.host, set()).add(nic)
        for name, host in self.hosts.items():
            host.inside(
                partial(_dress, nics.get(name, set()), name in silent),
                namespaces=linux.CLONE_NEWNET,
            )
        self.hosts["web"].inside(partial(_own, ground.METADATA4, ground.METADATA6))
        # The site is behind an interface that the site file does not name, as where the gateway is
        # the site's router already; that it forwards there is its administrator's affair.
        self._gateway().inside(partial(Path(_SITE_FORWARDING).write_text, "1"))

    def _open_wires(self) -> Wires:
        senders = {}
        for nic in ground.NICS.values():
            if nic.host in self.hosts and (nic.host, nic.interface) not in senders:
                senders[nic.host, nic.interface] = self._inside(
                    nic.host, partial(sender, nic.interface)
                )
        places = [
            (name, self._inside(name, partial(watch, None)))
            for name in sorted(ground.PLACES | {ground.ROUTER})
            if name in self.hosts and name != ground.GATEWAY
        ]
        places.append((ground.CABLE, self._inside("cable", partial(watch, "two"))))
        for net in ground.NETS:
            places.append((net.inside, self._inside(ground.GATEWAY, partial(watch, net.bridge))))
        for family, protocols in ((socket.AF_INET, RAW4), (socket.AF_INET6, RAW6)):
            for protocol in protocols:
                raw = self._inside(ground.GATEWAY, partial(delivered, family, protocol))
                # Outer packets of tunnels come to the gateway itself, whoever sends them; those
                # of tenants have no business there.
                tunnels = family == socket.AF_INET and protocol == socket.IPPROTO_GRE
                places.append((ground.UNDERLAY if tunnels else ground.GATEWAY, raw))
        fence = Fence(
            self._inside("cable", partial(sender, "one")),
            self._inside("cable", partial(receiver, "two")),
        )
        return Wires(senders, places, fence)

    def _inside(self, host: str, make: Callable[[], socket.socket]) -> socket.socket:
        return self.hosts[host].inside(make, namespaces=linux.CLONE_NEWNET)

    def _forget(self) -> None:
        """What a leak before has taught the gateway; and the intruder comes back, whom the apply
        threw out."""
        lines = ["neigh flush all"]
        lines += [f"link set dev {net.bridge} type bridge fdb_flush" for net in ground.NETS]
        port = ground.port(ground.INTRUDER)
        lines.append(f"link set dev {port} up master {ground.INTRUDED.bridge}")
        self._gateway().run("ip", "-force", "-batch", "-", input="\n".join(lines))
        self._warm = False

    def _forget_flows(self) -> None:
        """Connections of an earlier run would let this one's packets pass as replies."""
        self._gateway().inside(_flush_conntrack, namespaces=linux.CLONE_NEWNET)

    def _forget_places(self) -> None:
        """Who lied to the site's switch about its MAC address would get, there, what this run
        sends to the one it lied about."""
        if "vlan" in self.features:
            self.hosts["tor"].run("ip", "link", "set", "dev", SWITCH, "type", "bridge", "fdb_flush")


def rounds(cases: Iterable[Case], phase: Phase) -> list[list[Shot]]:
    """What each case sends first, second and so on."""
    each = ([shot for shot in case.shots if shot.phase == phase] for case in cases)
    return [[shot for shot in shots if shot] for shots in zip_longest(*each)]


def _with_sysctls(state: KernelState, kernel: LinuxKernel, keys: list[str]) -> KernelState:
    return replace(state, sysctls=kernel.sysctls(keys))


def _dress(nics: set[ground.Nic], silent: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for nic in nics:
            mac = bytes.fromhex(nic.mac.replace(":", ""))
            request = struct.pack("16sH6s8x", nic.interface.encode(), _ARPHRD_ETHER, mac)
            fcntl.ioctl(any_socket, _SIOCSIFHWADDR, request)
    if silent:
        nft = Nft()
        nft.run([LoadTable(NftTable("inet", "quiet", listing=_QUIET))])
        nft.close()


def _own(*addresses: str) -> None:
    """Addresses of this host, on its loopback device."""
    set_up("lo")
    with Netlink() as netlink:
        for address in addresses:
            netlink.add_address("lo", f"{address}/{32 if '.' in address else 128}")


def _lasting() -> None:
    for name, seconds in _LASTING.items():
        Path(f"/proc/sys/net/netfilter/nf_conntrack_{name}").write_text(seconds)


def _flush_conntrack() -> None:
    """IPCTNL_MSG_CT_DELETE without a filter (nfnetlink_conntrack.h)."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
        header = struct.pack("=IHHII", 20, _NFNL_CT_DELETE, _REQUEST_ACK, 1, 0)
        sock.send(header + struct.pack("=BBH", socket.AF_UNSPEC, 0, 0))
        sock.recv(4096)
