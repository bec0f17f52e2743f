"""Whether a rule matches a packet, and what it then does: nft's virtual machine, for the words of
nftast. An expression that asks for what a packet has not ends the rule unmatched (NFT_BREAK)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, assert_never

from dvn.diagnose import frames
from dvn.diagnose.flows import Ends, Entry
from dvn.diagnose.frames import Packet
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
    CT_TYPES,
    EXTENSION_NUMBERS,
    EXTENSIONS,
    FIELDS,
    META_TYPES,
)
from dvn.diagnose.nftparse import GrammarError
from dvn.diagnose.nfttypes import FLAGS, NAMES, Pattern, Span, Value, fits, pattern, shown
from dvn.diagnose.rulesets import Chain, Elements, Line, Table

_NFPROTO = {"ip": 2, "ip6": 10, "bridge": 7, "arp": 3}
_CONNTRACK_PRIORITY = -200  # linux/netfilter_ipv4.h: earlier chains know no connection
_DEPTH = 16


class Surroundings(Protocol):
    """What rules ask beside the packet."""

    def group(self, device: str) -> int: ...
    def kind(self, device: str) -> str: ...
    def mss(self, device: str, version: int) -> int: ...
    def fib(self, subject: Subject, keys: tuple[str, ...], result: str) -> Value | None: ...


@dataclass
class Connection:
    """What conntrack knows of the packet's flow."""

    state: str = "new"
    zone: int = 0
    zone_of: str = ""  # original or reply; "" both directions
    mark: int = 0
    reply: bool = False
    status: int = 0
    begun: bool = False
    ends: Ends | None = None
    entry: Entry | None = None


@dataclass(frozen=True)
class Translation:
    """What a NAT rule decided. `address` None: of the device the packet leaves by."""

    kind: str
    address: int | None
    port: int | None


@dataclass
class Subject:
    """A packet in a hook, with what rules may change."""

    packet: Packet
    family: str  # ip, ip6, bridge, arp
    hook: str
    iif: str = ""
    oif: str = ""
    iif_bridge: str = ""
    oif_bridge: str = ""
    slave: str = ""  # the device behind a VRF (sdif)
    connection: Connection = field(default_factory=Connection)
    translation: Translation | None = None
    changes: list[str] = field(default_factory=list)
    tracked: bool = True


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


class _Break(Exception):  # noqa: N818 - not an error
    """The packet has not what an expression asks for."""


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


