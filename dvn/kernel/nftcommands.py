"""nft commands as values, with their text for libnftables and their line for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from dvn.kernel.state import Element, NftChain, NftRule, NftSet, NftTable

TableId: TypeAlias = tuple[str, str]  # family, name


@dataclass(frozen=True)
class AddTable:
    table: TableId

    def text(self) -> str:
        return f"add table {_id(self.table)}"

    def shown(self) -> str:
        return f"+ table {_id(self.table)}"


@dataclass(frozen=True)
class DelTable:
    table: TableId
    why: str = ""

    def text(self) -> str:
        return f"delete table {_id(self.table)}"

    def shown(self) -> str:
        return f"- table {_id(self.table)}{self.why}"


@dataclass(frozen=True)
class LoadTable:
    """A table as nft listed it earlier; how a change that failed is undone."""

    table: NftTable

    def text(self) -> str:
        return self.table.listing

    def shown(self) -> str:
        return f"+ table {_id((self.table.family, self.table.name))}, as it was"


@dataclass(frozen=True)
class AddSet:
    """Its frame only; elements come by AddElements."""

    table: TableId
    set: NftSet

    def text(self) -> str:
        typeof = self.set.typeof
        words = [f"typeof {typeof}" if typeof else f"type {' . '.join(self.set.type)}"]
        if self.set.data and ":" not in typeof:
            words.append(f": {self.set.data}")
        words.append(";")
        if self.set.interval:
            words.append("flags interval ;")
        if self.set.comment:
            words.append(f'comment "{self.set.comment}" ;')
        return f"add {self._word()} {_id(self.table)} {self.set.name} {{ {' '.join(words)} }}"

    def shown(self) -> str:
        return f"+ {self._word()} {_id(self.table)} {self.set.name}"

    def _word(self) -> str:
        return "map" if self.set.data else "set"


@dataclass(frozen=True)
class AddElements:
    table: TableId
    set: NftSet
    elements: frozenset[Element]

    def text(self) -> str:
        return (
            f"add element {_id(self.table)} {self.set.name} "
            f"{{ {', '.join(_texts(self.set, self.elements))} }}"
        )

    def shown(self) -> str:
        start = f"+ element {_id(self.table)} {self.set.name}: "
        return "\n".join(start + text for text in _texts(self.set, self.elements))


@dataclass(frozen=True)
class DelElements:
    table: TableId
    set: NftSet
    elements: frozenset[Element]

    def text(self) -> str:
        keys = frozenset(self.set.key(element) for element in self.elements)
        return (
            f"delete element {_id(self.table)} {self.set.name} "
            f"{{ {', '.join(_texts(self.set, keys))} }}"
        )

    def shown(self) -> str:
        start = f"- element {_id(self.table)} {self.set.name}: "
        return "\n".join(start + text for text in _texts(self.set, self.elements))


@dataclass(frozen=True)
class AddChain:
    """Its hook only; rules come by AddRule."""

    table: TableId
    chain: NftChain

    def text(self) -> str:
        chain = self.chain
        hook = (
            f" {{ type {chain.type} hook {chain.hook} priority {chain.priority} ; "
            f"policy {chain.policy} ; }}"
            if chain.hook
            else ""
        )
        return f"add chain {_id(self.table)} {chain.name}{hook}"

    def shown(self) -> str:
        return f"+ chain {_id(self.table)} {self.chain.name}"


@dataclass(frozen=True)
class FlushChain:
    table: TableId
    chain: str
    why: str

    def text(self) -> str:
        return f"flush chain {_id(self.table)} {self.chain}"

    def shown(self) -> str:
        return f"~ chain {_id(self.table)} {self.chain}: {self.why}"


@dataclass(frozen=True)
class AddRule:
    table: TableId
    chain: str
    rule: NftRule

    def text(self) -> str:
        return (
            f"add rule {_id(self.table)} {self.chain} {self.rule.text} "
            f'comment "{self.rule.comment}"'
        )

    def shown(self) -> str:
        return f"+ rule {_id(self.table)} {self.chain}: {self.rule.text}"


NftCommand: TypeAlias = (
    AddTable
    | DelTable
    | LoadTable
    | AddSet
    | AddElements
    | DelElements
    | AddChain
    | FlushChain
    | AddRule
)


def _id(table: TableId) -> str:
    return f"{table[0]} {table[1]}"


def _texts(set_: NftSet, elements: frozenset[Element]) -> Iterator[str]:
    width = len(set_.type)
    for element in sorted(elements):
        key = " . ".join(
            f'"{part}"' if kind == "ifname" else part
            for kind, part in zip(set_.type, element[:width], strict=True)
        )
        yield f"{key} : {' . '.join(element[width:])}" if len(element) > width else key
