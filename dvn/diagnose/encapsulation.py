"""GRE around a frame and off it (RFC 2784, RFC 2890)."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, ip_address

from dvn.diagnose import l3
from dvn.diagnose.frames import ETH_P_IP, ETH_P_TEB, GRE, Packet
from dvn.diagnose.scene import Device, Scene

_KEY = 0x2000
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_ZERO = bytes(6)


def wrapped(device: Device, packet: Packet) -> Packet:
    """The outer packet of a gretap device, without its Ethernet addresses."""
    flags = _KEY if device.key else 0
    key = device.key.to_bytes(4, "big") if device.key else b""
    gre = struct.pack("!HH", flags, ETH_P_TEB) + key + packet.frame
    local = ip_address(device.local or "0.0.0.0").packed
    remote = ip_address(device.remote).packed
    head = _IPV4.pack(0x45, 0, 20 + len(gre), 0, 0, 64, GRE, 0, local, remote)
    outer = Packet(_ZERO + _ZERO + ETH_P_IP.to_bytes(2, "big") + head + gre)
    return l3.with_header_sum(outer)


def unwrapped(scene: Scene, packet: Packet) -> tuple[Device | None, Packet | None, str]:
    """The tunnel that takes a packet for this host, and what is in it; or why none does. All empty
    if it is not GRE."""
    ip, data = packet.ip, packet.transport
    if ip is None or data is None or ip.protocol != GRE or not isinstance(ip.source, IPv4Address):
        return None, None, ""
    if len(data) < 4:
        return None, None, "GRE header cut off"
    flags, protocol = struct.unpack_from("!HH", data)
    if flags & ~_KEY or protocol != ETH_P_TEB:
        return None, None, f"no tunnel takes GRE with flags {flags:#06x}, protocol {protocol:#06x}"
    key = int.from_bytes(data[4:8], "big") if flags else 0
    for device in scene.devices.values():
        if device.kind == "gretap" and (device.local, device.remote, device.key, device.up) == (
            str(ip.destination), str(ip.source), key, True,
        ):  # fmt: skip
            inner = data[8 if flags else 4 :]
            if len(inner) < 14:
                return None, None, "the frame in it is cut off"
            return device, Packet(inner), ""
    return None, None, f"no tunnel from {ip.source} to {ip.destination} has key {key}"
