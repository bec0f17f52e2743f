"""What IPv4 and IPv6 themselves refuse or change, before and after any rule."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network

from dvn.diagnose.frames import (
    ETH_P_IP,
    ETH_P_IP6,
    FRAGMENT,
    ICMP6,
    ROUTING,
    TCP,
    UDP,
    Packet,
    is_group,
)
from dvn.diagnose.routing import Flow, Routing
from dvn.diagnose.scene import Device, IpAddress, Scene
from dvn.diagnose.subject import Subject
from dvn.diagnose.tracking import internet_sum

WAITS = "a fragment waits here until all others have come"
UNKNOWN_MAC = "02:00:00:00:00:fe"  # of a neighbour that nobody has asked for yet
_SEGMENT_ROUTING = frozenset({3, 4})  # RPL, SRv6: off unless a sysctl says otherwise
_ZERO4 = ip_network("0.0.0.0/8")
_SOLICITED = ip_network("ff02::1:ff00:0/104")
_ROUTERS = frozenset({ip_address("ff02::2"), ip_address("ff05::2"), ip_address("ff01::2")})
_NODES = frozenset({ip_address("ff02::1"), ip_address("ff01::1"), ip_address("224.0.0.1")})


def malformed(packet: Packet) -> str:
    """Why a host would not even look at it; "" if it would (ip_rcv_core, ip6_rcv_core)."""
    if packet.protocol not in (ETH_P_IP, ETH_P_IP6):
        return f"no protocol of this host has ethertype {packet.protocol:#06x}"
    ip = packet.ip
    if ip is None:
        return "malformed IP header"
    if ip.version == 4 and internet_sum(packet.network[: (packet.network[0] & 15) * 4]) != 0:
        return "wrong IPv4 header checksum"
    return ""


def refused(packet: Packet) -> str:
    """Why IPv6 itself does not take it; "" if it does (ip6_rcv_core)."""
    ip = packet.ip
    if ip is None or ip.version == 4:
        return ""
    if ip.source.is_multicast:
        return f"{ip.source} is no source address"
    if ip.source.is_loopback or ip.destination.is_loopback:
        return "loopback addresses do not come by a wire"
    return ""


def waits(packet: Packet) -> bool:
    """Whether conntrack holds a fragment until it has all of them. It lets an IPv6 fragment pass
    whose length is none a fragment may have (nf_ct_frag6_queue, EPROTO)."""
    ip = packet.ip
    if ip is None or not ip.is_fragment or packet.state == "untracked":
        return False
    start = next((at for kind, at in ip.extensions if kind == FRAGMENT), None)
    return start is None or not ip.more or (ip.length - start - 8) % 8 == 0


def not_taken(packet: Packet) -> str:
    """Why a packet for this host ends before any protocol above IP; "" if it does not."""
    ip = packet.ip
    if ip is not None and ip.is_fragment:
        return WAITS
    for kind, at in ip.extensions if ip is not None else ():
        if kind != ROUTING:
            continue
        if is_group(packet.destination):  # ipv6_rthdr_rcv
            return "a routing header in what came to a group"
        routing, left = packet.network[at + 2], packet.network[at + 3]
        if routing in _SEGMENT_ROUTING or left:
            return f"a routing header of type {routing}, which this host does not take"
    return ""


def source_refused(scene: Scene, routing: Routing, device: Device, subject: Subject) -> str:
    """Why the route lookup refuses the source; "" if it does not (ip_route_input_slow,
    fib_validate_source). IPv6 has no such check."""
    ip = subject.packet.ip
    if ip is None or ip.version == 6:
        return ""
    source, to = ip.source, ip.destination
    if source.is_multicast or str(source) == "255.255.255.255":
        return f"martian source {source}"
    if str(to) == "255.255.255.255":
        if source in _ZERO4:
            return ""
    elif source in _ZERO4 or source.is_loopback:
        return f"martian source {source}"
    elif to in _ZERO4 or to.is_loopback:
        return f"martian destination {to}"
    back = routing.lookup(Flow(source, to, subject.iif, mark=subject.packet.mark))
    if back is not None and back.kind in ("local", "broadcast"):
        return f"martian source {source}: an address of this host"
    wanted = max(
        scene.number("net/ipv4/conf/all/rp_filter"),
        scene.number(f"net/ipv4/conf/{device.name}/rp_filter"),
    )
    if wanted == 0:
        return ""
    if back is None:
        return f"rp_filter: there is no route back to {source}"
    if wanted == 1 and back.device not in (device.name, subject.iif):
        return f"rp_filter: the way back to {source} is by {back.device}, not by {device.name}"
    return ""


def forwards(scene: Scene, device: Device, version: int) -> bool:
    if version == 4:
        every = scene.sysctls.get("net/ipv4/ip_forward", "0")
        return bool(int(scene.sysctls.get(f"net/ipv4/conf/{device.name}/forwarding", every)))
    return bool(scene.number("net/ipv6/conf/all/forwarding"))


def not_forwarded(packet: Packet, mtu: int) -> str:
    """Why it is not forwarded; "" if it is (ip_forward, ip6_forward)."""
    ip = packet.ip
    if ip is None:
        return "not an IP packet"
    if ip.hops <= 1:
        return "its time to live has run out"
    if packet.destination == "ff:ff:ff:ff:ff:ff" or int(packet.destination[:2], 16) & 1:
        return "what came as broadcast is not forwarded"
    if ip.version == 6 and (ip.source.is_link_local or ip.source.is_unspecified):
        return f"{ip.source} does not leave its link"
    if ip.length > mtu and (ip.version == 6 or ip.dont_fragment):
        return f"{ip.length} bytes do not fit into {mtu}; the sender is told"
    return ""


def is_discovery(packet: Packet) -> bool:
    """Neighbour discovery right behind the IPv6 header (ipv6_ndisc_frame)."""
    ip, data = packet.ip, packet.transport
    return bool(
        ip and data and ip.version == 6 and ip.protocol == ICMP6
        and not ip.extensions and 133 <= data[0] <= 137
    )  # fmt: skip


def is_for_link(packet: Packet) -> bool:
    """For a group, or in IPv6 also for a link-local address (rt6_need_strict)."""
    ip = packet.ip
    if ip is None:
        return False
    if ip.version == 4:
        return ip.destination.is_multicast
    to = ip.destination
    return to.is_multicast or to.is_link_local or to.is_loopback


def listens(scene: Scene, device: Device, group: IpAddress) -> bool:
    """Whether the host itself is a member of a multicast group on a device."""
    if group in _NODES:
        return True
    if group in _ROUTERS:
        return bool(scene.number("net/ipv6/conf/all/forwarding"))
    if isinstance(group, IPv6Address) and group in _SOLICITED:
        tail = int(group) & 0xFFFFFF
        return any(own.version == 6 and int(own.ip) & 0xFFFFFF == tail for own in device.addresses)
    return False


def aged(packet: Packet) -> Packet:
    """One hop older. The IPv4 checksum follows."""
    ip = packet.ip
    if ip is None:
        return packet
    if ip.version == 6:
        return packet.with_network(7, bytes([ip.hops - 1]))
    return with_header_sum(packet.with_network(8, bytes([ip.hops - 1])))


def with_header_sum(packet: Packet) -> Packet:
    head = packet.network[: (packet.network[0] & 15) * 4]
    return packet.with_network(10, internet_sum(head[:10] + b"\0\0" + head[12:]).to_bytes(2, "big"))


def rewritten(packet: Packet, source: bool, address: int | None, port: int | None) -> Packet:
    """With another source or destination (NAT); checksums of the transport stay."""
    ip = packet.ip
    if ip is None:
        return packet
    if address is not None:
        if ip.version == 4:
            at, raw = (12 if source else 16), address.to_bytes(4, "big")
            packet = with_header_sum(packet.with_network(at, raw))
        else:
            packet = packet.with_network(8 if source else 24, address.to_bytes(16, "big"))
    if port is not None and ip.protocol in (TCP, UDP) and not ip.offset:
        packet = packet.with_transport(0 if source else 2, port.to_bytes(2, "big"))
    return packet


def first_address(device: Device | None, version: int) -> IpAddress | None:
    if device is None:
        return None
    return next(
        (a.ip for a in device.addresses if a.version == version and not a.ip.is_link_local), None
    )
