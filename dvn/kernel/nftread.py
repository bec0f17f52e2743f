"""Tables, sets, chains and rules as the kernel tells them (linux/netfilter/nf_tables.h). Pure.

libnftables reads every element of a table before it shows a single rule of it; this does not. What
it does not know (a type of set that is none of ours) it says, and libnftables is asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from dvn.kernel import netlink as nl
from dvn.kernel.elements import NFTA_LIST_ELEM, UnknownFormError
from dvn.kernel.state import NftChain, NftSet

TABLE_NAME = 1  # NFTA_TABLE_NAME
_SET_NAME, _SET_FLAGS, _SET_KEY_TYPE, _SET_DATA_TYPE, _SET_USERDATA = 2, 3, 4, 6, 13
_ANONYMOUS, _INTERVAL, _MAP = 0x1, 0x4, 0x8
_SET_COMMENT = 7  # NFTNL_UDATA_SET_COMMENT of libnftnl
_CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 3, 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_USERDATA = 2, 3, 4, 7
_RULE_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT of libnftnl
_EXPR_NAME = 1
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting", "ingress")
_POLICIES = ("drop", "accept")

# nft's own numbers of types (include/datatype.h); a concatenation has six bits for each.
_TYPES = {
    2: "nf_proto", 4: "integer", 7: "ipv4_addr", 8: "ipv6_addr", 9: "ether_addr",
    12: "inet_proto", 13: "inet_service", 19: "mark", 41: "ifname",
}  # fmt: skip
_TYPE_BITS = 6

_SET = nl.Shapes(_SET_NAME, _SET_FLAGS, _SET_KEY_TYPE, _SET_DATA_TYPE, _SET_USERDATA)


def name_of(payload: bytes, kind: int = TABLE_NAME) -> str:
    """The name of a table, or another string attribute, of a message without its nfgenmsg."""
    return nl.attributes(payload)[kind].rstrip(b"\0").decode()


def read_set(payload: bytes) -> NftSet | None:
    """A set or map without its elements; None of an anonymous one, which is part of its rule.

    Raises UnknownFormError for types it has no name of.
    """
    found = _SET.read(payload)
    flags = _number(found.get(_SET_FLAGS))
    if flags & _ANONYMOUS:
        return None
    name = found[_SET_NAME].rstrip(b"\0").decode()
    try:
        kinds = tuple(_types(_number(found[_SET_KEY_TYPE])))
        data = " . ".join(_types(_number(found[_SET_DATA_TYPE]))) if flags & _MAP else ""
    except KeyError as error:
        raise UnknownFormError(f"set {name}: type {error}") from None
    comment = dict(_userdata(found.get(_SET_USERDATA, b""))).get(_SET_COMMENT, b"")
    return NftSet(
        name,
        kinds,
        data=data,
        interval=bool(flags & _INTERVAL),
        comment=comment.rstrip(b"\0").decode(errors="replace"),
    )


def read_chain(payload: bytes) -> NftChain:
    found = nl.attributes(payload)
    name = found[_CHAIN_NAME].rstrip(b"\0").decode()
    if _CHAIN_HOOK not in found:
        return NftChain(name)
    hook = nl.attributes(found[_CHAIN_HOOK])
    return NftChain(
        name,
        (),
        found[_CHAIN_TYPE].rstrip(b"\0").decode(),
        _HOOKS[_number(hook[_HOOK_NUMBER])],
        int.from_bytes(hook[_HOOK_PRIORITY], "big", signed=True),
        _POLICIES[_number(found.get(_CHAIN_POLICY, b"\1"))],
    )


def read_rule(payload: bytes) -> tuple[str, str, str]:
    """(chain, comment, digest of what it does); of a rule without a comment, words instead."""
    found = nl.attributes(payload)
    chain = found[_RULE_CHAIN].rstrip(b"\0").decode()
    comment = dict(_userdata(found.get(_RULE_USERDATA, b""))).get(_RULE_COMMENT, b"")
    digest = hashlib.sha256()
    for expression in _expressions(found.get(_RULE_EXPRESSIONS, b"")):
        # What a counter has counted is not what a rule does.
        counts = nl.attributes(expression).get(_EXPR_NAME) == b"counter\0"
        digest.update(b"counter" if counts else expression)
    return chain, comment.rstrip(b"\0").decode(errors="replace"), digest.hexdigest()


def _types(number: int) -> Iterator[str]:
    shift = max(number.bit_length() - 1, 0) // _TYPE_BITS * _TYPE_BITS
    while shift >= 0:
        yield _TYPES[number >> shift & (1 << _TYPE_BITS) - 1]
        shift -= _TYPE_BITS


def _expressions(data: bytes) -> Iterator[bytes]:
    here = 0
    while here + 4 <= len(data):
        length, kind = nl.attribute_header(data, here)
        if length < 4 or kind != NFTA_LIST_ELEM:
            return
        yield data[here + 4 : here + length]
        here += (length + 3) & ~3


def _userdata(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type, length, value, one byte each for the first two (libnftnl/udata.h)."""
    here = 0
    while here + 2 <= len(data):
        kind, length = data[here], data[here + 1]
        yield kind, data[here + 2 : here + 2 + length]
        here += 2 + length


def _number(data: bytes | None) -> int:
    return int.from_bytes(data or b"", "big")
