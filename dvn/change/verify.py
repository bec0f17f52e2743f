"""Who answered before a change must answer after it: machines on our bridges, ends of our tunnels.

Only what worked before counts: a machine that was silent before is no sign of a broken change. And
only what the change still wants: a network, port or tunnel that it takes away may fall silent.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import Protocol

from dvn.change import packets
from dvn.change.packets import Question
from dvn.kernel import netlink as nl
from dvn.kernel.driver import KernelError
from dvn.kernel.state import Bridge, Gretap, KernelState

RTM_GETNEIGH = 30
NDA_DST, NDA_LLADDR, NDA_MASTER = 1, 2, 9
_NDMSG = struct.Struct("=BxxxiHBB")
_AF_BRIDGE = 7
_USELESS = 0x01 | 0x20 | 0x40  # NUD_INCOMPLETE, NUD_FAILED, NUD_NOARP
MOST = 4096  # asked of one host: the rest is like them


@dataclass(frozen=True)
class Machine:
    """Somebody on a bridge; `via`: the port or tunnel its frames come from, as far as known."""

    bridge: str
    address: str
    via: str = ""

    def __str__(self) -> str:
        return f"{self.address} on {self.bridge}" + (f" (via {self.via})" if self.via else "")


@dataclass(frozen=True)
class Remote:
    """The other end of a tunnel, in the underlay."""

    tunnel: str
    address: str

    def __str__(self) -> str:
        return f"{self.address}, the other end of {self.tunnel}"


@dataclass(frozen=True)
class Heard:
    """Who answered."""

    machines: frozenset[Machine] = frozenset()
    remotes: frozenset[Remote] = frozenset()

    def __len__(self) -> int:
        return len(self.machines) + len(self.remotes)


class Packets(Protocol):
    def listen(self, state: KernelState, more: Iterable[Machine] = ()) -> Heard:
        """Who answers now, of those that the kernel knows of, and of `more`."""

    def again(self, heard: Heard, state: KernelState) -> Heard:
        """Who of `heard` still answers, now that the kernel is as `state` says."""


def still_wanted(heard: Heard, state: KernelState) -> Heard:
    """Those who ought to answer where the kernel is as `state` says. Pure."""
    masters = {port.name: port.master for port in state.ports}
    masters |= {link.name: link.master for link in state.links if link.master}
    prefixes: dict[str, list[str]] = {}
    for address in state.addresses:
        prefixes.setdefault(address.link, []).append(address.address)
    machines = frozenset(
        machine
        for machine in heard.machines
        if _source(machine.address, prefixes.get(machine.bridge, ()))
        and (not machine.via or masters.get(machine.via) == machine.bridge)
    )
    tunnels = {name: link.params for name, link in state.by_name.items()}
    remotes = frozenset(
        remote
        for remote in heard.remotes
        if isinstance(params := tunnels.get(remote.tunnel), Gretap)
        and params.remote == remote.address
    )
    return Heard(machines, remotes)


def lost(before: Heard, after: Heard) -> tuple[str, ...]:
    """Who answered and does not any more, in words."""
    gone = [str(each) for each in before.machines - after.machines]
    gone += [str(each) for each in before.remotes - after.remotes]
    return tuple(sorted(gone))


class LivePackets:
    """On this kernel. `timeout`: seconds that silence is waited for."""

    def __init__(self, timeout: float = 1.5) -> None:
        self._timeout = timeout

    def listen(self, state: KernelState, more: Iterable[Machine] = ()) -> Heard:
        bridges = {link.name for link in state.links if isinstance(link.params, Bridge)}
        machines = dict.fromkeys([*(m for m in more if m.bridge in bridges), *_known(bridges)])
        remotes = [
            Remote(link.name, link.params.remote)
            for link in state.links
            if isinstance(link.params, Gretap)
        ]
        return self._ask(Heard(frozenset(list(machines)[:MOST]), frozenset(remotes[:MOST])), state)

    def again(self, heard: Heard, state: KernelState) -> Heard:
        return self._ask(heard, state)

    def _ask(self, heard: Heard, state: KernelState) -> Heard:
        prefixes: dict[str, list[str]] = {}
        for address in state.addresses:
            prefixes.setdefault(address.link, []).append(address.address)
        asked: dict[Question, list[Machine]] = {}
        for machine in heard.machines:
            source = _source(machine.address, prefixes.get(machine.bridge, ()))
            if source:
                question = Question(machine.bridge, source, machine.address)
                asked.setdefault(question, []).append(machine)
        try:
            answered = packets.neighbours(asked, self._timeout)
            echoed = packets.echo({r.address for r in heard.remotes}, self._timeout)
        except OSError as error:
            raise KernelError(f"cannot ask the wire: {error.strerror}; run as root") from error
        return Heard(
            frozenset(machine for question in answered for machine in asked[question]),
            frozenset(remote for remote in heard.remotes if remote.address in echoed),
        )


def _source(address: str, ours: Iterable[str]) -> str | None:
    """Our address in the same prefix, to ask with."""
    target = ip_address(address)
    for text in ours:
        interface = ip_interface(text)
        if interface.version == target.version and target in interface.network:
            return str(interface.ip)
    return None


def _known(bridges: set[str]) -> Iterator[Machine]:
    """Whom the kernel has talked to on these bridges, and where their frames come from."""
    try:
        sock = nl.Socket()
    except OSError as error:
        raise KernelError(f"cannot read neighbours: {error.strerror}") from error
    names = dict(socket.if_nameindex())
    try:
        doors = dict(_doors(sock, names))
        for family in (socket.AF_INET, socket.AF_INET6):
            for payload in sock.dump(RTM_GETNEIGH, _NDMSG.pack(family, 0, 0, 0, 0), "neighbours"):
                _family, index, state, _flags, _type = _NDMSG.unpack_from(payload)
                bridge = names.get(index, "")
                if bridge not in bridges or state & _USELESS:
                    continue
                found = nl.attributes(payload, _NDMSG.size)
                target = ip_address(found[NDA_DST])
                if NDA_LLADDR in found and not (target.is_link_local or target.is_multicast):
                    via = doors.get((bridge, found[NDA_LLADDR]), "")
                    yield Machine(bridge, str(target), via)
    except OSError as error:
        raise KernelError(f"cannot read neighbours: {error.strerror}") from error
    finally:
        sock.close()


def _doors(sock: nl.Socket, names: Mapping[int, str]) -> Iterator[tuple[tuple[str, bytes], str]]:
    """((bridge, MAC address), port) of the bridges' forwarding tables."""
    body = _NDMSG.pack(_AF_BRIDGE, 0, 0, 0, 0)
    for payload in sock.dump(RTM_GETNEIGH, body, "forwarding tables"):
        _family, index, _state, _flags, _type = _NDMSG.unpack_from(payload)
        found = nl.attributes(payload, _NDMSG.size)
        if NDA_LLADDR in found and NDA_MASTER in found:
            master = names.get(int.from_bytes(found[NDA_MASTER], sys.byteorder), "")
            yield (master, found[NDA_LLADDR]), names.get(index, "")
