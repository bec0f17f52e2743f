"""nft's own text of a whole ruleset, as tables to be asked: ours and everybody else's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from dvn.diagnose.nftast import Concat, Ct, Expression, Fib, Field, Meta
from dvn.diagnose.nftfields import CT_TYPES, FIELDS, META_TYPES
from dvn.diagnose.nftparse import parse_verdict
from dvn.diagnose.nfttypes import LiteralError, pattern
from dvn.diagnose.nftwords import GrammarError, parse_expression
from dvn.diagnose.rulesets import Chain, Data, Elements, Line, Ruleset, Table, parsed

_TABLE = re.compile(r"table (\w+) (\S+) \{")
_BLOCK = re.compile(r"(\w+(?: \w+)?) (\S+) \{")
_HOOK = re.compile(
    r"type (?P<type>\w+) hook (?P<hook>\w+) (?:device \S+ |devices = \{[^}]*\} )?"
    r"priority (?P<priority>[^;]+);(?: policy (?P<policy>\w+);)?"
)
_COMMENT = re.compile(r'^(?P<rule>.*?) ?comment "(?P<comment>[^"]*)"$')
_ELEMENT_EXTRAS = re.compile(
    r' (?:counter packets \d+ bytes \d+|comment "[^"]*"|'
    r"timeout \S+|expires \S+|last used \S+|limit rate \S+ burst .*)"
)
_PRIORITIES = {
    "raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100,
}  # fmt: skip
_BRIDGE_PRIORITIES = {"dstnat": -300, "filter": -200, "out": 100, "srcnat": 300}


def parse_listing(text: str) -> Ruleset:
    """The ruleset that `nft list ruleset` shows. What is not understood of it stands in the tables
    as rules without a meaning, and sets that nothing is found in."""
    lines = [line.strip() for line in text.splitlines()]
    tables, at = [], 0
    while at < len(lines):
        found = _TABLE.fullmatch(lines[at])
        if found is None:
            at += 1
            continue
        end = _end(lines, at)
        tables.append(_table(found[1], found[2], lines[at + 1 : end]))
        at = end + 1
    return Ruleset(tuple(tables))


def _end(lines: list[str], start: int) -> int:
    """The line with the brace that closes the block that `start` opens."""
    depth = 0
    for at in range(start, len(lines)):
        bare = re.sub(r'"[^"]*"', "", lines[at])
        depth += bare.count("{") - bare.count("}")
        if depth == 0:
            return at
    return len(lines)


def _table(family: str, name: str, lines: list[str]) -> Table:
    chains: dict[str, Chain] = {}
    sets: dict[str, Elements] = {}
    at = 0
    while at < len(lines):
        found = _BLOCK.fullmatch(lines[at])
        if found is None:
            at += 1
            continue
        end = _end(lines, at)
        inside = lines[at + 1 : end]
        if found[1] == "chain":
            chains[found[2]] = _chain(family, found[2], inside)
        elif found[1] in ("set", "map"):
            sets[found[2]] = _set(inside)
        at = end + 1
    return Table(family, name, chains, sets)


def _chain(family: str, name: str, lines: list[str]) -> Chain:
    hook = next((m for m in map(_HOOK.fullmatch, lines) if m), None)
    rules = tuple(_rules(line for line in lines if line and not _HOOK.fullmatch(line)))
    if hook is None:
        return Chain(name, rules)
    priority = _priority(family, hook["priority"])
    return Chain(name, rules, hook["type"], hook["hook"], priority, hook["policy"] or "accept")


def _rules(lines: Iterable[str]) -> Iterator[Line]:
    for line in lines:
        found = _COMMENT.fullmatch(line)
        if found is None:
            yield parsed(line, "")
        elif found["rule"]:  # without: the comment of the chain itself
            yield parsed(found["rule"], found["comment"])


def _priority(family: str, text: str) -> int:
    """`0`, `filter`, `mangle - 5` (nft(8), standard priority names)."""
    found = re.fullmatch(r"(-?\d+|[a-z]+)(?: ([+-]) (\d+))?", text.strip())
    if found is None:
        return 0
    names = _BRIDGE_PRIORITIES if family == "bridge" else _PRIORITIES
    base = names[found[1]] if found[1] in names else int(found[1]) if _is_int(found[1]) else 0
    more = int(found[3]) if found[3] else 0
    return base - more if found[2] == "-" else base + more


def _is_int(text: str) -> bool:
    return text.lstrip("-").isdigit()


def _set(lines: list[str]) -> Elements:
    types: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    for line in lines:
        if line.startswith(("type ", "typeof ")):
            word, _, rest = line.partition(" ")
            key, _, value = rest.partition(" : ")
            types, data = _types(word, key), _types(word, value)
    found = Elements(types, data)
    whole = " ".join(lines)
    start = whole.find("elements = {")
    if start >= 0:
        body = whole[start + len("elements = {") : whole.rfind("}")]
        for element in _split(body):
            _add(found, element)
    return found


def _types(word: str, text: str) -> tuple[str, ...]:
    if not text:
        return ()
    if word == "type":
        return tuple(part.strip() for part in text.split(" . "))
    try:
        return _types_of(parse_expression(text))
    except GrammarError:
        return ("integer",) if text != "verdict" else ("verdict",)


def _types_of(expression: Expression) -> tuple[str, ...]:
    match expression:
        case Concat(parts):
            return tuple(type_ for part in parts for type_ in _types_of(part))
        case Field(header, name):
            return (FIELDS[header][name].type,)
        case Meta(key):
            return (META_TYPES.get(key, "integer"),)
        case Ct(key):
            return (CT_TYPES.get(key, "integer"),)
        case Fib(_, "type"):
            return ("fib_addrtype",)
        case _:
            return ("integer",)


def _split(body: str) -> Iterator[str]:
    """Elements, at commas outside of strings."""
    for part in re.split(r',(?=(?:[^"]*"[^"]*")*[^"]*$)', body):
        if part.strip():
            yield part.strip()


def _add(found: Elements, element: str) -> None:
    key, _, value = element.partition(" : ")
    key, value = _ELEMENT_EXTRAS.sub("", key), _ELEMENT_EXTRAS.sub("", value).strip()
    words = [part.strip().strip('"') for part in key.split(" . ")]
    try:
        patterns = tuple(map(pattern, found.types, words))
        found.add(patterns, _value(found.data_types, value))
    except (LiteralError, GrammarError):
        found.unknown.append(element)


def _value(types: tuple[str, ...], text: str) -> Data:
    if types == ("verdict",):
        return parse_verdict(text)
    words = [part.strip().strip('"') for part in text.split(" . ")] if types else []
    return tuple(map(pattern, types, words))
