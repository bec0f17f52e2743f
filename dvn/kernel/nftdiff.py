"""The nft part of a plan: what changes in our tables. Pure.

A write is proportional to the change: elements one by one, rules by chain, a whole table only when
its frame (sets, maps and hooks) is another. Two transactions at most: the first before links are
made, with everything new; the second after links are gone, with what they left.
"""

from __future__ import annotations

from ipaddress import ip_network

from dvn.kernel.nftcommands import (
    AddChain,
    AddElements,
    AddRule,
    AddSet,
    AddTable,
    DelElements,
    DelTable,
    FlushChain,
    LoadTable,
    NftCommand,
    TableId,
)
from dvn.kernel.state import Element, NftSet, NftTable
from dvn.kernel.steps import NftChange


def changes(
    observed: tuple[NftTable, ...], desired: tuple[NftTable, ...]
) -> tuple[NftChange | None, NftChange | None]:
    """(before links change, after links are gone)."""
    have = {_id(table): table for table in observed}
    want = {_id(table): table for table in desired}
    first: list[NftCommand] = []
    last: list[NftCommand] = []
    for key, table in want.items():
        old = have.get(key)
        if old is not None and same(old, table):
            continue
        # Delete and create are one transaction: packets meet the old table or the new one.
        if table.listing and not stands(old, table):
            first += [DelTable(key)] if old else []
            first.append(LoadTable(table))
        elif old is None:
            first += _create(table)
        elif old.frame() != table.frame():
            first.append(DelTable(key, " (its sets or hooks are others)"))
            first += _create(table)
        else:
            first += _rules(old, table)
            _elements(old, table, first, last)
    last += [DelTable(key) for key in have if key not in want]
    return _transaction(first), _transaction(last)


def stands(old: NftTable | None, table: NftTable) -> bool:
    """Whether a change can leave the table where it is. Of one that goes back to its listing only
    that has the words of the rules: if they are others, it is loaded as a whole."""
    if old is None or old.frame() != table.frame():
        return False
    return not table.listing or frozenset(old.chains) == frozenset(table.chains)


def same(one: NftTable, two: NftTable) -> bool:
    """Whether two tables mean the same; the order of their sets and chains does not matter."""
    return (
        _id(one) == _id(two)
        and frozenset(one.sets) == frozenset(two.sets)
        and frozenset(one.chains) == frozenset(two.chains)
    )


def _transaction(commands: list[NftCommand]) -> NftChange | None:
    return NftChange(tuple(commands)) if commands else None


def _id(table: NftTable) -> TableId:
    return (table.family, table.name)


def _create(table: NftTable) -> list[NftCommand]:
    key = _id(table)
    commands: list[NftCommand] = [AddTable(key)]
    for set_ in table.sets:
        commands.append(AddSet(key, set_.frame()))
        if set_.elements:
            commands.append(AddElements(key, set_.frame(), set_.elements))
    commands += [AddChain(key, chain.frame()) for chain in table.chains]
    commands += [AddRule(key, chain.name, rule) for chain in table.chains for rule in chain.rules]
    return commands


def _rules(old: NftTable, new: NftTable) -> list[NftCommand]:
    have = {chain.name: chain.rules for chain in old.chains}
    key = _id(new)
    commands: list[NftCommand] = []
    for chain in new.chains:
        before = have[chain.name]
        if before != chain.rules:
            why = f"{len(before)} rules => {len(chain.rules)}"
            commands.append(FlushChain(key, chain.name, why))
            commands += [AddRule(key, chain.name, rule) for rule in chain.rules]
    return commands


def _elements(
    old: NftTable, new: NftTable, first: list[NftCommand], last: list[NftCommand]
) -> None:
    have = {set_.name: set_.elements for set_ in old.sets}
    key = _id(new)
    for set_ in new.sets:
        added, gone = set_.elements - have[set_.name], have[set_.name] - set_.elements
        # What stands in the way of a new element goes in the transaction that brings it.
        replaced = frozenset(element for element in gone if _blocks(set_, element, added))
        frame = set_.frame()
        if replaced:
            first.append(DelElements(key, frame, replaced))
        if added:
            first.append(AddElements(key, frame, added))
        if gone - replaced:
            last.append(DelElements(key, frame, gone - replaced))


def _blocks(set_: NftSet, old: Element, added: frozenset[Element]) -> bool:
    return any(_meet(set_, set_.key(old), set_.key(new)) for new in added)


def _meet(set_: NftSet, one: Element, two: Element) -> bool:
    if not set_.interval:
        return one == two
    return all(_part_meets(kind, a, b) for kind, a, b in zip(set_.type, one, two, strict=True))


def _part_meets(kind: str, one: str, two: str) -> bool:
    if kind in ("ipv4_addr", "ipv6_addr"):
        try:
            return ip_network(one).overlaps(ip_network(two))
        except ValueError:  # a range somebody typed by hand: assume it is in the way
            return True
    return one == two
