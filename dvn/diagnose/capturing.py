"""Frames of one device, as they come: AF_PACKET (packet(7)) with a filter in the kernel.

Filters are tcpdump's (pcap-filter(7)), made into a program for the kernel by libpcap; without
libpcap there is capturing, but no filter.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import fcntl
import select
import socket
import struct
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from dvn.diagnose.pcap import ETHERNET, RAW_IP, SNAPLEN, Captured
from dvn.kernel.driver import KernelError

_ETH_P_ALL = 3
_SOL_PACKET = 263
_ADD_MEMBERSHIP, _STATISTICS, _AUXDATA = 1, 6, 8  # linux/if_packet.h
_MR_PROMISC, _OUTGOING = 1, 4
_VLAN_VALID, _VLAN_TPID_VALID = 1 << 4, 1 << 6
_SO_ATTACH_FILTER, _SO_TIMESTAMPNS = 26, 35  # asm-generic/socket.h
_BUFFER = 16 << 20
_ARPHRD_ETHERNET = frozenset({1, 772})  # Ethernet, loopback
_SIOCGIFHWADDR = 0x8927  # linux/sockios.h


class FilterError(ValueError):
    """A filter that libpcap does not understand, or no libpcap."""


class Capture:
    """A socket on one device. Raises KernelError without rights or device, FilterError."""

    def __init__(self, device: str, *, filter_: str = "", snaplen: int = SNAPLEN) -> None:
        self.device, self._snaplen = device, snaplen
        self.link_type = _link_type(device)
        program = compile_filter(filter_, self.link_type, snaplen) if filter_ else b""
        kind = socket.SOCK_RAW if self.link_type == ETHERNET else socket.SOCK_DGRAM
        try:
            self._socket = socket.socket(socket.AF_PACKET, kind, 0)
        except PermissionError:
            raise KernelError("capturing needs root (CAP_NET_RAW): use sudo") from None
        try:
            self._prepare(device, program)
        except OSError as error:
            self._socket.close()
            raise KernelError(f"{device}: {error.strerror}") from None

    def _prepare(self, device: str, program: bytes) -> None:
        sock = self._socket
        if program:
            buffer = ctypes.create_string_buffer(program)
            count = len(program) // 8
            value = struct.pack("HP", count, ctypes.addressof(buffer))
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, value)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        sock.setsockopt(_SOL_PACKET, _AUXDATA, 1)
        sock.bind((device, _ETH_P_ALL))
        # A bridge in promiscuous mode takes up all frames of its ports, not only its own.
        index = socket.if_nametoindex(device)
        request = struct.pack("iHH8s", index, _MR_PROMISC, 0, b"")
        sock.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, request)

    def frames(self, until: Callable[[], float | None]) -> Iterator[Captured]:
        """Frames as they come, while `until` gives the seconds left (None: no limit)."""
        while True:
            left = until()
            if left is not None and left <= 0:
                return
            if select.select([self._socket], [], [], left)[0]:
                yield self._receive()

    def lost(self) -> int:
        """Frames the kernel dropped because nobody took them in time; counted since last asked."""
        raw = self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 8)
        return int(struct.unpack("II", raw)[1])

    def _receive(self) -> Captured:
        # MSG_TRUNC: the whole length, also of what does not fit.
        buffer = bytearray(self._snaplen)
        length, extra, _flags, address = self._socket.recvmsg_into([buffer], 256, socket.MSG_TRUNC)
        data, tagged, when = bytes(buffer[:length]), 0, 0
        for level, kind, value in extra:
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                seconds, rest = struct.unpack("qq", value[:16])
                when = seconds * 1_000_000_000 + rest
            elif level == _SOL_PACKET and kind == _AUXDATA and self.link_type == ETHERNET:
                data, tagged = _with_tag(data, value)
        outgoing = isinstance(address, tuple) and address[2] == _OUTGOING
        return Captured(when, data[: self._snaplen], length + tagged, outgoing)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _link_type(device: str) -> int:
    request = struct.pack("16s24x", device.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, _SIOCGIFHWADDR, request)
        except OSError:
            raise KernelError(f"there is no device {device}; is the site applied?") from None
    kind = struct.unpack_from("H", answer, 16)[0]
    return ETHERNET if kind in _ARPHRD_ETHERNET else RAW_IP


def _with_tag(data: bytes, auxiliary: bytes) -> tuple[bytes, int]:
    """The frame with the VLAN tag the kernel keeps beside it, and how much longer that is."""
    status, _len, _snap, _mac, _net, tci, tpid = struct.unpack_from("IIIHHHH", auxiliary)
    if not status & _VLAN_VALID:
        return data, 0
    protocol = tpid if status & _VLAN_TPID_VALID else 0x8100
    return data[:12] + struct.pack("!HH", protocol, tci) + data[12:], 4


class _Program(ctypes.Structure):
    """struct bpf_program of pcap/bpf.h."""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.POINTER(ctypes.c_char)))


def compile_filter(text: str, link_type: int = ETHERNET, snaplen: int = SNAPLEN) -> bytes:
    """The kernel's program of a filter in tcpdump's language. Raises FilterError."""
    name = ctypes.util.find_library("pcap") or "libpcap.so.0.8"
    try:
        pcap = ctypes.CDLL(name)
    except OSError:
        raise FilterError("a filter needs libpcap: apt-get install libpcap0.8") from None
    pcap.pcap_open_dead.restype = ctypes.c_void_p
    pcap.pcap_geterr.restype = ctypes.c_char_p
    handle = ctypes.c_void_p(pcap.pcap_open_dead(link_type, snaplen))
    program = _Program()
    try:
        done = pcap.pcap_compile(handle, ctypes.byref(program), text.encode(), 1, 0xFFFFFFFF)
        if done != 0:
            words = (pcap.pcap_geterr(handle) or b"").decode(errors="replace")
            raise FilterError(f"filter {text!r}: {words}; see pcap-filter(7)")
        compiled = ctypes.string_at(program.instructions, program.length * 8)
        pcap.pcap_freecode(ctypes.byref(program))
    finally:
        pcap.pcap_close(handle)
    return compiled
