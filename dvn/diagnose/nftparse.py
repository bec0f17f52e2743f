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
    Ct,
    Expression,
    Extension,
    Fib,
    Field,
    Lookup,
    Match,
    Meta,
    NoEffect,
    Raw,
    Route,
    Rule,
    SetName,
    SetOf,
    SetUpdate,
    Statement,
    TcpOption,
    Translate,
    Verdict,
    VerdictMap,
    Words,
)
from dvn.diagnose.nftfields import CT_KEYS, EXTENSIONS, FIELDS, META_KEYS

_TOKEN = re.compile(
    r"""\s*(?: (?P<string>"[^"]*")
             | (?P<op>==|!=|<=|>=|<<|>>|[{}(),;&|^<>!=])
             | (?P<set>@[A-Za-z_][\w./-]*)
             | (?P<word>[^\s{}(),;&|^<>!=@"]+) )""",
    re.VERBOSE,
)
_COMPARE = frozenset({"==", "!=", "<", ">", "<=", ">=", "!"})
_BITS = frozenset({"&", "|", "^", "<<", ">>"})
_VERDICTS = frozenset({"accept", "drop", "continue", "return"})
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
_UNITS = frozenset({"bytes", "kbytes", "mbytes", "packets"})


class GrammarError(ValueError):
    """A rule has a word this parser does not know; `at` is what follows."""


@lru_cache(maxsize=4096)
def parse_rule(text: str) -> Rule:
    """Raises GrammarError."""
    return _Parser(_tokens(text), text).rule()


@lru_cache(maxsize=4096)
def parse_verdict(text: str) -> Verdict:
    """A map's value: `accept`, `jump open`. Raises GrammarError."""
    return _Parser(_tokens(text), text).verdict()


def parse_expression(text: str) -> Expression:
    """`ip saddr . tcp dport`: what a set says it holds. Raises GrammarError."""
    parser = _Parser(_tokens(text), text)
    return parser.expression()


def _tokens(text: str) -> list[str]:
    found, at = [], 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None or match.end() == at:
            raise GrammarError(f"not understood: {text[at : at + 40]!r} in {text!r}")
        found.append(match[0].strip())
        at = match.end()
    return found


class _Parser:
    def __init__(self, tokens: list[str], text: str) -> None:
        self._tokens, self._text, self._at = tokens, text, 0

    # -- tokens

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
        if word in _VERDICTS or word in ("jump", "goto", "queue", "reject"):
            return self.verdict()
        if word in ("snat", "dnat", "masquerade", "redirect"):
            return self._translate()
        if word in ("add", "update", "delete") and self._peek(1).startswith("@"):
            return self._set_update()
        return self._match()

    def verdict(self) -> Verdict:
        word = self._next()
        if word in _VERDICTS:
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

    # -- expressions

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
                is_verdict = self._peek() in (*_VERDICTS, "jump", "goto")
                value = self.verdict() if is_verdict else self._concat()
            elements.append((key, value))
            if self._peek() != "}":
                self._expect(",")
        return SetOf(tuple(elements))


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
