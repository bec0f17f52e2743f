"""Breaking a filter on purpose: a state without one of its rules, or without a set's elements."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dvn.kernel.state import KernelState, NftChain, NftTable

_DIGEST = re.compile(r" \[[0-9a-f]{10}\]$")


@dataclass(frozen=True)
class Part:
    """A rule, known by its words, or a set (chain is then empty)."""

    family: str
    chain: str
    words: str

    def __str__(self) -> str:
        return f"{self.family} {self.chain}: {self.words}" if self.chain else f"set {self.words}"


class NoSuchPartError(ValueError):
    """Neither a rule nor a set has this name."""


def words_of(comment: str) -> str:
    """A rule's reason without the digest that the engine adds."""
    return _DIGEST.sub("", comment)


def rules(state: KernelState) -> Iterator[Part]:
    """All rules of the site's tables, in order; the same words in one chain are one part."""
    seen = set()
    for table in state.tables:
        for chain in table.chains:
            for rule in chain.rules:
                part = Part(table.family, chain.name, words_of(rule.comment))
                if part not in seen:
                    seen.add(part)
                    yield part


def without(state: KernelState, part: Part) -> KernelState:
    """The state without these rules, or with this set empty."""
    return replace(state, tables=tuple(_table(table, part) for table in state.tables))


def _table(table: NftTable, part: Part) -> NftTable:
    if not part.chain:
        emptied = (
            replace(each, elements=frozenset()) if each.name == part.words else each
            for each in table.sets
        )
        return replace(table, sets=tuple(emptied))
    if table.family != part.family:
        return table
    return replace(table, chains=tuple(_chain(chain, part) for chain in table.chains))


def _chain(chain: NftChain, part: Part) -> NftChain:
    if chain.name != part.chain:
        return chain
    kept = tuple(rule for rule in chain.rules if words_of(rule.comment) != part.words)
    return replace(chain, rules=kept)


def find(state: KernelState, text: str) -> tuple[Part, ...]:
    """The rules whose words contain `text`, or the set of that name.

    Raises NoSuchPartError, which names what is near.
    """
    found = tuple(part for part in rules(state) if text.lower() in str(part).lower())
    if found:
        return found
    sets = {each.name for table in state.tables for each in table.sets}
    if text in sets:
        return (Part("", "", text),)
    raise NoSuchPartError(
        f"no rule says {text!r} and no set has that name: "
        "`dvn lab attack --rules` lists the rules, and the sets are " + ", ".join(sorted(sets))
    )
