"""From what a person writes to a packet: `cms/farm:tap3 tcp 10.9.0.3 to 8.8.8.8:443`.

What is not written is what an honest machine at that place would put there: its own address and
MAC, the gateway's MAC for what is not in its network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from dvn import addresses
from dvn.diagnose import l3
from dvn.diagnose.build import BROADCAST, Described, build
from dvn.diagnose.frames import Packet
from dvn.diagnose.scene import Scene
from dvn.diagnose.walk import HOST
from dvn.problems import Problem, SpecError
from dvn.spec import Network, Site

OUTSIDE = "outside"
EXAMPLE = "cms/farm:tap3 tcp 10.9.0.3 to 8.8.8.8:443"
_MACHINE = "02:00:00:00:00:02"
_PROTOCOLS = frozenset({"tcp", "udp", "icmp", "icmpv6", "arp", "gre", "esp", "sctp", "igmp"})
_KEYS = frozenset(
    [
        "src",
        "dst",
        "proto",
        "sport",
        "dport",
        "mac",
        "to-mac",
        "vlan",
        "flags",
        "kind",
        "ttl",
        "state",
        "mss",
        "offset",
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A packet and where it comes in."""

    enters: str
    packet: Packet


@dataclass(frozen=True)
class _Place:
    """Where a packet begins, and who is there."""

    device: str
    bridge: str = ""
    network: Network | None = None
    mac: str = _MACHINE
    own: tuple[IPv4Address | IPv6Address, ...] = ()
    tag: int | None = None


def words_of(text: Sequence[str]) -> dict[str, str]:
    """The parts of the short form by name: from, proto, src, sport, dst, dport, and any key=value.

    Raises SpecError.
    """
    words = " ".join(text).replace(">", " to ").split()
    found: dict[str, str] = {}
    side = "src"
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in _KEYS:
            found[key] = value
        elif word == "to":
            side = "dst"
        elif word.lower() in _PROTOCOLS and "proto" not in found:
            found["proto"] = word.lower()
        elif (ends := _address(word)) and side not in found:
            found[side] = ends[0]
            if ends[1]:
                found["sport" if side == "src" else "dport"] = ends[1]
        elif side == "src" and "from" not in found:
            found["from"] = word
        else:
            raise _wrong(f"{word!r} is not understood", f"write it like: {EXAMPLE}")
    return found


def _address(word: str) -> tuple[str, str] | None:
    """(address, port or "") of `10.9.0.3`, `10.9.0.3:80`, `fd00::3`, `[fd00::3]:80`."""
    found = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\]:(\d+)", word) or re.fullmatch(
        r"([\d.]+):(\d+)", word
    )
    text, port = (found[1], found[2]) if found else (word, "")
    try:
        ip_address(text)
    except ValueError:
        return None
    return text, port


def asked(site: Site, scene: Scene, parts: Mapping[str, str]) -> Asked:
    """The packet that the parts describe. Raises SpecError."""
    if "dst" not in parts:
        raise _wrong("where to is not said", f"write it like: {EXAMPLE}")
    place = _place(site, scene, parts.get("from", ""))
    protocol = parts.get("proto", "tcp")
    destination = _ip(parts["dst"])
    source = _ip(parts["src"]) if "src" in parts else _own(place, scene, destination)
    if source.version != destination.version:
        raise _wrong(f"{source} and {destination} are of two families", "use one")
    kind = parts.get("kind", "")
    described = Described(
        str(source),
        str(destination),
        protocol,
        sport=_number(parts, "sport", 40000, 65535),
        dport=_number(parts, "dport", 80, 65535),
        flags=parts.get("flags", "S").upper(),
        kind=kind,
        mss=_number(parts, "mss", 0, 65535),
        ttl=_number(parts, "ttl", 255 if kind.startswith("nd-") else 64, 255),
        mac=parts.get("mac", place.mac),
        to_mac=parts.get("to-mac", "") or _to_mac(place, scene, protocol, kind, destination),
        tags=tuple(_tags(parts, place)),
        offset=_number(parts, "offset", 0, 65528) & ~7,
        state=_state(parts),
        payload=b"explained",
    )
    try:
        packet = build(described)
    except (ValueError, KeyError) as error:
        raise _wrong(str(error), f"write it like: {EXAMPLE}") from None
    return Asked(place.device, packet)


def _tags(parts: Mapping[str, str], place: _Place) -> Iterator[int]:
    if place.tag is not None:
        yield place.tag
    if parts.get("vlan"):
        for word in parts["vlan"].split(","):
            yield _number({"vlan": word}, "vlan", 0, 4095)


def _state(parts: Mapping[str, str]) -> str:
    state = parts.get("state", "")
    known = ("new", "established", "related", "invalid", "untracked")
    if state and state not in known:
        raise _wrong(f"a connection cannot be {state!r}", "use " + ", ".join(known))
    return state


def _number(parts: Mapping[str, str], key: str, default: int, most: int) -> int:
    text = parts.get(key, "")
    if not text:
        return default
    if not text.isdigit() or int(text) > most:
        raise _wrong(f"{key} {text!r} is not a number up to {most}", f"write it like {key}=22")
    return int(text)


