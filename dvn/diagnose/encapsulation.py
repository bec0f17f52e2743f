"""GRE around a frame and off it (RFC 2784, RFC 2890), over IPv4, IPv6, and in UDP (RFC 8086)."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, ip_address

from dvn.diagnose import l3
from dvn.diagnose.frames import ETH_P_IP, ETH_P_IP6, ETH_P_TEB, GRE, UDP, Ip, Packet
from dvn.diagnose.scene import Device, Scene
from dvn.diagnose.tracking import internet_sum, pseudo_header

ETHERNET_KINDS = frozenset({"gretap", "ip6gretap"})
KINDS = ETHERNET_KINDS | {"gre", "ip6gre"}
_KEY = 0x2000
_ZERO = bytes(12)


def wrapped(device: Device, packet: Packet) -> Packet:
    """The outer packet of a tunnel, without its Ethernet addresses."""
    inner, protocol = packet.frame, ETH_P_TEB
    if device.kind not in ETHERNET_KINDS:
        inner, protocol = packet.network, packet.protocol
    key = device.key.to_bytes(4, "big") if device.key else b""
    data = struct.pack("!HH", _KEY if device.key else 0, protocol) + key + inner
    local, remote = ip_address(device.local or "0.0.0.0"), ip_address(device.remote)
    number = GRE
    if device.fou:
        number = UDP
        data = struct.pack("!HHHH", *device.fou, 8 + len(data), 0) + data
    if isinstance(remote, IPv4Address):
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(data), 0, 0, 64, number, 0)
        outer = Packet(_with_type(ETH_P_IP, head + local.packed + remote.packed + data))
        return l3.with_header_sum(outer)
    if device.fou:  # IPv6 has no UDP without a checksum
        ip = Ip(6, local, remote, UDP, 40, 0, 64)
        total = internet_sum(pseudo_header(ip, len(data)) + data) or 0xFFFF
        data = data[:6] + total.to_bytes(2, "big") + data[8:]
    head = struct.pack("!IHBB", 6 << 28, len(data), number, 64)
    return Packet(_with_type(ETH_P_IP6, head + local.packed + remote.packed + data))


def _with_type(ethertype: int, data: bytes) -> bytes:
    return _ZERO + ethertype.to_bytes(2, "big") + data


def unwrapped(scene: Scene, packet: Packet) -> tuple[Device | None, Packet | None, str]:
    """The tunnel that takes a packet for this host, and what is in it; or why none does. All empty
    if it is no GRE."""
    ip, data = packet.ip, packet.transport
    if ip is None or data is None:
        return None, None, ""
    if ip.protocol == UDP and len(data) >= 8:
        port = int.from_bytes(data[2:4], "big")
        if all(device.fou is None or device.fou[0] != port for device in scene.devices.values()):
            return None, None, ""
        data = data[8:]
    elif ip.protocol != GRE:
        return None, None, ""
    if len(data) < 4:
        return None, None, "GRE header cut off"
    flags, protocol = struct.unpack_from("!HH", data)
    if flags & ~_KEY or (flags and len(data) < 8):
        return None, None, f"no tunnel takes GRE with flags {flags:#06x}"
    key = int.from_bytes(data[4:8], "big") if flags else 0
    inner = data[8 if flags else 4 :]
    for device in scene.devices.values():
        if device.kind not in KINDS or not device.up:
            continue
        if (device.local, device.remote, device.key) != (
            str(ip.destination), str(ip.source), key,
        ):  # fmt: skip
            continue
        is_frame = device.kind in ETHERNET_KINDS
        if is_frame and protocol == ETH_P_TEB and len(inner) >= 14:
            return device, Packet(inner), ""
        if not is_frame and protocol in (ETH_P_IP, ETH_P_IP6):
            return device, Packet(_with_type(protocol, inner)), ""
        return None, None, f"{device.name} takes no GRE of protocol {protocol:#06x}"
    return None, None, f"no tunnel from {ip.source} to {ip.destination} has key {key}"
