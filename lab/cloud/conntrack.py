"""Forget tracked connections of an address, by hand-packed ctnetlink (linux/nfnetlink_conntrack.h).

A translated connection keeps its translation for as long as it is tracked, whatever the rules say
by then. So who takes an address away must also forget its connections.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterator

_NETFILTER = 12  # NETLINK_NETFILTER
_GET, _DELETE = 0x101, 0x102  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_TUPLE_ORIG, _TUPLE_REPLY, _ID = 1, 2, 12
_TUPLE_IP = 1
_TYPE_MASK = 0x3FFF
_HEADER = struct.Struct("IHHII")
_FAMILY = struct.pack("BBH", socket.AF_INET, 0, 0)  # struct nfgenmsg


def attributes(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(type, content, the attribute as a whole) of each netlink attribute in `data`."""
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("HH", data, at)
        if length < 4:
            return
        yield kind & _TYPE_MASK, data[at + 4 : at + length], data[at : at + length]
        at += (length + 3) & ~3


def addresses(entry: bytes) -> set[str]:
    """Every IPv4 address in both directions of a connection (its attributes)."""
    found = set()
    for kind, tuple_, _ in attributes(entry):
        if kind not in (_TUPLE_ORIG, _TUPLE_REPLY):
            continue
        for inner, content, _ in attributes(tuple_):
            if inner == _TUPLE_IP:
                pair = (c for _, c, _ in attributes(content) if len(c) == 4)
                found |= {socket.inet_ntoa(c) for c in pair}
    return found


def forget(of: Collection[str]) -> int:
    """Delete all tracked connections, in this thread's network namespace, that name one of these
    addresses in any direction. Returns how many. Raises `OSError`."""
    wanted = set(of)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER) as link:
        link.settimeout(5)
        doomed = [entry for entry in _dump(link) if addresses(entry) & wanted]
        return sum(_delete(link, entry) for entry in doomed)


def _dump(link: socket.socket) -> Iterator[bytes]:
    link.send(_HEADER.pack(_HEADER.size + 4, _GET, _REQUEST | _DUMP, 1, 0) + _FAMILY)
    while True:
        for kind, body in _messages(link.recv(1 << 18)):
            if kind == _DONE:
                return
            if kind == _ERROR:
                raise OSError(-struct.unpack_from("i", body)[0], "cannot list connections")
            yield body[4:]


def _delete(link: socket.socket, entry: bytes) -> bool:
    chosen = b""
    for kind, _, whole in attributes(entry):
        if kind in (_TUPLE_ORIG, _ID):
            chosen += whole + b"\0" * (-len(whole) % 4)
    size = _HEADER.size + 4 + len(chosen)
    link.send(_HEADER.pack(size, _DELETE, _REQUEST | _ACK, 2, 0) + _FAMILY + chosen)
    ((_, body),) = _messages(link.recv(1 << 16))
    return bool(struct.unpack_from("i", body)[0] == 0)  # else it had ended by itself


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        yield kind, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3
