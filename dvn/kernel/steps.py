"""The steps of a plan: frozen values that say what they do, in the order they are done.

A step names objects as the kernel does; drivers carry it out, people read `str(step)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from dvn.kernel.conntrack import Flows
from dvn.kernel.nftcommands import NftCommand
from dvn.kernel.state import Bridge, Gretap, Ifb, Link, Vlan, Vrf, WireguardLink
from dvn.kernel.things import Thing


def _params(link: Link) -> str:
    match link.params:
        case Bridge():
            return "bridge"
        case Vlan(parent, id_):
            return f"vlan {id_} on {parent}"
        case Gretap(local, remote, key) as gre:
            fou = f" in UDP {gre.fou.sport} -> {gre.fou.dport}" if gre.fou else ""
            through = f" through {gre.through}" if gre.through else ""
            return f"{gre.kind} {local} -> {remote} key {key}{fou}{through}"
        case Ifb() | WireguardLink():
            return link.params.kind
        case Vrf(table):
            return f"vrf, table {table}"


@dataclass(frozen=True)
class AddLink:
    """Create a link, down, stamped, with master and MTU."""

    link: Link

    def __str__(self) -> str:
        master = f" in {self.link.master}" if self.link.master else ""
        return f"+ link {self.link.name}: {_params(self.link)}, mtu {self.link.mtu}{master}"


Change: TypeAlias = Literal[
    "alias", "params", "mtu", "master", "isolated", "mac", "link_local", "up"
]


@dataclass(frozen=True)
class SetLink:
    """Change attributes of a link of ours in place; flows on it survive."""

    link: Link
    changes: tuple[Change, ...]
    before: Link

    def __str__(self) -> str:
        words = []
        for change in self.changes:
            if change == "params":
                words.append(f"{_params(self.before)} => {_params(self.link)}")
            else:
                old, new = getattr(self.before, change), getattr(self.link, change)
                words.append(f"{change} {old} => {new}")
        return f"~ link {self.link.name}: {', '.join(words)}"


@dataclass(frozen=True)
class RaiseLink:
    """Set a link up: one just made and filled, or a port or uplink that is not ours."""

    name: str

    def __str__(self) -> str:
        return f"~ link {self.name}: up"


@dataclass(frozen=True)
class DelLink:
    link: Link

    def __str__(self) -> str:
        return f"- link {self.link.name}: {_params(self.link)}"


@dataclass(frozen=True)
class Enslave:
    """Put a port that is not ours into a bridge, or (None) out of it."""

    name: str
    master: str | None
    before: str | None = None

    def __str__(self) -> str:
        if self.master:
            return f"+ port {self.name} in {self.master}"
        return f"- port {self.name} in {self.before}"


@dataclass(frozen=True)
class AddAddress:
    link: str
    address: str

    def __str__(self) -> str:
        return f"+ address {self.address} on {self.link}"


@dataclass(frozen=True)
class DelAddress:
    link: str
    address: str

    def __str__(self) -> str:
        return f"- address {self.address} on {self.link}"


@dataclass(frozen=True)
class SetSysctl:
    key: str
    value: str
    before: str | None

    def __str__(self) -> str:
        return f"~ sysctl {self.key}: {self.before} => {self.value}"


@dataclass(frozen=True)
class PutThing:
    """Make a thing (things.py), or change `before` into it in place."""

    thing: Thing
    before: Thing | None = None

    def __str__(self) -> str:
        if self.before is None:
            return f"+ {self.thing.kind} {self.thing}"
        return f"~ {self.thing.kind} {self.before} => {self.thing}"


@dataclass(frozen=True)
class DelThing:
    thing: Thing

    def __str__(self) -> str:
        return f"- {self.thing.kind} {self.thing}"


@dataclass(frozen=True)
class CutConnections:
    """Connections that must not outlive the rules that let them pass (dvn/nat/stale.py)."""

    flows: tuple[Flows, ...]

    def __str__(self) -> str:
        return "\n".join(f"- connections of {flows}" for flows in self.flows)


@dataclass(frozen=True)
class NftChange:
    """One nft transaction: all of `commands` or none."""

    commands: tuple[NftCommand, ...]

    def text(self) -> str:
        return "\n".join(command.text() for command in self.commands)

    def __str__(self) -> str:
        return "\n".join(command.shown() for command in self.commands)


Step: TypeAlias = (
    AddLink
    | SetLink
    | RaiseLink
    | DelLink
    | Enslave
    | AddAddress
    | DelAddress
    | SetSysctl
    | PutThing
    | DelThing
    | CutConnections
    | NftChange
)


@dataclass(frozen=True)
class Plan:
    """What to do, in order. An empty plan: the kernel is as wanted."""

    steps: tuple[Step, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps)

    def lines(self) -> tuple[str, ...]:
        """The plan as a diff: `+` made, `~` changed in place, `-` removed."""
        return tuple(line for step in self.steps for line in str(step).splitlines())


@dataclass(frozen=True)
class Writes:
    """Write operations that reached the kernel: netlink requests, nft commands, sysctl files."""

    netlink: int = 0
    nft: int = 0
    sysctl: int = 0

    def __add__(self, other: Writes) -> Writes:
        return Writes(
            self.netlink + other.netlink, self.nft + other.nft, self.sysctl + other.sysctl
        )
