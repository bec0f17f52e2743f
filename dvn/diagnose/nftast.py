"""What a rule of nft says, as values: the words of nft(8) that rules here are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Field:
    """`ip saddr`, `tcp dport`, `arp saddr ip`, `ether type`, `vlan id`: a header's field."""

    header: str
    name: str


@dataclass(frozen=True)
class Raw:
    """`@th,136,8`: `length` bits at bit `offset` from the link, network or transport header."""

    base: Literal["ll", "nh", "th"]
    offset: int
    length: int


@dataclass(frozen=True)
class Meta:
    """`meta iifname`, `iifname`: what the kernel knows of a packet beside its bytes."""

    key: str


@dataclass(frozen=True)
class Ct:
    """`ct state`, `ct original ip saddr`: of the packet's connection."""

    key: str
    direction: str = ""


@dataclass(frozen=True)
class TcpOption:
    """`tcp option maxseg size`; field "" asks whether it exists."""

    option: str
    field: str


@dataclass(frozen=True)
class Extension:
    """`exthdr frag`, `frag frag-off`: an IPv6 extension header; field "" asks whether it exists."""

    header: str
    field: str


@dataclass(frozen=True)
class Route:
    """`rt mtu`: of the route the packet takes."""

    key: str


@dataclass(frozen=True)
class Fib:
    """`fib saddr . iif oif`: what a route lookup of these finds."""

    keys: tuple[str, ...]
    result: str


@dataclass(frozen=True)
class Constant:
    """A word whose meaning depends on what it is compared with: `10.0.0.0/8`, `syn`, `80-90`."""

    text: str
    quoted: bool = False


@dataclass(frozen=True)
class Words:
    """`established,related`: several constants, any bit of which may be set."""

    items: tuple[Constant, ...]


@dataclass(frozen=True)
class Binary:
    op: str
    left: Expression
    right: Expression


@dataclass(frozen=True)
class Concat:
    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class SetName:
    """`@networks`."""

    name: str


@dataclass(frozen=True)
class SetOf:
    """`{ ip, arp }`, `{ tcp : accept }`: key and value, the latter None in a set."""

    elements: tuple[tuple[Expression, Expression | Verdict | None], ...]


@dataclass(frozen=True)
class Lookup:
    """`ip saddr map @snat4`: the value at a key."""

    key: Expression
    mapping: SetName | SetOf


Expression: TypeAlias = (
    Field
    | Raw
    | Meta
    | Ct
    | TcpOption
    | Extension
    | Route
    | Fib
    | Constant
    | Words
    | Binary
    | Concat
    | SetName
    | SetOf
    | Lookup
)


@dataclass(frozen=True)
class Verdict:
    """accept, drop, continue, return, jump, goto, reject, queue; `chain` of jump and goto."""

    word: str
    chain: str = ""


@dataclass(frozen=True)
class Match:
    """`left op right`. `op` "" where nft lets it out: equal, or for flags: any of them."""

    left: Expression
    op: str
    right: Expression


@dataclass(frozen=True)
class VerdictMap:
    """`iifname vmap @chains`."""

    key: Expression
    mapping: SetName | SetOf


@dataclass(frozen=True)
class Assign:
    """`meta mark set 1`, `tcp option maxseg size set rt mtu`, `ct zone set ...`."""

    target: Expression
    value: Expression


@dataclass(frozen=True)
class Translate:
    """snat, dnat, masquerade, redirect; `to` an address, an address with a port, or neither."""

    kind: Literal["snat", "dnat", "masquerade", "redirect"]
    family: str = ""
    address: Expression | None = None
    port: Expression | None = None


@dataclass(frozen=True)
class SetUpdate:
    """`update @seen { ip saddr timeout 1m }`: a set that packets change."""

    op: str
    name: str
    key: Expression


@dataclass(frozen=True)
class NoEffect:
    """counter, log, limit and the like; a limit is taken as not reached. `stops`: the rule is then
    for packets beyond the limit only (`limit rate over`)."""

    word: str
    stops: bool = False


Statement: TypeAlias = Verdict | Match | VerdictMap | Assign | Translate | SetUpdate | NoEffect
Rule: TypeAlias = tuple[Statement, ...]
