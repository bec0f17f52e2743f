"""The same cases on the plan: each frame is walked through the compiled state, without a kernel.

What the walk (dvn.diagnose) delivers by a device is seen by whoever is at that device, so the same
judge decides as on the wire. What the walk does not know is left out, with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from dvn import addresses, located
from dvn.compile import compile_site
from dvn.diagnose.flows import Flows
from dvn.diagnose.frames import Packet
from dvn.diagnose.rulesets import Ruleset
from dvn.diagnose.scene import Device, of_state
from dvn.diagnose.walk import HOST, Walk, Walker
from dvn.kernel.state import Host, HostLink, KernelState, Secret
from dvn.spec import parse_site
from lab.attacks import ground
from lab.attacks.case import Case, Phase, Shot, markers
from lab.attacks.change import rules, without
from lab.attacks.ground import GATEWAY, NETS, NICS
from lab.attacks.judge import Verdict, judge
from lab.attacks.matrix import lost
from lab.attacks.wire import Sightings
from lab.kernel import FEATURES

_OUTSIDE = tuple(ip_network(text) for text in ("198.51.100.0/24", "2001:db8:1::/64"))
_REACHED = {
    ip_network("192.0.2.0/24"): "web",
    ip_network("169.254.169.254/32"): "web",
    ip_network("2001:db8:2::/64"): "web",
    ip_network("fd00:ec2::254/128"): "web",
    ip_network("203.0.113.0/25"): "cloud",
    ip_network("203.0.113.128/25"): "moon",
}
_BY_PORT: Mapping[str, str] = {
    **{ground.port(name): name for net in NETS for name in (*net.machines, *net.loose)},
    "ext0": "site",
}
_NOT_WALKED: Mapping[str, str] = {
    "undeclared port": "the plan knows no interface that nobody declared",
    "undeclared listener": "the plan knows no interface that nobody declared",
    "forged-error": "the walk does not look into ICMP errors",
    "blind-injection": "the walk does not follow TCP windows",
    "untranslated": "the walk does not follow TCP windows",
    "exhaustion": "the walk has no limits to run into",
}


def state() -> KernelState:
    """What the ground's site file compiles to."""
    site = parse_site(located.loads(ground.site_text(FEATURES)))
    names = ["wan0", "lan0", "ext0", *(name for name in _BY_PORT if name != "ext0")]
    host = Host(
        links={name: HostLink(name, "", 1500, True, False) for name in names},
        addresses=frozenset({ground.WAN4, ground.WAN6}),
        sysctls={f"net/ipv4/conf/{name}/forwarding": "0" for name in names}
        | {"net/ipv6/conf/all/forwarding": "0"},
        bridge_meta=True,
        secrets={ground.PRIVATE_KEY_FILE: Secret("", ground.PUBLIC_KEY)},
    )
    return compile_site(site, host).state


def walker(of: KernelState) -> Walker:
    devices = {}
    for name, own in (
        ("wan0", (f"{ground.WAN4}/24", f"{ground.WAN6}/64")),
        ("ext0", ("192.168.77.1/24", "fd77::1/64")),
        ("lan0", ()),
    ):
        mac = NICS[f"{GATEWAY}:{name}"].mac
        devices[name] = Device(name, mac=mac, addresses=tuple(map(ip_interface, own)))
    scene = of_state(of, host=devices)
    forwarding = {"net/ipv4/conf/ext0/forwarding": "1"}
    return Walker(Ruleset.of(of.tables), replace(scene, sysctls={**scene.sysctls, **forwarding}))


def walk_all(cases: Sequence[Case], of: KernelState) -> Verdict:
    """Every case that can be walked."""
    began = time.monotonic()
    left_out = {c.name: _NOT_WALKED[c.attack] for c in cases if c.attack in _NOT_WALKED}
    chosen = [case for case in cases if case.name not in left_out]
    way, flows, seen, count = walker(of), Flows(), Sightings(), 0
    for phase in Phase:
        for case in chosen:
            for shot in (each for each in case.shots if each.phase == phase):
                count += 1
                _walk(way, shot, flows, seen)
    return judge(chosen, seen, left_out, seconds=time.monotonic() - began, frames=count)


