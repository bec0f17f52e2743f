"""`transport: auto`: which transport a path lets through. Pure; the facts come from exchange.py.

The first of `allow` that is possible is taken: the order is the administrator's, the probes only
say what works. Both ends decide from the same facts, seen from two sides, and so alike: a fact that
counts is whether something passes both ways, or stands on either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dvn.spec.tunnel import Carried

Nat = Literal["none", "one_to_one", "port"]
"""What stands before an end: nothing that translates, an address for an address, or one address
for many, where ports are translated too."""
_WORDS: dict[Nat, str] = {
    "none": "not translated",
    "one_to_one": "1:1 NAT",
    "port": "port translation",
}


@dataclass(frozen=True)
class PathFacts:
    """What passes between two ends, both ways, and what stands before each. `mtu` is the largest IP
    packet that passes whole both ways, None if it was not found out."""

    gre: bool
    udp: bool
    here: Nat = "none"
    there: Nat = "none"
    mtu: int | None = None

    def __str__(self) -> str:
        passing = ", ".join(
            f"{name} {'passes' if passes else 'does not pass'}"
            for name, passes in (("GRE", self.gre), ("UDP", self.udp))
        )
        size = f"; packets of {self.mtu} bytes" if self.mtu else ""
        return f"{passing}; here {_WORDS[self.here]}, there {_WORDS[self.there]}{size}"


@dataclass(frozen=True)
class Choice:
    """`transport` is None where nothing allowed is possible. `why`: of it, and of each that was
    passed over."""

    transport: Carried | None
    why: str


def choose(facts: PathFacts, allowed: Sequence[Carried]) -> Choice:
    """The first of `allowed` that the path lets through."""
    over: list[str] = []
    for transport in allowed:
        hindrance = _hindrance(transport, facts)
        if not hindrance:
            skipped = f"; {'; '.join(over)}" if over else ""
            return Choice(transport, f"{transport}: {_reason(transport, facts)}{skipped}")
        over.append(f"not {transport}: {hindrance}")
    if not facts.udp and facts.here == facts.there == "port":
        over.append("give one end a forwarded port, or an address of its own")
    return Choice(None, "; ".join(over) or "nothing is allowed")


def _hindrance(transport: Carried, facts: PathFacts) -> str:
    translated = "port" in (facts.here, facts.there)
    if transport == "plain":
        if not facts.gre:
            return "GRE does not pass"
        return "GRE has no ports, and a box before an end translates them" if translated else ""
    if not facts.udp:
        return "UDP does not pass"
    if transport == "fou" and translated:
        return "its ports are fixed, and a box before an end changes them"
    return ""


def _reason(transport: Carried, facts: PathFacts) -> str:
    if transport == "plain":
        return "GRE passes both ways"
    if "port" in (facts.here, facts.there) and transport != "fou":
        return "UDP passes, and it follows an end whose ports are translated"
    return "UDP passes both ways"
