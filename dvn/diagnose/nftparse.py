"""A parser of nft's rule language: the part of nft(8) that the compiler writes, and what of it
others commonly write. What it does not know is an error, never a guess."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, cast

from dvn.diagnose.nftast import (
    Assign,
    Binary,
    Concat,
    Constant,
    Expression,
    Match,
    NoEffect,
    Rule,
    SetName,
    SetOf,
    SetUpdate,
    Statement,
    Translate,
    Verdict,
    VerdictMap,
    Words,
)
from dvn.diagnose.nftwords import (
    VERDICTS,
    ExpressionParser,
    tokens_of,
)

_COMPARE = frozenset({"==", "!=", "<", ">", "<=", ">=", "!"})
_UNITS = frozenset({"bytes", "kbytes", "mbytes", "packets"})


@lru_cache(maxsize=4096)
def parse_rule(text: str) -> Rule:
    """Raises GrammarError."""
    return _Parser(tokens_of(text), text).rule()


@lru_cache(maxsize=4096)
def parse_verdict(text: str) -> Verdict:
    """A map's value: `accept`, `jump open`. Raises GrammarError."""
    return _Parser(tokens_of(text), text).verdict()


class _Parser(ExpressionParser):
    """Statements: what a rule does."""

    # -- statements

    def rule(self) -> Rule:
        found = []
        while self._peek():
            found.append(self._statement())
        return tuple(found)

    def _statement(self) -> Statement:
        word = self._peek()
        plain = _STATEMENTS.get(word)
        if plain is not None:
            return plain(self)
        if word in VERDICTS or word in ("jump", "goto", "queue", "reject"):
            return self.verdict()
        if word in ("snat", "dnat", "masquerade", "redirect"):
            return self._translate()
        if word in ("add", "update", "delete") and self._peek(1).startswith("@"):
            return self._set_update()
        return self._match()

    def verdict(self) -> Verdict:
        word = self._next()
        if word in VERDICTS:
            return Verdict(word)
        if word in ("jump", "goto"):
            return Verdict(word, self._next())
        if word == "queue":
            while self._peek() in ("num", "to", "flags") or self._peek()[:1].isdigit():
                self._next()
            return Verdict("queue")
        if word == "reject":
            if self._take("with"):
                self._next()
                self._take("type")
                self._next() if self._peek() and self._peek() != "comment" else None
            return Verdict("reject")
        self._at -= 1
        raise self._error("a verdict expected")

    def counter(self) -> NoEffect:
        self._next()
        if self._take("packets"):
            self._number()
            self._expect("bytes")
            self._number()
        elif self._take("name"):
            self._next()
        return NoEffect("counter")

    def log(self) -> NoEffect:
        self._next()
        while self._peek() in ("prefix", "level", "group", "snaplen", "queue-threshold", "flags"):
            self._next()
            self._next()
        return NoEffect("log")

    def limit(self) -> NoEffect:
        self._next()
        if self._take("name"):
            self._next()
            return NoEffect("limit")
        self._expect("rate")
        over = bool(self._take("over"))
        self._next()  # 10/second, or 10 and then mbytes/second
        if "/" not in self._tokens[self._at - 1]:
            self._next()
        if self._take("burst"):
            self._number()
            self._take(*_UNITS)
        return NoEffect("limit", stops=over)

    def quota(self) -> NoEffect:
        self._next()
        over = self._take("over", "until") == "over"
        self._number()
        self._take(*_UNITS)
        if self._take("used"):
            self._number()
            self._take(*_UNITS)
        return NoEffect("quota", stops=over)

    def comment(self) -> NoEffect:
        self._next()
        self._next()
        return NoEffect("comment")

    def notrack(self) -> NoEffect:
        return NoEffect(self._next())

    def _translate(self) -> Translate:
        kind = cast(Literal["snat", "dnat", "masquerade", "redirect"], self._next())
        family = self._take("ip", "ip6")
        if self._take("addr"):  # `dnat ip addr . port to ...`
            self._expect(".")
            self._expect("port")
        address: Expression | None = None
        port: Expression | None = None
        if self._take("to"):
            if self._peek() == ":":  # `to :8080`, and nft lists `to :8080` as one word
                self._next()
                port = self._concat()
            elif re.fullmatch(r":\d+(-\d+)?", self._peek()):
                port = Constant(self._next()[1:])
            else:
                address = self._lone_address() if self._is_constant() else self._concat()
                if isinstance(address, Concat) and len(address.parts) == 2:
                    address, port = address.parts
                elif self._take(":"):
                    port = self._concat()
                elif re.fullmatch(r":\d+(-\d+)?", self._peek()):  # after a map
                    port = Constant(self._next()[1:])
        if port is None and isinstance(address, Constant):
            address, port = _with_port(address)
        while self._peek() in ("random", "fully-random", "persistent"):
            self._next()
            self._take(",")
        return Translate(kind, family, address, port)

    def _is_constant(self) -> bool:
        return bool(re.match(r"[\d\[]|[0-9a-f]*:", self._peek()))

    def _lone_address(self) -> Constant:
        return Constant(self._next())

    def _set_update(self) -> SetUpdate:
        op, name = self._next(), self._next()[1:]
        self._expect("{")
        key = self._concat()
        while self._peek() != "}":  # timeout, limits, a map's value
            self._next()
        self._next()
        return SetUpdate(op, name, key)

    def _match(self) -> Statement:
        left = self._concat()
        if self._take("vmap"):
            return VerdictMap(left, self._mapping())
        if self._take("set"):
            return Assign(left, self._concat())
        op = self._take(*_COMPARE)
        if isinstance(left, Constant | SetName | SetOf):
            raise self._error(f"{left} is not something to match")
        return Match(left, op, self._right())

    def _right(self) -> Expression:
        if self._peek() in ("missing", "exists"):
            return Constant(self._next())
        right = self._concat()
        if not isinstance(right, Constant):
            return right
        items = [right]
        while self._take(","):
            items.append(Constant(self._next()))
        if self._take("/"):  # `tcp flags syn / syn,rst`
            masks = [Constant(self._next())]
            while self._take(","):
                masks.append(Constant(self._next()))
            return Binary("/", Words(tuple(items)), Words(tuple(masks)))
        return Words(tuple(items)) if len(items) > 1 else right


def _with_port(address: Constant) -> tuple[Constant | None, Constant | None]:
    """`10.9.0.3:80`, `[fd00::3]:80`: what nft lists as one word."""
    found = re.fullmatch(r"\[([0-9a-f:.]+)\](?::(\d+(?:-\d+)?))?", address.text) or re.fullmatch(
        r"([\d.]+(?:-[\d.]+)?):(\d+(?:-\d+)?)", address.text
    )
    if found is None:
        return address, None
    return Constant(found[1]), Constant(found[2]) if found[2] else None


_STATEMENTS: dict[str, Callable[[_Parser], NoEffect]] = {
    "counter": _Parser.counter,
    "log": _Parser.log,
    "limit": _Parser.limit,
    "quota": _Parser.quota,
    "comment": _Parser.comment,
    "notrack": _Parser.notrack,
}