def _ip(text: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(text)
    except ValueError:
        raise _wrong(f"{text!r} is not an address", "write it like 10.9.0.3") from None


def _place(site: Site, scene: Scene, text: str) -> _Place:
    if text == HOST:
        return _Place(HOST)
    if text in (OUTSIDE, "internet"):
        if site.underlay is None:
            raise _wrong("the file has no underlay, so nothing is outside", "name an interface")
        return _Place(site.underlay.interface)
    name, _, interface = text.partition(":")
    tenant, slash, what = name.partition("/")
    if not slash:
        if text in scene.devices:
            return _interface_place(site, text)
        raise _wrong(
            f"{text!r} is no place where a packet begins" if text else "where from is not said",
            f"use TENANT/NETWORK:INTERFACE, TENANT/TUNNEL, an interface, {OUTSIDE} or {HOST}",
        )
    networks = {(t, n): network for t, n, network in site.networks()}
    if (tenant, what) in networks:
        return _network_place(tenant, what, networks[tenant, what], interface)
    for tunnel in site.tunnels():
        if (tunnel.tenant, tunnel.name) == (tenant, what):
            bridge = addresses.bridge_name(tenant, tunnel.network)
            device = addresses.tunnel_name(tenant, what)
            extended = networks[tenant, tunnel.network]
            if tunnel.beyond and tunnel.beyond.macs:
                # One of the machines on the host at the other end.
                there = tunnel.beyond
                return _Place(device, bridge, extended, there.macs[0], there.addresses)
            return _Place(device, bridge, extended)
    known = ", ".join(f"{t}/{n}" for t, n in networks)
    raise _wrong(f"there is no network or tunnel {name}", f"there are {known or 'none'}")


def _interface_place(site: Site, name: str) -> _Place:
    """An interface; if it is a port of a network, that port."""
    for tenant, network_name, network in site.networks():
        if any(port.interface == name for port in network.on(site.here)):
            return _network_place(tenant, network_name, network, name)
    return _Place(name)


def _network_place(tenant: str, name: str, network: Network, interface: str) -> _Place:
    bridge = addresses.bridge_name(tenant, name)
    ports = {port.interface: port for port in network.on(None)}
    if (
        network.vlan
        and interface in ("", "uplink", network.vlan.uplink)
        and not (ports and not interface)
    ):
        return _Place(network.vlan.uplink, bridge, network, tag=network.vlan.id)
    if not interface and len(ports) == 1:
        interface = next(iter(ports))
    if interface not in ports:
        choices = [f"{tenant}/{name}:{port}" for port in ports]
        if network.vlan:
            choices.append(f"{tenant}/{name}:{network.vlan.uplink}")
        what = f"{tenant}/{name} has no port {interface}" if interface else "which port is not said"
        raise _wrong(what, "use " + " or ".join(choices) if choices else "it has no ports")
    port = ports[interface]
    return _Place(interface, bridge, network, port.mac or _MACHINE, tuple(_listed(port.address)))


def _listed(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return value if isinstance(value, tuple | list) else (value,)


def _own(place: _Place, scene: Scene, to: IPv4Address | IPv6Address) -> Any:
    """The address an honest machine there would send from."""
    for own in place.own:
        if own.version == to.version:
            return own
    if place.network is not None:
        gateways = {gateway.ip for gateway in place.network.gateways()}
        for prefix in place.network.prefix:
            if prefix.version == to.version:
                return next(host for host in (prefix[10], prefix[2]) if host not in gateways)
    device = scene.devices.get(place.device)
    if place.device == HOST:
        path = [d for d in scene.devices.values() if l3.first_address(d, to.version)]
        device = path[0] if path else None
        found = l3.first_address(device, to.version)
        if found is not None:
            return found
    if device is not None:
        for network in device.addresses:
            if network.version == to.version and network.network.num_addresses > 2:
                return next(a for a in network.network.hosts() if a != network.ip)
    raise _wrong("the source address is not said", "add it before `to`")


def _to_mac(
    place: _Place, scene: Scene, protocol: str, kind: str, to: IPv4Address | IPv6Address
) -> str:
    if protocol == "arp" and kind in ("", "request"):
        return BROADCAST
    if str(to) == "255.255.255.255":
        return BROADCAST
    if to.is_multicast:
        raw = to.packed
        return (
            "33:33:" + raw[12:].hex(":")
            if to.version == 6
            else (f"01:00:5e:{raw[1] & 127:02x}:{raw[2]:02x}:{raw[3]:02x}")
        )
    gateway = scene.devices.get(place.bridge or place.device)
    gateway_mac = gateway.mac if gateway and gateway.mac else "02:00:00:00:00:01"
    network = place.network
    if network is None or not any(to in prefix for prefix in network.prefix):
        return gateway_mac
    if any(to == own.ip for own in network.gateways()):
        return gateway_mac
    return scene.neighbours.get((place.bridge, to), l3.UNKNOWN_MAC)


def _wrong(what: str, fix: str) -> SpecError:
    return SpecError([Problem("", 0, what, fix)])