class _Run:
    def __init__(self, table: Table, subject: Subject, world: Surroundings) -> None:
        self._table, self._subject, self._world = table, subject, world
        self.hits: list[Hit] = []
        self.unknown: list[Line] = []
        self._network_known = self._transport_known = False

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
        except _Break:
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
                    raise _Break
            case VerdictMap(key, mapping):
                found = self._elements(mapping, self._types(key)).find(self._value(key))
                if found is None:
                    raise _Break  # nft_lookup_eval
                if isinstance(found, Verdict):
                    return found
            case Assign(target, value):
                self._assign(target, value)
            case Translate():
                return self._translate(statement)
            case SetUpdate() | NoEffect(_, False):
                pass
            case NoEffect():
                raise _Break
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
            return ((_number(values[0]) & mask) == want) != (op == "!=")
        if isinstance(right, Constant | Words) and types[0] in FLAGS:
            return self._flags_match(types[0], _number(values[0]), op, right)
        wanted = self._patterns(right, types)
        if op in ("", "==", "!="):
            equal = all(map(fits, values, wanted))
            self._remember(left, op, wanted)
            return equal != (op == "!=")
        return _ordered(_number(values[0]), op, wanted[0])

    def _flags_match(self, type_: str, value: int, op: str, right: Constant | Words) -> bool:
        wanted = self._flags(type_, right)
        if op == "":
            return bool(value & wanted)
        if op == "!":
            return not value & wanted
        return (value == wanted) == (op == "==")

    def _flags(self, type_: str, words: Expression) -> int:
        items = words.items if isinstance(words, Words) else (words,)
        return sum(_number(self._patterns(item, (type_,))[0]) for item in items)

    def _patterns(self, right: Expression, types: tuple[str, ...]) -> tuple[Pattern, ...]:
        """The constant side of a comparison."""
        match right:
            case Constant(text):
                return (pattern(types[0], text),)
            case Words():
                return (self._flags(types[0], right),)
            case Binary(op, left, other):
                one = self._patterns(left, types)[0]
                two = self._patterns(other, types)[0]
                return (_calculate(op, _number(one), _number(two)),)
            case Concat(parts):
                return tuple(
                    self._patterns(part, (type_,))[0]
                    for part, type_ in zip(parts, types, strict=True)
                )
            case _:
                return self._value(right)

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

    def _elements(self, where: SetName | SetOf, types: tuple[str, ...]) -> Elements:
        if isinstance(where, SetName):
            found = self._table.sets.get(where.name)
            if found is None:
                raise GrammarError(f"there is no set {where.name}")
            return found
        anonymous = Elements(types)
        for key, value in where.elements:
            if isinstance(value, Verdict):
                anonymous.add(self._patterns(key, types), value)
            elif value is None:
                anonymous.add(self._patterns(key, types), ())
            else:
                anonymous.add(self._patterns(key, types), self._untyped(value))
        return anonymous

    def _untyped(self, value: Expression) -> tuple[Pattern, ...]:
        """A value of an anonymous map: its type is what it looks like."""
        if isinstance(value, Constant):
            for type_ in ("integer", "ipv4_addr", "ipv6_addr", "ether_addr"):
                try:
                    return (pattern(type_, value.text),)
                except ValueError:
                    continue
        if isinstance(value, Concat):
            return tuple(part for one in value.parts for part in self._untyped(one))
        raise GrammarError(f"value {value}")

    # -- types and values

    def _types(self, expression: Expression) -> tuple[str, ...]:
        match expression:
            case Field(header, name):
                return (FIELDS[header][name].type,)
            case Meta(key):
                return (META_TYPES.get(key, "integer"),)
            case Ct(key):
                return (CT_TYPES.get(key, "integer"),)
            case TcpOption(_, "") | Extension(_, "") | Route("ipsec"):
                return ("boolean",)
            case Extension(header, name):
                return (EXTENSIONS[header][name].type,)
            case Fib(_, "type"):
                return ("fib_addrtype",)
            case Fib(_, "check"):
                return ("boolean",)
            case Fib():
                return ("ifname",)
            case Binary(_, left, _):
                return self._types(left)
            case Concat(parts):
                return tuple(type_ for part in parts for type_ in self._types(part))
            case Lookup(_, SetName(name)) if name in self._table.sets:
                return self._table.sets[name].data_types
            case _:
                return ("integer",)

    def _value(self, expression: Expression) -> tuple[Value, ...]:
        """What the packet has there. Raises _Break if it has not, GrammarError."""
        match expression:
            case Field(header, name):
                return (self._field(header, name),)
            case Raw(base, offset, length):
                return (_bits(self._base(base), offset, length),)
            case Meta(key):
                return (self._meta(key),)
            case Ct(key, direction):
                return (self._ct(key, direction),)
            case TcpOption(option, name):
                return (self._tcp_option(option, name),)
            case Extension(header, name):
                return (self._extension(header, name),)
            case Route("mtu"):
                version = 4 if self._subject.family == "ip" else 6
                return (self._world.mss(self._subject.oif, version),)
            case Route("ipsec"):
                return (1,)  # the plan has a connection for each host it says so of
            case Fib(keys, result):
                found = self._world.fib(self._subject, keys, result)
                return ("" if found is None else found,)
            case Constant(text):
                return (int(text, 0),) if text[:1].isdigit() else (text,)
            case Binary(op, left, right):
                mask = self._patterns(right, self._types(left))[0]
                return (_calculate(op, _number(self._value(left)[0]), _number(mask)),)
            case Concat(parts):
                return tuple(value for part in parts for value in self._value(part))
            case Lookup(key, mapping):
                return self._lookup(key, mapping)
            case _:
                raise GrammarError(f"value of {expression}")

    def _lookup(self, key: Expression, mapping: SetName | SetOf) -> tuple[Value, ...]:
        found = self._elements(mapping, self._types(key)).find(self._value(key))
        if found is None or isinstance(found, Verdict):
            raise _Break
        return tuple(_first(part) for part in found)

    def _base(self, base: str) -> bytes:
        packet = self._subject.packet
        if base == "ll":
            if self._subject.hook == "output" and self._subject.family != "bridge":
                raise _Break  # no link header yet
            return packet.frame
        if base == "nh":
            return packet.network
        transport = packet.transport
        if transport is None:
            raise _Break
        return transport

    def _field(self, header: str, name: str) -> int:
        self._depend(header)
        place = FIELDS[header][name]
        return _bits(self._base(BASES[header]), place.offset, place.length)

    def _depend(self, header: str) -> None:
        """The protocol checks that nft writes before a header's field (`nft --debug=netlink`)."""
        packet, family = self._subject.packet, self._subject.family
        layer3 = {"ip": 4, "ip6": 6, "icmp": 4, "icmpv6": 6}.get(header)
        if header == "vlan" and (packet.tag is None or packet.tag.protocol != frames.ETH_P_8021Q):
            raise _Break
        if not self._network_known and header in ("arp", "ip", "ip6", "icmp", "icmpv6"):
            if family == "bridge":
                ethertype = {"arp": frames.ETH_P_ARP}.get(
                    header, frames.ETH_P_IP if layer3 == 4 else frames.ETH_P_IP6
                )
                by_type = header in ("arp", "icmp", "icmpv6")
                outer = int.from_bytes(packet.frame[12:14], "big")
                if ethertype != (outer if by_type else packet.protocol):
                    raise _Break
            elif header != family and {4: "ip", 6: "ip6"}.get(layer3 or 0) != family:
                raise _Break
            self._network_known = True
        number = NAMES["inet_proto"].get(header)
        if header in ("tcp", "udp", "icmp", "icmpv6", "gre") and not self._transport_known:
            if packet.ip is None or packet.ip.protocol != number:
                raise _Break
            self._transport_known = True

    def _meta(self, key: str) -> Value:
        subject = self._subject
        packet = subject.packet
        match key:
            case "iifname" | "iif":
                return subject.iif
            case "ipsec":
                return 0  # a packet as it is described came in no security association
            case "oifname" | "oif":
                return subject.oif
            case "sdifname" | "sdif":
                return subject.slave
            case "ibrname":
                return _some(subject.iif_bridge)
            case "obrname":
                return _some(subject.oif_bridge)
            case "iifgroup":
                return self._world.group(_some(subject.iif))
            case "oifgroup":
                return self._world.group(_some(subject.oif))
            case "iifkind":
                return self._world.kind(_some(subject.iif))
            case "oifkind":
                return self._world.kind(_some(subject.oif))
            case "nfproto":
                return _NFPROTO[subject.family]
            case "protocol":
                return packet.protocol
            case "l4proto":
                if packet.ip is None or packet.ip.protocol is None:
                    raise _Break
                return packet.ip.protocol
            case "mark":
                return packet.mark
            case "length":
                return len(packet.network)
            case "pkttype":
                return _packet_type(packet)
            case _:
                raise GrammarError(f"meta {key}")

    def _ct(self, key: str, direction: str) -> Value:
        connection = self._subject.connection
        state = connection.state if self._subject.tracked else "invalid"
        if key == "state":
            return NAMES["ct_state"][state]
        if state in ("untracked", "invalid"):
            raise _Break
        match key:
            case "mark":
                return connection.mark
            case "zone":
                return connection.zone
            case "direction":
                return int(connection.reply)
            case "status":
                return connection.status
            case "protocol":
                return self._meta("l4proto")
            case _:
                raise GrammarError(f"ct {direction} {key}")

    def _tcp_option(self, option: str, name: str) -> int:
        at = self._find_option(option)
        if not name:
            return int(at is not None)
        if at is None:
            raise _Break
        if (option, name) == ("maxseg", "size"):
            return _bits(self._base("th"), (at + 2) * 8, 16)
        raise GrammarError(f"tcp option {option} {name}")

    def _find_option(self, option: str) -> int | None:
        """Where the option stands from the beginning of the TCP header (RFC 9293, 3.1)."""
        if option != "maxseg":
            raise GrammarError(f"tcp option {option}")
        self._depend("tcp")
        data = self._base("th")
        at, end = 20, min((data[12] >> 4) * 4, len(data)) if len(data) > 12 else 0
        while at < end and data[at] != 0:
            if data[at] == 1:
                at += 1
                continue
            if at + 1 >= end or data[at + 1] < 2:
                return None
            if data[at] == 2:
                return at if at + 4 <= end else None
            at += data[at + 1]
        return None

    def _extension(self, header: str, name: str) -> int:
        packet = self._subject.packet
        if packet.ip is None or packet.ip.version != 6:
            raise _Break
        number = EXTENSION_NUMBERS.get(header)
        if number is None:
            raise GrammarError(f"extension header {header}")
        at = next((at for kind, at in packet.ip.extensions if kind == number), None)
        if not name:
            return int(at is not None)
        if at is None:
            raise _Break
        place = EXTENSIONS[header][name]
        return _bits(packet.network[at:], place.offset, place.length)

    # -- changes

    def _assign(self, target: Expression, value: Expression) -> None:
        subject = self._subject
        found = (
            self._patterns(value, self._types(target))[0]
            if isinstance(value, Constant)
            else self._value(value)[0]
        )
        number = _number(found)
        match target:
            case Meta("mark"):
                subject.packet = replace(subject.packet, mark=number)
                self._changed(f"mark {number:#x}")
            case Ct("zone", direction):
                subject.connection.zone, subject.connection.zone_of = number, direction
                self._changed(f"conntrack zone {number}")
            case Ct("mark"):
                if self._subject.tracked:
                    subject.connection.mark = number
                    self._changed(f"connection mark {number:#x}")
            case TcpOption("maxseg", "size"):
                at = self._find_option("maxseg")
                old = _bits(self._base("th"), (at + 2) * 8, 16) if at is not None else 0
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
            raise _Break
        type_ = "ipv4_addr" if subject.family == "ip" else "ipv6_addr"
        values: tuple[Value, ...] = ()
        if isinstance(statement.address, Constant):
            values = (_first(pattern(type_, statement.address.text)),)
        elif statement.address is not None:
            values = self._value(statement.address)
        address = _number(values[0]) if values else None
        port = _number(values[1]) if len(values) > 1 else None
        if isinstance(statement.port, Constant):
            port = _number(_first(pattern("inet_service", statement.port.text)))
        elif statement.port is not None:
            port = _number(self._value(statement.port)[0])
        subject.translation = Translation(statement.kind, address, port)
        return Verdict("accept")


