"""Looking at a wire and at the kernel's own event streams, without a fork."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeVar

from lab.host import Host

T = TypeVar("T")

ETH_P_ALL = 3
SOL_PACKET, PACKET_AUXDATA = 263, 8
TP_STATUS_VLAN_VALID = 1 << 4
NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
SO_RCVBUFFORCE = 33
RTNLGRP = {"link": 1, "ipv4 address": 5, "ipv4 route": 7, "ipv6 address": 9, "ipv6 route": 11}
NFNLGRP_NFTABLES = 7
LIMIT_S = 30.0


@dataclass(frozen=True)
class Frame:
    """An Ethernet frame; `vlan` from the kernel's metadata, where it keeps the tag."""

    data: bytes
    vlan: int | None

    @property
    def ethertype(self) -> int:
        return int.from_bytes(self.data[12:14], "big")

    @property
    def protocol(self) -> int | None:
        return self.data[23] if self.ethertype == 0x0800 else None

    def addresses(self) -> tuple[str, str]:
        return socket.inet_ntoa(self.data[26:30]), socket.inet_ntoa(self.data[30:34])

    def gre_key(self) -> int | None:
        """RFC 2890: flags 0x2000, then the protocol, then the key."""
        start = 14 + (self.data[14] & 15) * 4
        flags, protocol, key = struct.unpack_from("!HHI", self.data, start)
        return key if flags == 0x2000 and protocol == 0x6558 else None

    def mss(self) -> tuple[bool, int] | None:
        """(is a SYN-ACK, MSS) of a TCP SYN in IPv4."""
        if self.protocol != 6:
            return None
        tcp = self.data[14 + (self.data[14] & 15) * 4 :]
        if not tcp[13] & 0x02:
            return None
        options = tcp[20 : (tcp[12] >> 4) * 4]
        while options and options[0] != 0:
            if options[0] == 1:
                options = options[1:]
                continue
            if options[0] == 2:
                return bool(tcp[13] & 0x10), int.from_bytes(options[2:4], "big")
            options = options[options[1] :]
        return None


class Sniffer:
    """Frames on one interface of a host, from now on."""

    def __init__(self, host: Host, interface: str) -> None:
        self._frames: list[Frame] = []

        def open_() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            sock.bind((interface, ETH_P_ALL))
            sock.settimeout(0.1)
            return sock

        self._socket = host.inside(open_)
        self._closed = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._closed:
            try:
                data, extra, _flags, _address = self._socket.recvmsg(2048, 256)
            except TimeoutError:
                continue
            vlan = None
            for level, kind, value in extra:
                if level == SOL_PACKET and kind == PACKET_AUXDATA:
                    status, tci = struct.unpack_from("=I12xH", value.ljust(20, b"\0"))
                    vlan = tci & 0xFFF if status & TP_STATUS_VLAN_VALID else None
            self._frames.append(Frame(data, vlan))

    def wait(self, wanted: Callable[[Frame], T | None]) -> T:
        """What `wanted` finds in the first frame where it finds something."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            for frame in tuple(self._frames):
                found = wanted(frame)
                if found is not None:
                    return found
            threading.Event().wait(0.02)
        raise AssertionError(f"not among {len(self._frames)} frames")

    def frames(self) -> tuple[Frame, ...]:
        return tuple(self._frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._thread.join()
        self._socket.close()


class Events:
    """What the kernel announces of links, addresses, routes and nftables in a host: every write
    shows here, whoever made it."""

    def __init__(self, host: Host) -> None:
        def open_(protocol: int, groups: list[int]) -> socket.socket:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
            sock.bind((0, 0))
            for group in groups:
                sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
            return sock

        self._sockets = [
            host.inside(lambda: open_(NETLINK_ROUTE, list(RTNLGRP.values()))),
            host.inside(lambda: open_(NETLINK_NETFILTER, [NFNLGRP_NFTABLES])),
        ]

    def read(self, quiet_s: float = 0.0) -> tuple[int, int]:
        """(route, nftables) messages since the last reading, until none came for `quiet_s`."""
        counts = []
        for sock in self._sockets:
            count = 0
            sock.settimeout(max(quiet_s, 0.001))
            while True:
                try:
                    data = sock.recv(1 << 18)
                except TimeoutError:
                    break
                while len(data) >= 16:
                    (length,) = struct.unpack_from("=I", data)
                    count += 1
                    data = data[(length + 3) & ~3 :]
            counts.append(count)
        return counts[0], counts[1]

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
