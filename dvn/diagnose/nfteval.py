"""Whether a rule matches a packet, and what it then does: nft's virtual machine, for the words of
nftast. An expression that asks for what a packet has not ends the rule unmatched (NFT_BREAK)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import assert_never

from dvn.diagnose.frames import Packet
from dvn.diagnose.nftast import (
    Assign,
    Binary,
    Constant,
    Ct,
    Expression,
    Field,
    Match,
    Meta,
    NoEffect,
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
from dvn.diagnose.nftfields import (
    BASES,
    FIELDS,
)
from dvn.diagnose.nftread import Break, Reader, bits, first, number_of
from dvn.diagnose.nfttypes import FLAGS, Pattern, Value, fits, pattern, shown
from dvn.diagnose.nftwords import GrammarError
from dvn.diagnose.rulesets import Chain, Line, Table
from dvn.diagnose.subject import Subject, Surroundings, Translation

_CONNTRACK_PRIORITY = -200  # linux/netfilter_ipv4.h: earlier chains know no connection
_DEPTH = 16


@dataclass(frozen=True)
class Hit:
    """A rule that did something, in the words people wrote beside it."""

    table: str
    chain: str
    line: Line
    verdict: str


@dataclass(frozen=True)
class Ruling:
    """What a base chain says: accept or drop; every rule that had a part; rules not understood,
    which were passed over."""

    verdict: str
    hits: tuple[Hit, ...]
    unknown: tuple[Line, ...] = ()
    policy: bool = False

    @property
    def decisive(self) -> Hit | None:
        return self.hits[-1] if self.hits and not self.policy else None


def judge(table: Table, chain: Chain, subject: Subject, world: Surroundings) -> Ruling:
    """Lead the subject through a base chain. Changes the subject as the rules do."""
    subject.tracked = subject.hook not in ("prerouting", "output") or (
        chain.priority > _CONNTRACK_PRIORITY
    )
    run = _Run(table, subject, world)
    verdict = run.chain(chain, 0)
    ended = verdict in ("accept", "drop")
    return Ruling(
        verdict if ended else chain.policy, tuple(run.hits), tuple(run.unknown), policy=not ended
    )


class _Run(Reader):
    """The rules of a base chain, one after the other."""

    def __init__(self, table: Table, subject: Subject, world: Surroundings) -> None:
        super().__init__(table, subject, world)
        self.hits: list[Hit] = []
        self.unknown: list[Line] = []

    def chain(self, chain: Chain, depth: int) -> str:
        """accept or drop; return where the chain ended or went back; goto's end is return, too."""
        if depth > _DEPTH:
            return "drop"
        for line in chain.lines:
            if line.rule is None:
                self.unknown.append(line)
                continue
            verdict = self._line(line)
            if verdict is None:
                continue
            self.hits.append(Hit(self._table.id, chain.name, line, _words(verdict)))
            match verdict.word:
                case "accept" | "queue":
                    return "accept"
                case "drop" | "reject":
                    return "drop"
                case "return":
                    return "return"
                case "jump" | "goto":
                    inner = self.chain(self._table.chains[verdict.chain], depth + 1)
                    if inner in ("accept", "drop") or verdict.word == "goto":
                        return inner
        return "return"

    def _line(self, line: Line) -> Verdict | None:
        """The verdict of a rule that matches and has one; a rule that only changes something
        stands among the hits all the same."""
        self._network_known = self._transport_known = False
        changed = len(self._subject.changes)
        try:
            for statement in line.rule or ():
                verdict = self._statement(statement)
                if verdict is not None:
                    return None if verdict.word == "continue" else verdict
        except Break:
            return None
        except GrammarError:
            self.unknown.append(line)
            return None
        if len(self._subject.changes) > changed:
            return Verdict("continue")
        return None

    def _statement(self, statement: Statement) -> Verdict | None:
        match statement:
            case Verdict():
                return statement
            case Match(left, op, right):
                if not self._matches(left, op, right):
                    raise Break
            case VerdictMap(key, mapping):
                found = self._elements(mapping, self._types(key)).find(self._value(key))
                if found is None:
                    raise Break  # nft_lookup_eval
                if isinstance(found, Verdict):
                    return found
            case Assign(target, value):
                self._assign(target, value)
            case Translate():
                return self._translate(statement)
            case NoEffect("notrack"):
                self._untrack()
            case SetUpdate() | NoEffect(_, False):
                pass
            case NoEffect():
                raise Break
            case _:
                assert_never(statement)
        return None

    # -- matching

    def _matches(self, left: Expression, op: str, right: Expression) -> bool:
        values = self._value(left)
        types = self._types(left)
        if isinstance(right, SetName | SetOf):
            found = self._elements(right, types).find(values) is not None
            return found != (op == "!=")
        if isinstance(right, Binary) and right.op == "/":
            mask, want = self._flags(types[0], right.right), self._flags(types[0], right.left)
            return ((number_of(values[0]) & mask) == want) != (op == "!=")
        if isinstance(right, Constant | Words) and types[0] in FLAGS:
            return self._flags_match(types[0], number_of(values[0]), op, right)
        wanted = self._patterns(right, types)
        if op in ("", "==", "!="):
            equal = all(map(fits, values, wanted))
            self._remember(left, op, wanted)
            return equal != (op == "!=")
        return _ordered(number_of(values[0]), op, wanted[0])

    def _flags_match(self, type_: str, value: int, op: str, right: Constant | Words) -> bool:
        wanted = self._flags(type_, right)
        if op == "":
            return bool(value & wanted)
        if op == "!":
            return not value & wanted
        return (value == wanted) == (op == "==")

    def _remember(self, left: Expression, op: str, wanted: tuple[Pattern, ...]) -> None:
        """nft adds a check of the protocol before a field of a header, unless the rule has one."""
        if op == "!=" or len(wanted) != 1:
            return
        if left in (Field("ether", "type"), Field("vlan", "type"), Meta("protocol")) or (
            left == Meta("nfproto")
        ):
            self._network_known = True
        if left in (Meta("l4proto"), Field("ip", "protocol"), Field("ip6", "nexthdr")):
            self._transport_known = True

    # -- changes

    def _untrack(self) -> None:
        """nft_notrack_eval: unless it has a connection already. A frame takes it along on its way
        through a bridge."""
        subject = self._subject
        if not subject.connection.begun:
            subject.connection.state = "untracked"
            subject.packet = replace(subject.packet, state="untracked")

    def _assign(self, target: Expression, value: Expression) -> None:
        subject = self._subject
        found = (
            self._patterns(value, self._types(target))[0]
            if isinstance(value, Constant)
            else self._value(value)[0]
        )
        number = number_of(found)
        match target:
            case Meta("mark"):
                subject.packet = replace(subject.packet, mark=number)
                self._changed(f"mark {number:#x}")
            case Ct("zone", _) if subject.connection.zone or subject.connection.begun:
                return  # the first to say counts (net/netfilter/nft_ct.c, nft_ct_set_zone_eval)
            case Ct("zone", direction):
                subject.connection.zone, subject.connection.zone_of = number, direction
                self._changed(f"conntrack zone {number}")
            case Ct("mark"):
                if self._subject.tracked:
                    subject.connection.mark = number
                    self._changed(f"connection mark {number:#x}")
            case TcpOption("maxseg", "size"):
                at = self._find_option("maxseg")
                old = bits(self._base("th"), (at + 2) * 8, 16) if at is not None else 0
                if at is not None and old > number:  # the kernel only lowers it
                    data = number.to_bytes(2, "big")
                    subject.packet = subject.packet.with_transport(at + 2, data)
                    self._changed(f"MSS {old} => {number}")
            case Field(header, name):
                self._write(header, name, number)
            case Meta("priority" | "pkttype") | Ct("label" | "helper" | "event"):
                pass
            case _:
                raise GrammarError(f"set {target}")

    def _write(self, header: str, name: str, number: int) -> None:
        self._depend(header)
        place = FIELDS[header][name]
        if place.offset % 8 or place.length % 8:
            raise GrammarError(f"set {header} {name}")
        packet, data = self._subject.packet, number.to_bytes(place.length // 8, "big")
        writers: dict[str, Callable[[int, bytes], Packet]] = {
            "ll": packet.with_frame,
            "nh": packet.with_network,
            "th": packet.with_transport,
        }
        self._subject.packet = writers[BASES[header]](place.offset // 8, data)
        self._changed(f"{header} {name} {shown(place.type, number)}")

    def _changed(self, what: str) -> None:
        self._subject.changes.append(what)

    def _translate(self, statement: Translate) -> Verdict | None:
        subject = self._subject
        wanted = statement.family or subject.family
        if wanted != subject.family:
            raise Break
        type_ = "ipv4_addr" if subject.family == "ip" else "ipv6_addr"
        values: tuple[Value, ...] = ()
        if isinstance(statement.address, Constant):
            values = (first(pattern(type_, statement.address.text)),)
        elif statement.address is not None:
            values = self._value(statement.address)
        address = number_of(values[0]) if values else None
        port = number_of(values[1]) if len(values) > 1 else None
        if isinstance(statement.port, Constant):
            port = number_of(first(pattern("inet_service", statement.port.text)))
        elif statement.port is not None:
            port = number_of(self._value(statement.port)[0])
        subject.translation = Translation(statement.kind, address, port)
        return Verdict("accept")


def _words(verdict: Verdict) -> str:
    return f"{verdict.word} {verdict.chain}".strip()


def _ordered(value: int, op: str, wanted: Pattern) -> bool:
    number = number_of(wanted)
    match op:
        case "<":
            return value < number
        case ">":
            return value > number
        case "<=":
            return value <= number
        case ">=":
            return value >= number
        case _:
            raise GrammarError(f"operator {op}")
