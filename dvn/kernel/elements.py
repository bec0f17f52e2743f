"""Elements of nft sets to and from the kernel's own form (linux/netfilter/nf_tables.h). Pure.

A site's rules are few and its elements many: libnftables has the rules, and thousands of elements
go by here, several times faster and without a look at those that are there already.
tests/dvn/test_elements.py holds it against nft itself.
"""

from __future__ import annotations

import re
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeAlias

from dvn.kernel import netlink as nl
from dvn.kernel.state import Element, NftSet

NFTA_LIST_ELEM = 1
NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_FLAGS = 1, 2, 3
NFTA_SET_ELEM_KEY_END = 10
NFTA_DATA_VALUE = 1
INTERVAL_END = 1
_KNOWN = frozenset(
    {NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_FLAGS, NFTA_SET_ELEM_KEY_END}
)
_MOST = 60_000  # bytes of elements in one message: an attribute's length has 16 bits
_END_FLAG = nl.be32(NFTA_SET_ELEM_FLAGS, INTERVAL_END)


_Edge: TypeAlias = tuple[bytes, bool, bytes | None]  # key, whether it is a start, value


class UnknownFormError(ValueError):
    """An element or a type that this module does not know: libnftables does."""


@dataclass(frozen=True)
class _Field:
    """A type of a key or value. `ranges`: whether a prefix can stand for it in an interval set."""

    size: int
    pack: Callable[[str], bytes]
    unpack: Callable[[bytes], str]
    ranges: bool = False


_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "dccp": 33, "gre": 47, "esp": 50, "sctp": 132}
_PROTOCOL_NAMES = {number: name for name, number in _PROTOCOLS.items()}
_FAMILIES = {"ipv4": int(socket.AF_INET), "ipv6": int(socket.AF_INET6)}
_FAMILY_NAMES = {number: name for name, number in _FAMILIES.items()}


def _pack_name(text: str) -> bytes:
    if len(text) > 15 or "*" in text:
        raise UnknownFormError(text)
    return text.encode().ljust(16, b"\0")


def _number(size: int, order: str) -> _Field:
    return _Field(
        size,
        lambda text: int(text, 0).to_bytes(size, order),  # type: ignore[arg-type]
        lambda data: str(int.from_bytes(data, order)),  # type: ignore[arg-type]
    )


FIELDS = {
    "ifname": _Field(16, _pack_name, lambda data: data.rstrip(b"\0").decode()),
    "ipv4_addr": _Field(4, socket.inet_aton, socket.inet_ntoa, ranges=True),
    "ipv6_addr": _Field(
        16,
        lambda text: socket.inet_pton(socket.AF_INET6, text),
        lambda data: socket.inet_ntop(socket.AF_INET6, data),
        ranges=True,
    ),
    "ether_addr": _Field(
        6, lambda text: bytes.fromhex(text.replace(":", "")), lambda data: data.hex(":")
    ),
    "inet_proto": _Field(
        1,
        lambda text: bytes([_PROTOCOLS[text]]),
        lambda data: _PROTOCOL_NAMES[data[0]],
    ),
    "nf_proto": _Field(
        1, lambda text: bytes([_FAMILIES[text]]), lambda data: _FAMILY_NAMES[data[0]]
    ),
    "inet_service": _number(2, "big"),
    "mark": _number(4, sys.byteorder),
}


_BITS = re.compile(r"@\w+,\d+,(\d+)")
# Integers that nft knows by a word instead of their place in the packet.
_WORDS = {"tcp option maxseg size": _number(2, "big"), "ct zone": _number(2, sys.byteorder)}


def _fields(known: Mapping[str, _Field], kinds: Sequence[str], typeof: str) -> Iterator[_Field]:
    """The fields of these types; integers are as long as `typeof` says. KeyError if it does not."""
    words = typeof.split(" . ") if typeof else [""] * len(kinds)
    for kind, word in zip(kinds, words, strict=True):
        bits = _BITS.fullmatch(word)
        if kind != "integer":
            yield known[kind]
        elif bits:
            yield _integer(int(bits[1]))
        else:
            yield _WORDS[word]


