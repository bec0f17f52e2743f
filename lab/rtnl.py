"""The little rtnetlink(7) that makes and removes the lab's cables without a fork.

Messages are packed by hand: `ip` costs a fork and an exec, which is slow in the lab's VM, and a
library costs seconds to import there.
"""

import fcntl
import ipaddress
import os
import socket
import struct
from types import TracebackType
from typing import Self

# Of rtnetlink(7) and the kernel header linux/if_link.h.
_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_NEWROUTE = 16, 17, 20, 24
_REQUEST, _ACK, _EXCL, _CREATE = 0x1, 0x4, 0x200, 0x400
_NLMSG_ERROR = 2
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_NET_NS_PID = 3, 4, 18, 19
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_NESTED = 0x8000
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_F_NODAD = 1, 2, 4, 0x2
_RTA_DST, _RTA_GATEWAY = 1, 5
_RT_TABLE_MAIN, _RTPROT_STATIC, _RTN_UNICAST = 254, 4, 1
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1  # netdevice(7)


def check_name(name: str) -> None:
    """ValueError unless name can be a device's (dev_valid_name in the kernel: 1 to 15 bytes)."""
    if not 0 < len(name.encode()) < 16 or name in (".", "..") or set(name) & set("/: \t\n"):
        raise ValueError(f"interface name {name!r}: use 1 to 15 bytes, no space, slash or colon")


def _attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("HH", length, kind) + payload + b"\0" * (-length % 4)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("I", value))


def _link(index: int = 0) -> bytes:
    return struct.pack("BxHiII", socket.AF_UNSPEC, 0, index, 0, 0)  # struct ifinfomsg


class Netlink:
    """A NETLINK_ROUTE socket of the network namespace that the calling thread is in."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        """Send one message and wait for its acknowledgement; OSError with the kernel's errno."""
        self._sequence += 1
        header = struct.pack(
            "IHHII", 16 + len(body), kind, _REQUEST | _ACK | flags, self._sequence, 0
        )
        self._socket.send(header + body)
        answer = self._socket.recv(65536)
        answered, sequence, number = struct.unpack("4xH2xI4xi", answer[:20])
        if answered != _NLMSG_ERROR or sequence != self._sequence:
            raise OSError(f"netlink: unexpected answer {answered} to message {kind}")
        if number != 0:
            raise OSError(-number, os.strerror(-number))

    def add_veth(self, name: str, pid: int, peer: str, peer_pid: int, mtu: int) -> None:
        """A veth pair whose ends are born in the network namespaces of two processes."""
        other = _link() + _text(_IFLA_IFNAME, peer) + _number(_IFLA_MTU, mtu)
        other += _number(_IFLA_NET_NS_PID, peer_pid)
        info = _text(_IFLA_INFO_KIND, "veth") + _attribute(
            _IFLA_INFO_DATA | _NESTED, _attribute(_VETH_INFO_PEER | _NESTED, other)
        )
        body = _link() + _text(_IFLA_IFNAME, name) + _number(_IFLA_MTU, mtu)
        body += _number(_IFLA_NET_NS_PID, pid) + _attribute(_IFLA_LINKINFO | _NESTED, info)
        self._send(_RTM_NEWLINK, _CREATE | _EXCL, body)

    def delete(self, index: int) -> None:
        """Remove a link by its index."""
        self._send(_RTM_DELLINK, 0, _link(index))

    def add_address(self, interface: str, address: str) -> None:
        """Give a device an address ("10.0.0.1/24"), without duplicate address detection."""
        own = ipaddress.ip_interface(address)
        family = socket.AF_INET if own.version == 4 else socket.AF_INET6
        body = struct.pack(
            "BBBBI",
            family,
            own.network.prefixlen,
            _IFA_F_NODAD,
            0,
            socket.if_nametoindex(interface),
        )
        body += _attribute(_IFA_LOCAL, own.packed) + _attribute(_IFA_ADDRESS, own.packed)
        if own.version == 4 and own.network.prefixlen < 31:
            body += _attribute(_IFA_BROADCAST, own.network.broadcast_address.packed)
        self._send(_RTM_NEWADDR, _CREATE | _EXCL, body)

    def add_route(self, prefix: str, via: str) -> None:
        """Add a route to a prefix, or "default", by a next hop on a connected network."""
        hop = ipaddress.ip_address(via)
        family = socket.AF_INET if hop.version == 4 else socket.AF_INET6
        target = None if prefix == "default" else ipaddress.ip_network(prefix)
        length = 0 if target is None else target.prefixlen
        body = struct.pack(
            "8BI", family, length, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, 0, _RTN_UNICAST, 0
        )
        if target is not None and length:
            body += _attribute(_RTA_DST, target.network_address.packed)
        self._send(_RTM_NEWROUTE, _CREATE | _EXCL, body + _attribute(_RTA_GATEWAY, hop.packed))


def set_up(name: str) -> None:
    """Set a device of our network namespace up (SIOCSIFFLAGS, netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", name.encode(), 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))[1]
        request = struct.pack("16sh14x", name.encode(), flags | _IFF_UP)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)


def delete_links() -> None:
    """Remove every link of our network namespace that can be removed (not lo and its like)."""
    with Netlink() as netlink:
        for index, name in socket.if_nameindex():
            if name == "lo":
                continue
            try:
                netlink.delete(index)
            except OSError:
                continue  # gone with its peer, or a fallback device (gre0, sit0)
