"""What a packet has where a rule looks: the values of nft's expressions, and the patterns they are
compared with."""

from __future__ import annotations

from dvn.diagnose import frames
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
from dvn.diagnose.nfttypes import NAMES, Pattern, Span, Value, pattern
from dvn.diagnose.nftwords import GrammarError
from dvn.diagnose.rulesets import Elements, Table
from dvn.diagnose.subject import Subject, Surroundings

_NFPROTO = {"ip": 2, "ip6": 10, "bridge": 7, "arp": 3}


class Break(Exception):  # noqa: N818 - not an error
    """The packet has not what an expression asks for."""


class Reader:
    """Reads one subject for the rules of one table."""

    def __init__(self, table: Table, subject: Subject, world: Surroundings) -> None:
        self._table, self._subject, self._world = table, subject, world
        self._network_known = self._transport_known = False

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
        """What the packet has there. Raises Break if it has not, GrammarError."""
        match expression:
            case Field(header, name):
                return (self._field(header, name),)
            case Raw(base, offset, length):
                return (bits(self._base(base), offset, length),)
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
                return (calculate(op, number_of(self._value(left)[0]), number_of(mask)),)
            case Concat(parts):
                return tuple(value for part in parts for value in self._value(part))
            case Lookup(key, mapping):
                return self._lookup(key, mapping)
            case _:
                raise GrammarError(f"value of {expression}")

    def _lookup(self, key: Expression, mapping: SetName | SetOf) -> tuple[Value, ...]:
        found = self._elements(mapping, self._types(key)).find(self._value(key))
        if found is None or isinstance(found, Verdict):
            raise Break
        return tuple(first(part) for part in found)

    def _base(self, base: str) -> bytes:
        packet = self._subject.packet
        if base == "ll":
            if self._subject.hook == "output" and self._subject.family != "bridge":
                raise Break  # no link header yet
            return packet.frame
        if base == "nh":
            return packet.network
        transport = packet.transport
        if transport is None:
            raise Break
        return transport

    def _field(self, header: str, name: str) -> int:
        self._depend(header)
        place = FIELDS[header][name]
        return bits(self._base(BASES[header]), place.offset, place.length)

    def _depend(self, header: str) -> None:
        """The protocol checks that nft writes before a header's field (`nft --debug=netlink`)."""
        packet, family = self._subject.packet, self._subject.family
        layer3 = {"ip": 4, "ip6": 6, "icmp": 4, "icmpv6": 6}.get(header)
        if header == "vlan" and (packet.tag is None or packet.tag.protocol != frames.ETH_P_8021Q):
            raise Break
        if not self._network_known and header in ("arp", "ip", "ip6", "icmp", "icmpv6"):
            if family == "bridge":
                ethertype = {"arp": frames.ETH_P_ARP}.get(
                    header, frames.ETH_P_IP if layer3 == 4 else frames.ETH_P_IP6
                )
                by_type = header in ("arp", "icmp", "icmpv6")
                outer = int.from_bytes(packet.frame[12:14], "big")
                if ethertype != (outer if by_type else packet.protocol):
                    raise Break
            elif header != family and {4: "ip", 6: "ip6"}.get(layer3 or 0) != family:
                raise Break
            self._network_known = True
        number = NAMES["inet_proto"].get(header)
        if header in ("tcp", "udp", "icmp", "icmpv6", "gre") and not self._transport_known:
            if packet.ip is None or packet.ip.protocol != number:
                raise Break
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
                return some(subject.iif_bridge)
            case "obrname":
                return some(subject.oif_bridge)
            case "iifgroup":
                return self._world.group(some(subject.iif))
            case "oifgroup":
                return self._world.group(some(subject.oif))
            case "iifkind":
                return self._world.kind(some(subject.iif))
            case "oifkind":
                return self._world.kind(some(subject.oif))
            case "nfproto":
                return _NFPROTO[subject.family]
            case "protocol":
                return packet.protocol
            case "l4proto":
                if packet.ip is None or packet.ip.protocol is None:
                    raise Break
                return packet.ip.protocol
            case "mark":
                return packet.mark
            case "length":
                return len(packet.network)
            case "pkttype":
                return self._packet_type()
            case _:
                raise GrammarError(f"meta {key}")

    def _packet_type(self) -> int:
        """Whose frame it is (eth_type_trans, br_handle_frame): in a bridge that of the port's own
        MAC address or of the bridge's; IP takes up no other unicast."""
        subject, kinds = self._subject, NAMES["pkt_type"]
        to = subject.packet.destination
        if to == "ff:ff:ff:ff:ff:ff":
            return kinds["broadcast"]
        if frames.is_group(to):
            return kinds["multicast"]
        through = [name for name in (subject.iif, subject.iif_bridge) if name]
        if subject.family == "bridge" and to not in map(self._world.mac, through):
            return kinds["other"]
        return kinds["host"]

    def _ct(self, key: str, direction: str) -> Value:
        connection = self._subject.connection
        state = connection.state if self._subject.tracked else "invalid"
        if key == "state":
            return NAMES["ct_state"][state]
        if state in ("untracked", "invalid"):
            raise Break
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
            raise Break
        if (option, name) == ("maxseg", "size"):
            return bits(self._base("th"), (at + 2) * 8, 16)
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
            raise Break
        number = EXTENSION_NUMBERS.get(header)
        if number is None:
            raise GrammarError(f"extension header {header}")
        at = next((at for kind, at in packet.ip.extensions if kind == number), None)
        if not name:
            return int(at is not None)
        if at is None:
            raise Break
        place = EXTENSIONS[header][name]
        return bits(packet.network[at:], place.offset, place.length)

    # -- constants

    def _flags(self, type_: str, words: Expression) -> int:
        items = words.items if isinstance(words, Words) else (words,)
        return sum(number_of(self._patterns(item, (type_,))[0]) for item in items)

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
                return (calculate(op, number_of(one), number_of(two)),)
            case Concat(parts):
                return tuple(
                    self._patterns(part, (type_,))[0]
                    for part, type_ in zip(parts, types, strict=True)
                )
            case _:
                return self._value(right)

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


def bits(data: bytes, offset: int, length: int) -> int:
    """`length` bits at bit `offset`. Raises Break where the data ends before."""
    first, last = offset // 8, (offset + length + 7) // 8
    if last > len(data):
        raise Break
    whole = int.from_bytes(data[first:last], "big")
    return whole >> (last * 8 - offset - length) & ((1 << length) - 1)


def some(device: str) -> str:
    if not device:
        raise Break
    return device


def first(wanted: Pattern) -> Value:
    """Where a range of addresses may be taken, the first."""
    if isinstance(wanted, Span):
        return wanted.low
    return wanted if isinstance(wanted, int | str) else wanted.text


def number_of(value: Pattern) -> int:
    if isinstance(value, int):
        return value
    raise GrammarError(f"{value!r} is not a number")


def calculate(op: str, left: int, right: int) -> int:
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