def _integer(bits: int) -> _Field:
    """A piece of a packet; nft shows more than 64 bits as a hexadecimal number."""
    if bits % 8:
        raise KeyError(f"{bits} bits")
    show = hex if bits > 64 else str
    return _Field(
        bits // 8,
        lambda text: int(text, 0).to_bytes(bits // 8, "big"),
        lambda data: show(int.from_bytes(data, "big")),
    )


class Form:
    """How the elements of one set are written and read. UnknownFormError if it cannot be."""

    def __init__(self, set_: NftSet) -> None:
        try:
            # In interval sets nft keeps numbers of the host's byte order in the network's.
            fields = {**FIELDS, "mark": _number(4, "big")} if set_.interval else FIELDS
            keys, _, values = set_.typeof.partition(" : ")
            kinds = set_.data.split(" . ") if set_.data else []
            self._fields = [*_fields(fields, set_.type, keys)]
            self._values = [*_fields(FIELDS, kinds, values)]
        except KeyError as error:
            raise UnknownFormError(f"type {error}") from None
        self._joined = len(self._fields) > 1  # each part of it padded to four bytes
        self._interval = set_.interval
        self._pairs = set_.interval and not self._joined  # a start and an end, each an element
        if self._pairs and not self._fields[0].ranges:
            raise UnknownFormError(f"intervals of {set_.type[0]}")
        self._width = len(self._fields)
        # What was read before is not read again; in most looks most elements are the same.
        self._memory: dict[bytes, Element] = {}
        self._edges: dict[bytes, _Edge] = {}
        self._intervals: dict[tuple[bytes, bytes, bytes | None], Element] = {}

    # -- writing

    def messages(self, elements: Iterable[Element], *, keys_only: bool = False) -> Iterator[bytes]:
        """The elements, as many to a piece as one message takes."""
        pieces: list[bytes] = []
        size = 0
        for element in elements:
            packed = self.pack(element, keys_only=keys_only)
            if size + len(packed) > _MOST:
                yield b"".join(pieces)
                pieces, size = [], 0
            pieces.append(packed)
            size += len(packed)
        if pieces:
            yield b"".join(pieces)

    def pack(self, element: Element, *, keys_only: bool = False) -> bytes:
        """One element as the kernel takes it; of a simple interval set its start and its end."""
        try:
            starts, ends = self._ends(element)
            value = b"" if keys_only else self._data(element)
        except (OSError, KeyError, ValueError) as error:
            raise UnknownFormError(f"element {element}: {error}") from None
        data = _value(NFTA_SET_ELEM_DATA, value) if value else b""
        body = _value(NFTA_SET_ELEM_KEY, starts)
        if self._pairs:
            return _element(body + data) + _end_of(ends)
        if self._interval:
            body += _value(NFTA_SET_ELEM_KEY_END, ends)
        body += data
        if not keys_only:  # it will be read again soon, and looks the same then
            self._memory[body] = element
        return _element(body)

    def _ends(self, element: Element) -> tuple[bytes, bytes]:
        """The smallest and the largest key that the element stands for."""
        if len(element) < self._width:
            raise UnknownFormError(f"element {element}")
        starts, ends = [], []
        for field, text in zip(self._fields, element, strict=False):
            if self._interval and field.ranges:
                start, end = _range(field, text)
            else:
                start = end = field.pack(text)
            starts.append(start)
            ends.append(end)
        if not self._joined:
            return starts[0], ends[0]
        return b"".join(map(_padded, starts)), b"".join(map(_padded, ends))

    def _data(self, element: Element) -> bytes:
        if not self._values:
            return b""
        parts = [
            field.pack(text)
            for field, text in zip(self._values, element[self._width :], strict=True)
        ]
        return parts[0] if len(parts) == 1 else b"".join(map(_padded, parts))

    # -- reading

    def read(self, lists: Iterable[bytes]) -> frozenset[Element]:
        """The elements of a dump: the contents of its NFTA_SET_ELEM_LIST_ELEMENTS."""
        try:
            return self._read(lists)
        except KeyError as error:  # a key that is not there, a number without a name
            raise UnknownFormError(f"an element with {error}") from None

    def _read(self, lists: Iterable[bytes]) -> frozenset[Element]:
        if self._pairs:
            return frozenset(self._paired(record for data in lists for record in _records(data)))
        found = []
        memory = self._memory
        for data in lists:
            for record in _records(data):
                element = memory.get(record)
                if element is None:
                    element = self._unpack(record)
                found.append(element)
        if len(memory) > 2 * len(found) + 1000:
            memory.clear()
        return frozenset(found)

    def _unpack(self, record: bytes) -> Element:
        parts = nl.attributes(record)
        start = _inner(parts[NFTA_SET_ELEM_KEY])
        end = _inner(parts[NFTA_SET_ELEM_KEY_END]) if NFTA_SET_ELEM_KEY_END in parts else start
        element = self._named(start, end, parts.get(NFTA_SET_ELEM_DATA))
        if parts.keys() <= _KNOWN:  # no counter or timeout, which would make it another each time
            self._memory[record] = element
        return element

    def _paired(self, records: Iterator[bytes]) -> Iterator[Element]:
        rows = sorted(map(self._edge, records), key=_place)
        memory = self._intervals
        for (key, opens, data), after in zip_longest(rows, rows[1:]):
            if not opens:
                continue
            interval = (key, after[0] if after else b"", data)
            element = memory.get(interval)
            if element is None:
                behind = int.from_bytes(interval[1], "big") or 1 << 8 * len(key)
                end = (behind - 1).to_bytes(len(key), "big")
                element = memory[interval] = self._named(key, end, data)
            yield element
        if len(memory) > 2 * len(rows) + 1000:
            memory.clear()

    def _edge(self, record: bytes) -> _Edge:
        """The start or the end of an interval."""
        edge = self._edges.get(record)
        if edge is None:
            parts = nl.attributes(record)
            flags = int.from_bytes(parts.get(NFTA_SET_ELEM_FLAGS, b""), "big")
            key = _inner(parts[NFTA_SET_ELEM_KEY])
            edge = (key, not flags & INTERVAL_END, parts.get(NFTA_SET_ELEM_DATA))
            if len(self._edges) > 1 << 17:
                self._edges.clear()
            self._edges[record] = edge
        return edge

    def _named(self, start: bytes, end: bytes, data: bytes | None) -> Element:
        place = 0
        words = []
        for field in self._fields:
            behind = place + field.size
            if end[place:behind] == start[place:behind]:
                words.append(field.unpack(start[place:behind]))
            else:
                words.append(_range_text(field, start[place:behind], end[place:behind]))
            place = (behind + 3) & ~3
        if data is not None:
            value, place = _inner(data), 0
            for field in self._values:
                words.append(field.unpack(value[place : place + field.size]))
                place = (place + field.size + 3) & ~3
        return tuple(words)


def _place(edge: _Edge) -> tuple[bytes, bool]:
    return edge[0], edge[1]  # at one key, an end comes before a start


def _records(data: bytes) -> Iterator[bytes]:
    """The contents of each NFTA_LIST_ELEM."""
    here, end = 0, len(data)
    while here + 4 <= end:
        length = data[here] | data[here + 1] << 8 if _LITTLE else data[here] << 8 | data[here + 1]
        if length < 4:
            return
        yield data[here + 4 : here + length]
        here += (length + 3) & ~3


_LITTLE = sys.byteorder == "little"


def _inner(data: bytes) -> bytes:
    """The value in NFTA_SET_ELEM_KEY or NFTA_SET_ELEM_DATA: an NFTA_DATA_VALUE."""
    length, kind = struct.unpack_from("=HH", data)
    if kind & nl.NLA_TYPE_MASK != NFTA_DATA_VALUE:
        raise UnknownFormError("a verdict")
    return data[4:length]


def _element(body: bytes) -> bytes:
    return _HEADER(4 + len(body), NFTA_LIST_ELEM | nl.NLA_F_NESTED) + body


_HEADER = struct.Struct("=HH").pack


def _end_of(last: bytes) -> bytes:
    """The element that ends an interval: one behind its last key, if there is one."""
    behind = int.from_bytes(last, "big") + 1
    if behind >= 1 << 8 * len(last):
        return b""
    return _element(_value(NFTA_SET_ELEM_KEY, behind.to_bytes(len(last), "big")) + _END_FLAG)


def _value(kind: int, value: bytes) -> bytes:
    padded = value + b"\0" * (-len(value) % 4)
    return (
        _HEADER(8 + len(padded), kind)  # without NLA_F_NESTED, as the kernel shows it
        + _HEADER(4 + len(value), NFTA_DATA_VALUE)
        + padded
    )


def _padded(part: bytes) -> bytes:
    return part + b"\0" * (-len(part) % 4)


def _range(field: _Field, text: str) -> tuple[bytes, bytes]:
    """First and last of `10.9.0.0/24`, `10.9.0.1-10.9.0.9`, or one address."""
    base, slash, length = text.partition("/")
    if not slash:
        first, dash, last = text.partition("-")
        start = field.pack(first)
        return start, field.pack(last) if dash else start
    start = field.pack(base)
    number = int.from_bytes(start, "big") | (1 << 8 * field.size - int(length)) - 1
    return start, number.to_bytes(field.size, "big")


def _range_text(field: _Field, start: bytes, end: bytes) -> str:
    first, last = int.from_bytes(start, "big"), int.from_bytes(end, "big")
    size = last - first + 1
    if size > 0 and size & size - 1 == 0 and first % size == 0:
        return f"{field.unpack(start)}/{8 * field.size - size.bit_length() + 1}"
    return f"{field.unpack(start)}-{field.unpack(end)}"
