"""DNS messages, as far as a forwarder reads and writes them (RFC 1035): one question, addresses."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dvn.ipam import Address

A, AAAA, CLASS_IN = 1, 28, 1
NO_ERROR, FORMAT_ERROR, SERVER_FAILURE, NO_NAME, REFUSED = 0, 1, 2, 3, 5
_RESPONSE, _AUTHORITATIVE, _RECURSION_WANTED, _RECURSION = 0x8000, 0x0400, 0x0100, 0x0080
_OPCODE = 0x7800
_TTL_S = 30
_HEADER = struct.Struct("!HHHHHH")


@dataclass(frozen=True)
class Question:
    """Of one query. `raw`: its bytes, name, type and class."""

    id: int
    flags: int
    name: str
    kind: int
    raw: bytes


def packed_name(name: str) -> bytes:
    """Labels with their lengths (RFC 1035, 3.1)."""
    labels = (label.encode("ascii") for label in name.split("."))
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def question(data: bytes) -> Question | None:
    """The question of a query; None if it is none, or has not exactly one."""
    if len(data) < _HEADER.size + 5:
        return None
    identity, flags, questions, answers, _authority, _more = _HEADER.unpack_from(data)
    if flags & (_RESPONSE | _OPCODE) or questions != 1 or answers:
        return None
    return _question(data, identity, flags)


def answers_to(data: bytes, asked: Question, identity: int) -> bool:
    """Whether this is the response to a question that was sent on as `identity` (RFC 5452, 9.1)."""
    if len(data) < _HEADER.size:
        return False
    found, flags, questions = _HEADER.unpack_from(data)[:3]
    if found != identity or not flags & _RESPONSE:
        return False
    if questions == 0:  # some servers leave it out of an error
        return bool(flags & 0x000F)
    back = _question(data, found, flags)
    return back is not None and (back.name, back.kind) == (asked.name, asked.kind)


def _question(data: bytes, identity: int, flags: int) -> Question | None:
    labels = []
    at = _HEADER.size
    while at < len(data) and data[at]:
        length = data[at]
        if length > 63 or at + 1 + length >= len(data) or at - _HEADER.size > 254:
            return None
        labels.append(data[at + 1 : at + 1 + length])
        at += 1 + length
    if at + 5 > len(data):
        return None
    (kind,) = struct.unpack_from("!H", data, at + 1)
    name = b".".join(labels).decode("ascii", "replace").lower()
    return Question(identity, flags, name, kind, data[_HEADER.size : at + 5])


def with_id(data: bytes, identity: int) -> bytes:
    return struct.pack("!H", identity) + data[2:]


def response(asked: Question, code: int, addresses: tuple[Address, ...] = ()) -> bytes:
    """Our own answer; with authority where there is a name to answer for."""
    flags = _RESPONSE | _RECURSION | asked.flags & _RECURSION_WANTED | code
    if code in (NO_ERROR, NO_NAME):
        flags |= _AUTHORITATIVE
    records = b"".join(
        struct.pack("!HHHIH", 0xC00C, A if a.version == 4 else AAAA, CLASS_IN, _TTL_S,
                    len(a.packed)) + a.packed
        for a in addresses
    )  # fmt: skip
    head = _HEADER.pack(asked.id, flags, 1, len(addresses), 0, 0)
    return head + asked.raw + records