def _words(verdict: Verdict) -> str:
    return f"{verdict.word} {verdict.chain}".strip()


def _bits(data: bytes, offset: int, length: int) -> int:
    """`length` bits at bit `offset`. Raises _Break where the data ends before."""
    first, last = offset // 8, (offset + length + 7) // 8
    if last > len(data):
        raise _Break
    whole = int.from_bytes(data[first:last], "big")
    return whole >> (last * 8 - offset - length) & ((1 << length) - 1)


def _some(device: str) -> str:
    if not device:
        raise _Break
    return device


def _first(wanted: Pattern) -> Value:
    """Where a range of addresses may be taken, the first."""
    if isinstance(wanted, Span):
        return wanted.low
    return wanted if isinstance(wanted, int | str) else wanted.text


def _number(value: Pattern) -> int:
    if isinstance(value, int):
        return value
    raise GrammarError(f"{value!r} is not a number")


def _calculate(op: str, left: int, right: int) -> int:
    match op:
        case "&":
            return left & right
        case "|":
            return left | right
        case "^":
            return left ^ right
        case "<<":
            return left << right
        case ">>":
            return left >> right
        case _:
            raise GrammarError(f"operator {op}")


def _ordered(value: int, op: str, wanted: Pattern) -> bool:
    number = _number(wanted)
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


def _packet_type(packet: Packet) -> int:
    if packet.destination == "ff:ff:ff:ff:ff:ff":
        return NAMES["pkt_type"]["broadcast"]
    if frames.is_group(packet.destination):
        return NAMES["pkt_type"]["multicast"]
    return NAMES["pkt_type"]["host"]
