"""Routes and policy rules to and from route netlink (linux/rtnetlink.h, linux/fib_rules.h)."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

from dvn.allocate import number_of
from dvn.kernel import netlink as nl
from dvn.kernel.netlink import Request, attribute, u8, u32
from dvn.kernel.state import ForeignRouting
from dvn.kernel.things import IndexOf, Sight, Thing
from dvn.nat.things import FIRST, LAST, ROUTE_PROTOCOL, Action, Route, Rule, rules

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34

RTA_DST, RTA_OIF, RTA_TABLE = 1, 4, 15
RTN_UNICAST, RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 1, 0, 253
FRA_GOTO, FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK, FRA_PROTOCOL = 4, 6, 10, 15, 16, 21
FIB_RULE_INVERT = 2
_ACTIONS: dict[Action, int] = {"table": 1, "goto": 2, "nop": 3, "blackhole": 6}
_NAMES: dict[int, Action] = {number: name for name, number in _ACTIONS.items()}

_RTMSG = struct.Struct("=BBBBBBBBI")
_RULE = struct.Struct("=BBBBBBBBI")
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_VERSIONS = {family: version for version, family in _FAMILIES.items()}
_GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV})
# What is shared may have been made by another site meanwhile.
_THERE = frozenset({errno.EEXIST})
_NO_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT})


class RoutingDriver:
    """Routes through links of one site, and the rules that lead to its tables."""

    kinds = frozenset({"route", "rule"})

    def observe(self, sock: nl.Socket, sight: Sight) -> Iterable[Thing]:
        own = {index for index, name in sight.names.items() if name in sight.own}
        yield from _routes(sock, sight, own)
        ours = (rule for rule, _protocol, _preference, _table in sight.rules if rule is not None)
        yield from own_rules(ours, sight.others_tables)

    def requests(self, thing: Thing, before: Thing | None, index_of: IndexOf) -> list[Request]:
        match thing:
            case Route():
                exclusive = nl.NLM_F_EXCL if before is None else nl.NLM_F_REPLACE
                what = f"route {thing} (`ip route show {thing.prefix}` shows what stands there)"
                body = _route(thing, index_of(thing.on))
                return [Request(RTM_NEWROUTE, nl.NLM_F_CREATE | exclusive, body, what)]
            case Rule():
                # A rule cannot be changed: the new one stands before the old one goes.
                flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL
                made = Request(RTM_NEWRULE, flags, _rule(thing), f"rule {thing}", _THERE)
                gone = self.removal(before, index_of) if before else []
                return [made, *gone]
            case _:
                raise TypeError(f"no routing: {thing!r}")

    def removal(self, thing: Thing, index_of: IndexOf) -> list[Request]:
        match thing:
            case Route():
                body = _route(thing, index_of(thing.on))
                return [Request(RTM_DELROUTE, 0, body, f"route {thing}", _GONE)]
            case Rule(shared=True):
                return []
            case Rule():
                return [Request(RTM_DELRULE, 0, _rule(thing), f"rule {thing}", _GONE)]
            case _:
                raise TypeError(f"no routing: {thing!r}")


def dump_rules(sock: nl.Socket) -> tuple[tuple[Rule | None, int, int, int], ...]:
    """Every policy rule of the namespace: (ours or None, protocol, preference, table)."""
    found = []
    for family in _VERSIONS:
        body = _RULE.pack(family, *bytes(7), 0)
        try:
            payloads = sock.dump(RTM_GETRULE, body, "list rules")
        except nl.NetlinkError as error:
            if error.errno in _NO_FAMILY:
                continue
            raise
        found += [_parsed(payload) for payload in payloads]
    return tuple(found)


def foreign_routing(
    every: Iterable[tuple[Rule | None, int, int, int]], routers: Iterable[tuple[str, int]]
) -> ForeignRouting:
    """What others use, of all rules and of `routers`: (name, table) of VRFs that are not ours."""
    tables = {table: f"the VRF {name}" for name, table in routers}
    preferences = set()
    for rule, _protocol, preference, table in every:
        if rule is not None:
            continue
        if number_of(table) is not None:
            tables.setdefault(table, f"rule {preference} of `ip rule`")
        if FIRST <= preference <= LAST:
            preferences.add(preference)
    return ForeignRouting(tables, frozenset(preferences))


def own_rules(every: Iterable[Rule], others_tables: Collection[int]) -> Iterator[Rule]:
    """Of all rules that are ours: those that lead to the site's tables, or to nobody's. A branch
    that another site needs as well shows only while this one needs it too, and is never removed."""
    every = tuple(every)
    own, others = set[tuple[object, ...]](), set[tuple[object, ...]]()
    for rule in every:
        number = number_of(rule.target) if rule.is_leaf else None
        if number is not None:
            into = others if rule.target in others_tables else own
            into |= {each.key for each in rules(rule.version, number)}
    for rule in every:
        if rule.key in own or rule.key not in others:
            yield replace(rule, shared=rule.key in others)


def _routes(sock: nl.Socket, sight: Sight, own: set[int]) -> Iterator[Route]:
    for family in _VERSIONS:
        # The kernel itself looks for the protocol, so that a full BGP table costs nothing here.
        body = _RTMSG.pack(family, 0, 0, 0, 0, ROUTE_PROTOCOL, 0, 0, 0)
        try:
            payloads = sock.dump(RTM_GETROUTE, body, "list routes")
        except nl.NetlinkError as error:
            if error.errno in _NO_FAMILY:
                continue
            raise
        for payload in payloads:
            _family, length, _src, _tos, _table, protocol, *_rest = _RTMSG.unpack_from(payload)
            attrs = nl.attributes(payload, _RTMSG.size)
            index = _u32(attrs.get(RTA_OIF))
            if protocol == ROUTE_PROTOCOL and index in own and RTA_DST in attrs:
                prefix = f"{ip_address(attrs[RTA_DST])}/{length}"
                yield Route(_u32(attrs.get(RTA_TABLE)), prefix, sight.names[index])


def _route(route: Route, index: int) -> bytes:
    prefix = ip_network(route.prefix)
    scope = RT_SCOPE_LINK if prefix.version == 4 else RT_SCOPE_UNIVERSE
    family = _FAMILIES[prefix.version]
    body = _RTMSG.pack(family, prefix.prefixlen, 0, 0, 0, ROUTE_PROTOCOL, scope, RTN_UNICAST, 0)
    body += attribute(RTA_DST, prefix.network_address.packed)
    return body + u32(RTA_OIF, index) + u32(RTA_TABLE, route.table)


def _rule(rule: Rule) -> bytes:
    flags = FIB_RULE_INVERT if rule.inverted else 0
    family = _FAMILIES[rule.version]
    body = _RULE.pack(family, 0, 0, 0, 0, 0, 0, _ACTIONS[rule.action], flags)
    body += u32(FRA_PRIORITY, rule.preference) + u8(FRA_PROTOCOL, ROUTE_PROTOCOL)
    if rule.mask:
        body += u32(FRA_FWMARK, rule.mark) + u32(FRA_FWMASK, rule.mask)
    if rule.action == "goto":
        body += u32(FRA_GOTO, rule.target)
    elif rule.action == "table":
        body += u32(FRA_TABLE, rule.target)
    return body


def _parsed(payload: bytes) -> tuple[Rule | None, int, int, int]:
    family, _dst, _src, _tos, table, _r1, _r2, action, flags = _RULE.unpack_from(payload)
    attrs = nl.attributes(payload, _RULE.size)
    protocol = attrs.get(FRA_PROTOCOL, b"\0")[0]
    preference, table = _u32(attrs.get(FRA_PRIORITY)), _u32(attrs.get(FRA_TABLE)) or table
    if protocol != ROUTE_PROTOCOL or action not in _NAMES:
        return None, protocol, preference, table
    name = _NAMES[action]
    target = {"goto": _u32(attrs.get(FRA_GOTO)), "table": table}.get(name, 0)
    mark, mask = _u32(attrs.get(FRA_FWMARK)), _u32(attrs.get(FRA_FWMASK))
    inverted = bool(flags & FIB_RULE_INVERT)
    rule = Rule(_VERSIONS[family], preference, mark, mask, name, target, inverted)
    return rule, protocol, preference, table


def _u32(raw: bytes | None) -> int:
    return int.from_bytes(raw[:4], sys.byteorder) if raw else 0
