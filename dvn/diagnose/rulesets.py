"""nft tables made ready to be asked: sets indexed, rules parsed, chains in the order of hooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from dvn.diagnose.nftast import Rule, Verdict
from dvn.diagnose.nftparse import parse_rule, parse_verdict
from dvn.diagnose.nfttypes import Beginning, LiteralError, Pattern, Span, Value, fits, pattern
from dvn.diagnose.nftwords import GrammarError
from dvn.kernel.state import NftSet, NftTable

Data = tuple[Pattern, ...] | Verdict


@dataclass(frozen=True)
class Line:
    """One rule: its words, what they mean (None: not understood, and why), its comment."""

    text: str
    comment: str
    rule: Rule | None
    why_not: str = ""

    @property
    def shown(self) -> str:
        """The reason people wrote beside it, else the rule itself."""
        return self.comment.rsplit(" [", 1)[0] if self.comment else self.text


@dataclass(frozen=True)
class Chain:
    name: str
    lines: tuple[Line, ...]
    type: str = ""
    hook: str = ""
    priority: int = 0
    policy: str = "accept"


@dataclass
class Elements:
    """A set or a map, to be asked for a key."""

    types: tuple[str, ...]
    data_types: tuple[str, ...] = ()
    exact: dict[tuple[Value, ...], Data] = field(default_factory=dict)
    ranges: list[tuple[tuple[Pattern, ...], Data]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)  # elements that were not understood

    def add(self, key: tuple[Pattern, ...], data: Data) -> None:
        plain = tuple(part for part in key if not isinstance(part, Span | Beginning))
        if len(plain) == len(key):
            self.exact[plain] = data
        else:
            self.ranges.append((key, data))

    def find(self, key: tuple[Value, ...]) -> Data | None:
        """The value at `key`, () in a set; None if it is not in it."""
        found = self.exact.get(key)
        if found is not None:
            return found
        for wanted, data in self.ranges:
            if len(wanted) == len(key) and all(map(fits, key, wanted)):
                return data
        return None


@dataclass(frozen=True)
class Table:
    family: str  # inet, ip, ip6, bridge, arp, netdev
    name: str
    chains: Mapping[str, Chain]
    sets: Mapping[str, Elements]

    @property
    def id(self) -> str:
        return f"{self.family} {self.name}"


@dataclass(frozen=True)
class Ruleset:
    """Every table of a host, or those that a plan would make."""

    tables: tuple[Table, ...]

    @staticmethod
    def of(tables: Iterable[NftTable]) -> Ruleset:
        return Ruleset(tuple(_table(table) for table in tables))

    def with_words(self, known: Iterable[NftTable]) -> Ruleset:
        """With the words that rules of ours were written in, where a listing has their comment:
        nft leaves out what it thinks goes without saying, such as `ether type ip`."""
        words: dict[tuple[str, str, str], str] = {
            (table.family, table.name, rule.comment): rule.text
            for table in known
            for chain in table.chains
            for rule in chain.rules
            if rule.text
        }

        def line(table: Table, old: Line) -> Line:
            text = words.get((table.family, table.name, old.comment))
            return parsed(text, old.comment) if text else old

        return Ruleset(
            tuple(
                replace(
                    table,
                    chains={
                        name: replace(chain, lines=tuple(line(table, x) for x in chain.lines))
                        for name, chain in table.chains.items()
                    },
                )
                for table in self.tables
            )
        )

    def at(self, family: str, hook: str) -> tuple[tuple[Table, Chain], ...]:
        """The base chains that a packet of `family` (ip, ip6, bridge, arp) meets at a hook."""
        return self._hooks.get((family, hook), ())

    @cached_property
    def _hooks(self) -> dict[tuple[str, str], tuple[tuple[Table, Chain], ...]]:
        found: dict[tuple[str, str], list[tuple[Table, Chain]]] = {}
        for table in self.tables:
            families = ("ip", "ip6") if table.family == "inet" else (table.family,)
            for chain in table.chains.values():
                for family in families if chain.hook else ():
                    found.setdefault((family, chain.hook), []).append((table, chain))
        return {
            key: tuple(sorted(pairs, key=lambda pair: pair[1].priority))
            for key, pairs in found.items()
        }

    @cached_property
    def tracks(self) -> bool:
        """Whether connections are tracked: the kernel does so once a rule asks for it, and
        reassembles fragments before the first hook then (nf_defrag)."""
        return any(
            chain.type == "nat" or any("ct " in line.text for line in chain.lines)
            for table in self.tables
            if table.family in ("inet", "ip", "ip6")
            for chain in table.chains.values()
        )


def _table(table: NftTable) -> Table:
    chains = {
        chain.name: Chain(
            chain.name,
            tuple(parsed(rule.text, rule.comment) for rule in chain.rules),
            chain.type,
            chain.hook,
            chain.priority,
            chain.policy or "accept",
        )
        for chain in table.chains
    }
    return Table(table.family, table.name, chains, {s.name: elements(s) for s in table.sets})


def parsed(text: str, comment: str) -> Line:
    if not text:
        return Line(text, comment, None, "its words are not known")
    try:
        return Line(text, comment, parse_rule(text))
    except GrammarError as error:
        return Line(text, comment, None, str(error))


def elements(set_: NftSet) -> Elements:
    """Raises LiteralError, GrammarError for an element that is none of its type."""
    data_types = tuple(part.strip() for part in set_.data.split(" . ")) if set_.data else ()
    found = Elements(set_.type, data_types)
    for element in set_.elements:
        key = tuple(map(pattern, set_.type, element))
        found.add(key, _data(data_types, element[len(set_.type) :]))
    return found


def _data(types: tuple[str, ...], parts: tuple[str, ...]) -> Data:
    if types == ("verdict",):
        return parse_verdict(parts[0])
    words = [word for part in parts for word in part.split(" . ")]
    if len(words) != len(types):
        raise LiteralError(f"{' . '.join(words)!r} is no {' . '.join(types)}")
    return tuple(pattern(type_, word) for type_, word in zip(types, words, strict=True))
