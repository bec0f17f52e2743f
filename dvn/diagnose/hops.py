"""The steps of a packet's way, and where it ended."""

from __future__ import annotations

from dataclasses import dataclass

from dvn.diagnose.frames import Packet
from dvn.diagnose.nfteval import Hit
from dvn.diagnose.rulesets import Line

HOST = "host"
ACCEPT, DROP = "accept", "drop"


@dataclass(frozen=True)
class Hop:
    """One step. `verdict`: accept or drop where something was decided; `rules` that had a part."""

    where: str
    device: str
    words: str
    verdict: str = ""
    rules: tuple[Hit, ...] = ()
    unknown: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Exit:
    """Where a copy of the packet ended up well: a device it left by, or `host`."""

    device: str
    packet: Packet


@dataclass(frozen=True)
class Walk:
    """The whole way. A flooded frame has several exits."""

    packet: Packet
    enters: str
    hops: tuple[Hop, ...]
    exits: tuple[Exit, ...]

    @property
    def verdict(self) -> str:
        return "delivered" if self.exits else "dropped"

    @property
    def devices(self) -> frozenset[str]:
        """By which devices copies left; `host` for this host itself."""
        return frozenset(each.device for each in self.exits)

    def reaches(self, device: str) -> bool:
        return device in self.devices

    @property
    def why(self) -> str:
        """In one line: where it ended, or the last thing that stopped it."""
        if self.exits:
            return "delivered to " + ", ".join(sorted(self.devices))
        stopped = [hop for hop in self.hops if hop.verdict == DROP]
        if not stopped:
            return "dropped: nobody takes it"
        hop = stopped[-1]
        return f"dropped at {hop.where} ({hop.device}): {hop.words}"
