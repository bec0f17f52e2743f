"""Route netlink by hand: pack requests, read only the attributes that are needed.

A few hundred lines of standard library instead of a general codec: the daemon's privileged half
starts in a fraction of a second, and thousands of links are read in tens of milliseconds. Formats:
netlink(7), rtnetlink(7), linux/netlink.h. tests/dvn/test_packed.py holds it against pyroute2.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

Attributes: TypeAlias = dict[int, bytes]

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_DUMP_INTR = 0x10
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLM_F_ACK_TLVS = 0x200
NLMSG_ERROR, NLMSG_DONE = 2, 3
NETLINK_NETFILTER = 12
NLMSGERR_ATTR_MSG = 1
SOL_NETLINK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 270, 11, 12
NLA_TYPE_MASK = 0x3FFF
NLA_F_NESTED = 0x8000

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TIMEOUT_S = 30
TIMEOUT = struct.pack("@ll", _TIMEOUT_S, 0)  # not settimeout(), which overrides MSG_DONTWAIT
_RECEIVE = 1 << 18
_DATAGRAM = 128 << 10  # the kernel's default for a socket's send buffer is 208 KiB


class NetlinkError(OSError):
    """The kernel refused a request; `args[1]` has its own explanation where it gave one.

    `step`: the number of the step, where the requests of several were sent together.
    """

    step: int = 0


class DumpInterruptedError(NetlinkError):
    """The tables changed while they were read, again and again."""


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes (linux/netlink.h, nlattr)."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def u8(kind: int, value: int) -> bytes:
    return attribute(kind, bytes([value]))


def u16(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=H", value))


def be16(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!H", value))


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def be32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value))


def attributes(data: bytes | memoryview, offset: int = 0) -> Attributes:
    """All attributes from `offset` on, by type; the last of several of one type."""
    found: Attributes = {}
    view = memoryview(data)
    end = len(view)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(view, offset)
        if length < 4 or offset + length > end:
            break
        found[kind & NLA_TYPE_MASK] = bytes(view[offset + 4 : offset + length])
        offset += (length + 3) & ~3
    return found


def attribute_header(data: bytes, offset: int) -> tuple[int, int]:
    """(length, type) of the attribute at `offset`."""
    length, kind = _ATTRIBUTE.unpack_from(data, offset)
    return length, kind & NLA_TYPE_MASK


class Shapes:
    """Reads attributes several times faster than `attributes`, where many messages have the same
    shape (the same types with the same lengths, in the same order): the headers of all are read at
    once and compared with those of a message that was read one by one before.

    `wanted`: the types that are returned; all of them unless given.
    """

    _MOST = 24  # of one length; messages that vary more are read one by one

    def __init__(self, *wanted: int) -> None:
        self._wanted = frozenset(wanted)
        self._known: dict[int, list[_Shape]] = {}  # by the length of the data

    def read(self, data: bytes) -> Attributes:
        known = self._known.setdefault(len(data), [])
        for headers, words, places in known:
            if headers(data) == words:
                return {kind: data[place] for kind, place in places}
        found = attributes(data)
        if len(known) < self._MOST:
            shape = self._learn(data)
            if shape:
                known.append(shape)
        if not self._wanted:
            return found
        return {kind: value for kind, value in found.items() if kind in self._wanted}

    def _learn(self, data: bytes) -> _Shape | None:
        places: dict[int, slice] = {}
        parts = []
        end, here = len(data), 0
        while here + 4 <= end:
            length, kind = _ATTRIBUTE.unpack_from(data, here)
            if length < 4 or here + length > end:
                return None
            kind &= NLA_TYPE_MASK
            if not self._wanted or kind in self._wanted:
                places[kind] = slice(here + 4, here + length)
            padded = min((length + 3) & ~3, end - here)
            parts.append(f"I{padded - 4}x")
            here += padded
        headers = struct.Struct("=" + "".join(parts))
        return headers.unpack_from, headers.unpack_from(data), tuple(places.items())


_Shape: TypeAlias = tuple[
    Callable[[bytes], tuple[int, ...]], tuple[int, ...], tuple[tuple[int, slice], ...]
]


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, payload) of each message of one datagram."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _pid = _HEADER.unpack_from(data, offset)
        if length < 16:
            break
        yield kind, flags, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


class Request:
    """One message to the kernel: type, flags, body; `what` it is for, in error messages.

    `forgiven`: error numbers that are none here, such as ENODEV where something is removed.
    """

    __slots__ = ("body", "flags", "forgiven", "kind", "what")

    def __init__(
        self,
        kind: int,
        flags: int,
        body: bytes,
        what: str,
        forgiven: frozenset[int] = frozenset(),
    ) -> None:
        self.kind, self.flags, self.body, self.what = kind, flags, body, what
        self.forgiven = forgiven

    def pack(self, sequence: int, flags: int = NLM_F_ACK) -> bytes:
        length = 16 + len(self.body)
        header = _HEADER.pack(length, self.kind, self.flags | NLM_F_REQUEST | flags, sequence, 0)
        return header + self.body + b"\0" * (-length % 4)


class Socket:
    """A netlink socket in the network namespace of the thread that makes it; of route netlink
    unless told otherwise."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, TIMEOUT)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def send(self, requests: Iterable[Request]) -> None:
        """Send the requests of one step: in one datagram, which the kernel carries out in one
        system call, so that a kill of this process between two of them cannot happen.

        Raises NetlinkError for the first that was refused; those behind it were tried all the same.
        """
        self.send_steps([list(requests)])

    def send_steps(self, steps: Iterable[Sequence[Request]]) -> None:
        """Send the requests of many steps, many in one datagram, in order.

        The kernel answers what it refuses, and the last of each datagram. Raises NetlinkError, its
        `step` the number of the first step that was refused; the rest of its datagram was tried
        all the same, what comes after was not sent.
        """
        pending: list[tuple[int, Request]] = []
        size = 0
        for number, requests in enumerate(steps):
            grown = sum(len(request.body) + 19 for request in requests)
            if pending and size + grown > _DATAGRAM:
                self._send(pending)
                pending, size = [], 0
            pending += [(number, request) for request in requests]
            size += grown
        if pending:
            self._send(pending)

    def _send(self, rows: list[tuple[int, Request]]) -> None:
        first = self._sequence + 1
        self._sequence += len(rows)
        last = self._sequence
        packed = [
            request.pack(sequence, NLM_F_ACK if sequence == last else 0)
            for sequence, (_number, request) in enumerate(rows, first)
        ]
        self._socket.send(b"".join(packed))
        refused: NetlinkError | None = None
        while True:
            for kind, flags, sequence, payload in messages(self._receive()):
                if kind != NLMSG_ERROR or not first <= sequence <= last:
                    continue
                number, request = rows[sequence - first]
                error = error_of(payload, flags, request.what)
                if error and error.errno not in request.forgiven and refused is None:
                    refused = error
                    refused.step = number
                if sequence == last:
                    if refused:
                        raise refused
                    return

    def ask(self, kind: int, body: bytes, what: str) -> bytes:
        """The one message that answers a question. Raises NetlinkError."""
        self._sequence += 1
        header = _HEADER.pack(16 + len(body), kind, NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(header + body)
        while True:
            for got, flags, sequence, payload in messages(self._receive()):
                if sequence != self._sequence:
                    continue
                if got == NLMSG_ERROR:
                    raise error_of(payload, flags, what) or NetlinkError(errno.EPROTO, what)
                return payload

    def ask_each(self, kind: int, bodies: Sequence[bytes], what: str) -> list[bytes | None]:
        """The answer to each question; None where there is no such thing (ENODEV)."""
        found: list[bytes | None] = []
        for body in bodies:  # few: a dump is for many
            self._sequence += 1
            header = _HEADER.pack(16 + len(body), kind, NLM_F_REQUEST, self._sequence, 0)
            self._socket.send(header + body)
            found.append(self._answer(what))
        return found

    def _answer(self, what: str) -> bytes | None:
        while True:
            for kind, flags, sequence, payload in messages(self._receive()):
                if sequence != self._sequence:
                    continue
                if kind != NLMSG_ERROR:
                    return payload
                error = error_of(payload, flags, what)
                if error is None or error.errno == errno.ENODEV:
                    return None
                raise error

    def dump(self, kind: int, body: bytes, what: str) -> list[bytes]:
        """All objects of a kind. Read again if they changed meanwhile (NLM_F_DUMP_INTR)."""
        for _attempt in range(10):
            found, consistent = self._dump(kind, body, what)
            if consistent:
                return found
        raise DumpInterruptedError(
            errno.EINTR, f"{what}: the kernel's tables change faster than they read"
        )

    def _dump(self, kind: int, body: bytes, what: str) -> tuple[list[bytes], bool]:
        self._sequence += 1
        header = _HEADER.pack(16 + len(body), kind, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, 0)
        self._socket.send(header + body)
        found: list[bytes] = []
        consistent = True
        while True:
            for got, flags, sequence, payload in messages(self._receive()):
                if sequence != self._sequence:
                    continue
                consistent = consistent and not flags & NLM_F_DUMP_INTR
                if got == NLMSG_ERROR:
                    raise error_of(payload, flags, what) or NetlinkError(errno.EPROTO, what)
                if got == NLMSG_DONE:
                    (code,) = struct.unpack_from("=i", payload) if len(payload) >= 4 else (0,)
                    if code:
                        raise NetlinkError(-code, f"{what}: {os.strerror(-code)}")
                    return found, consistent
                found.append(payload)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_RECEIVE)
        except BlockingIOError:
            raise NetlinkError(
                errno.ETIMEDOUT, f"the kernel did not answer within {_TIMEOUT_S} s"
            ) from None
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            # Answers were lost, and with them which requests were refused: who sent them looks.
            self._drain()
            raise NetlinkError(
                errno.ENOBUFS, "the kernel had more to answer than fits; some of it is lost"
            ) from None

    def _drain(self) -> None:
        """Throw away what is queued: the kernel answers before send() returns."""
        try:
            while self._socket.recv(_RECEIVE, socket.MSG_DONTWAIT):
                pass
        except OSError:
            return


def error_of(payload: bytes, flags: int, what: str) -> NetlinkError | None:
    (code,) = struct.unpack_from("=i", payload)
    if code == 0:
        return None
    words = os.strerror(-code)
    if flags & NLM_F_ACK_TLVS:
        # Behind the code: the request's header, or with NLM_F_CAPPED off the whole request.
        (length,) = struct.unpack_from("=I", payload, 4)
        capped = flags & 0x100
        start = 4 + (16 if capped else (length + 3) & ~3)
        said = attributes(payload, start).get(NLMSGERR_ATTR_MSG)
        if said:
            words += f" ({said.rstrip(bytes(1)).decode(errors='replace')})"
    return NetlinkError(-code, f"{what}: {words}")