def matrix(cases: Sequence[Case], of: KernelState) -> list[dict[str, Any]]:
    """Each rule taken away by itself; see lab.attacks.matrix."""
    return [lost(part, walk_all(cases, without(of, part))) for part in rules(of)]


def _walk(way: Walker, shot: Shot, flows: Flows, seen: Sightings) -> None:
    if shot.host == "cable":
        seen.add(ground.CABLE, shot.frame)
        return
    entrance = _entrance(shot)
    if entrance is None:
        return
    device, frame = entrance
    _note(way.walk(Packet(frame), device, flows), seen)


def _entrance(shot: Shot) -> tuple[str, bytes] | None:
    """By which of the gateway's devices the frame comes, and how it looks then; None if nothing
    leads it there."""
    nic = NICS[f"{shot.host}:{shot.interface}"]
    if nic.net is not None and nic.host == nic.net.vlan_machine:
        return _tagged(shot.frame, nic.net.vlan)
    if nic.net is not None:
        return ground.port(nic.host), shot.frame
    if shot.host == "tor":
        return "lan0", shot.frame
    if shot.host == "site":
        return "ext0", shot.frame
    if (shot.host, shot.interface) == ("internet", "site"):
        return "wan0", shot.frame
    return _routed(shot.frame)


def _tagged(frame: bytes, vlan: int) -> tuple[str, bytes] | None:
    """What the switch makes of it: a tag of another VLAN is not let in at that port."""
    if frame[12:14] == b"\x81\x00":
        return None
    return "lan0", frame[:12] + b"\x81\x00" + vlan.to_bytes(2, "big") + frame[12:]


def _routed(frame: bytes) -> tuple[str, bytes] | None:
    """The router sends on what is for the gateway's side."""
    ip = Packet(frame).ip
    if ip is None or not any(ip.destination in prefix for prefix in _OUTSIDE):
        return None
    wan, router = NICS[f"{GATEWAY}:wan0"].mac, NICS["internet:site"].mac
    return "wan0", bytes.fromhex((wan + router).replace(":", "")) + frame[12:]


def _note(walk: Walk, seen: Sightings) -> None:
    for place, frame in _sights(walk):
        if any(True for _found in markers(frame)):
            seen.add(place, frame)


def _sights(walk: Walk) -> Iterator[tuple[str, bytes]]:
    bridges = {net.bridge: net for net in NETS}
    for hop in walk.hops:
        net = bridges.get(hop.device)
        if net and hop.where == "bridge" and hop.words.endswith("to the gateway itself"):
            yield net.inside, walk.packet.frame
    for exit_ in walk.exits:
        yield from _leaves(exit_.device, exit_.packet)


def _leaves(device: str, packet: Packet) -> Iterator[tuple[str, bytes]]:
    """Who sees what leaves by a device."""
    if device == HOST:
        if packet.ip is not None:
            gre = packet.ip.protocol == 47
            yield (ground.UNDERLAY if gre else GATEWAY), packet.network
    elif device in _BY_PORT:
        yield _BY_PORT[device], packet.frame
    elif device == "lan0":
        for net in NETS:
            if net.vlan and packet.tag is not None and packet.tag.id == net.vlan:
                yield net.vlan_machine, packet.frame
    elif device == "wan0" and packet.ip is not None:
        to = ip_address(str(packet.ip.destination))
        for prefix, name in _REACHED.items():
            if to in prefix:
                yield name, packet.frame
    else:
        for net in NETS:
            if net.remote and device == addresses.tunnel_name(net.tenant, "far"):
                yield net.remote, packet.frame
