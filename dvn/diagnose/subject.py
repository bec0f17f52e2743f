"""A packet among rules: where it is, what is known of it, and what rules ask beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from dvn.diagnose.flows import Ends, Entry
from dvn.diagnose.frames import Packet
from dvn.diagnose.nfttypes import Value


class Surroundings(Protocol):
    """What rules ask beside the packet."""

    def group(self, device: str) -> int: ...
    def kind(self, device: str) -> str: ...
    def mac(self, device: str) -> str: ...
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
