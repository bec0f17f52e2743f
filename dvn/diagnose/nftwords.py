"""Words and expressions of nft's rule language (nft(8), EXPRESSIONS)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, cast

from dvn.diagnose.nftast import (
    Binary,
    Concat,
    Constant,
    Ct,
    Expression,
    Extension,
    Fib,
    Field,
    Lookup,
    Meta,
    Raw,
    Route,
    SetName,
    SetOf,
    TcpOption,
    Verdict,
)
from dvn.diagnose.nftfields import CT_KEYS, EXTENSIONS, FIELDS, META_KEYS

_TOKEN = re.compile(
    r"""\s*(?: (?P<string>"[^"]*")
             | (?P<op>==|!=|<=|>=|<<|>>|[{}(),;&|^<>!=])
             | (?P<set>@[A-Za-z_][\w./-]*)
             | (?P<word>[^\s{}(),;&|^<>!=@"]+) )""",
    re.VERBOSE,
)
_BITS = frozenset({"&", "|", "^", "<<", ">>"})
VERDICTS = frozenset({"accept", "drop", "continue", "return"})
# Meta keys that need no `meta` before them (nft(8), META EXPRESSIONS).
_BARE_META = frozenset(
    [
        "mark",
        "iif",
        "iifname",
        "iiftype",
        "iifgroup",
        "oif",
        "oifname",
        "oiftype",
        "oifgroup",
        "skuid",
        "skgid",
        "ibrname",
        "obrname",
        "pkttype",
        "cpu",
        "cgroup",
    ]
)


class GrammarError(ValueError):
    """A rule has a word this parser does not know; `at` is what follows."""


def parse_expression(text: str) -> Expression:
    """`ip saddr . tcp dport`: what a set says it holds. Raises GrammarError."""
    parser = ExpressionParser(tokens_of(text), text)
    return parser.expression()


def tokens_of(text: str) -> list[str]:
    found, at = [], 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None or match.end() == at:
            raise GrammarError(f"not understood: {text[at : at + 40]!r} in {text!r}")
        found.append(match[0].strip())
        at = match.end()
    return found


class ExpressionParser:
    """A parser by recursive descent; one token ahead is enough."""

    def __init__(self, tokens: list[str], text: str) -> None:
        self._tokens, self._text, self._at = tokens, text, 0

    def _peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at] if at < len(self._tokens) else ""

    def _next(self) -> str:
        if self._at >= len(self._tokens):
            raise self._error("more words expected")
        self._at += 1
        return self._tokens[self._at - 1]

    def _take(self, *words: str) -> str:
        """The next token if it is one of these, else ""."""
        if self._peek() in words:
            return self._next()
        return ""

    def _expect(self, word: str) -> None:
        if self._next() != word:
            self._at -= 1
            raise self._error(f"{word!r} expected")

    def _number(self) -> int:
        try:
            return int(self._next(), 0)
        except ValueError:
            self._at -= 1
            raise self._error("a number expected") from None

    def _error(self, what: str) -> GrammarError:
        return GrammarError(f"{what} at {self._peek() or 'the end'!r} in {self._text!r}")

    def expression(self) -> Expression:
        found = self._concat()
        if self._peek():
            raise self._error("nothing more expected")
        return found

    def _concat(self) -> Expression:
        parts = [self._bits()]
        while self._take("."):
            parts.append(self._bits())
        whole = parts[0] if len(parts) == 1 else Concat(tuple(parts))
        if self._take("map"):
            return Lookup(whole, self._mapping())
        return whole

    def _bits(self) -> Expression:
        left = self._primary()
        while self._peek() in _BITS:
            left = Binary(self._next(), left, self._primary())
        return left

    def _primary(self) -> Expression:
        token = self._next()
        if token == "(":
            inner = self._concat()
            self._expect(")")
            return inner
        if token == "{":
            self._at -= 1
            return self._set_of()
        if token.startswith("@"):
            return self._raw(token[1:]) if self._peek() == "," else SetName(token[1:])
        if token.startswith('"'):
            return Constant(token[1:-1], quoted=True)
        selector = self._selector(token)
        if selector is not None:
            return selector
        if not re.match(r"[\w:*\[-]", token):
            self._at -= 1
            raise self._error("a value expected")
        return Constant(token)

    def _selector(self, word: str) -> Expression | None:
        """The selector that begins with `word`; None if `word` is a constant."""
        following = self._peek()
        if word in _BARE_META and not self._is_value():
            return Meta(word)
        match word:
            case "meta":
                return self._named(Meta, META_KEYS)
            case "ct":
                direction = self._take("original", "reply")
                family = self._take("ip", "ip6") if direction else ""
                key = self._named(Ct, CT_KEYS).key
                return Ct(f"{family} {key}".strip(), direction)
            case "fib":
                return self._fib()
            case "rt" if following in ("mtu", "classid", "nexthop", "ipsec"):
                return Route(self._next())
            case "exthdr":
                return Extension(self._next(), "")
            case "tcp" if following == "option":
                return self._tcp_option()
        if word in FIELDS and following in FIELDS[word]:
            return self._field(word)
        if word in EXTENSIONS and following in EXTENSIONS[word]:
            return Extension(word, self._next())
        return None

    def _is_value(self) -> bool:
        """Whether the word just taken stands where only a value can (`fib saddr . mark`)."""
        return self._peek() in (",", "}", ")")

    def _named(self, make: Callable[[str], Meta | Ct], known: frozenset[str]) -> Meta | Ct:
        key = self._next()
        if key not in known:
            self._at -= 1
            raise self._error("not a known key")
        return make(key)

    def _field(self, header: str) -> Field:
        name = self._next()
        if header == "arp" and name in ("saddr", "daddr"):
            name = f"{name} {self._next()}"
            if name not in FIELDS["arp"]:
                self._at -= 1
                raise self._error("`ip` or `ether` expected")
        return Field(header, name)

    def _tcp_option(self) -> TcpOption:
        self._next()
        option = self._next()
        if self._peek() in ("missing", "exists"):
            return TcpOption(option, "")
        return TcpOption(option, self._next())

    def _fib(self) -> Fib:
        keys = [self._next()]
        while self._take("."):
            keys.append(self._next())
        result = self._next()
        if result not in ("oif", "oifname", "type", "check"):
            self._at -= 1
            raise self._error("oif, oifname, type or check expected")
        return Fib(tuple(keys), result)

    def _raw(self, base: str) -> Raw:
        if base not in ("ll", "nh", "th"):
            raise self._error("@ll, @nh or @th expected")
        self._expect(",")
        offset = self._number()
        self._expect(",")
        return Raw(cast(Literal["ll", "nh", "th"], base), offset, self._number())

    def _mapping(self) -> SetName | SetOf:
        if self._peek() == "{":
            return self._set_of()
        name = self._next()
        if not name.startswith("@"):
            self._at -= 1
            raise self._error("a map expected")
        return SetName(name[1:])

    def _set_of(self) -> SetOf:
        self._expect("{")
        elements: list[tuple[Expression, Expression | Verdict | None]] = []
        while not self._take("}"):
            key = self._concat()
            value: Expression | Verdict | None = None
            if self._take(":"):
                is_verdict = self._peek() in (*VERDICTS, "jump", "goto")
                value = self.verdict() if is_verdict else self._concat()
            elements.append((key, value))
            if self._peek() != "}":
                self._expect(",")
        return SetOf(tuple(elements))

    def verdict(self) -> Verdict:
        """accept, jump leaving, reject with tcp reset. Raises GrammarError."""
        raise NotImplementedError
