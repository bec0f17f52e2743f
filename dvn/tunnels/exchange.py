"""What two ends find out about the path between them: a conversation, as values. Pure.

Both ends say the same things at the same time, over GRE and over UDP, until both know: what came,
from where it seemed to come, and the largest packet that came whole. Nothing is trusted with a
secret, and what a forger could do is to have another transport of `allow` chosen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dvn.tunnels.auto import Nat, PathFacts
from dvn.tunnels.pmtu import Search

Via = Literal["gre", "udp", "stray"]
"""GRE; UDP between the two known ports; UDP from a port that nothing was sent to."""
INTERVAL_S = 0.2
SETTLE_ROUNDS = 8  # after the other end is heard, for what may come on other ways
PROBE_PORT = 4753
_VERSION = 1


@dataclass(frozen=True)
class Packet:
    """To be sent: `size` is that of the whole IP packet, 0 for as small as it is."""

    via: Via
    body: bytes
    size: int = 0


@dataclass(frozen=True)
class Seen:
    """What came from the other end, and from where; `largest`: of those that say their size."""

    gre: str = ""
    udp: str = ""
    udp_port: int = 0
    stray: bool = False
    largest: int = 0


@dataclass(frozen=True)
class Exchange:
    """One end's side. `me` is told apart from the other by `nonce`; `local` is the address that
    this end has itself."""

    key: int
    nonce: str
    local: str
    search: Search
    port: int = PROBE_PORT
    seen: Seen = field(default_factory=Seen)
    peer: dict[str, Any] = field(default_factory=dict)
    heard: int = 0  # rounds since the other end was first heard
    last: int = 0  # rounds since it was last
    sent: bool = False

    @property
    def remote(self) -> tuple[str, int] | None:
        """Where the other end was heard, for an end that was told of no address."""
        return (self.seen.udp, self.seen.udp_port) if self.seen.udp else None

    @property
    def finished(self) -> bool:
        """What there is to know here is known."""
        return self.heard >= SETTLE_ROUNDS and (self.search.done or not self._carrier())

    @property
    def over(self) -> bool:
        """Both ends are finished, and both have been told so; or the other has gone."""
        told = bool(self.peer.get("done")) and bool(self.peer.get("told"))
        return self.finished and (told or (self.last > 25 and bool(self.peer.get("done"))))

    def _carrier(self) -> Via | None:
        """What the packets of the search travel by: what the other end says it got."""
        theirs = self.peer.get("seen", {})
        if theirs.get("udp"):
            return "udp"
        return "gre" if theirs.get("gre") else None

    def round(self) -> tuple[Exchange, tuple[Packet, ...]]:
        """What to send now, once each INTERVAL_S."""
        after = self
        if self.peer:
            after = replace(after, heard=self.heard + 1, last=self.last + 1)
        if self.sent:
            after = replace(after, search=after.search.lost(), sent=False)
        ways: tuple[Via, ...] = ("gre", "udp", "stray")
        packets = [Packet(via, after._body(via)) for via in ways]
        carrier = after._carrier()
        if carrier and not after.search.done:
            size = after.search.size
            packets.append(Packet(carrier, after._body(carrier, size), size))
            after = replace(after, sent=True)
        return after, tuple(packets)

    def receive(self, via: Via, source: str, port: int, body: bytes) -> Exchange:
        """What came. Anything that is not for this exchange is ignored."""
        said = _parsed(body)
        if said.get("v") != _VERSION or said.get("key") != self.key:
            return self
        if said.get("n") in (None, self.nonce):
            return self
        if (
            via == "udp" and said.get("via") == "stray"
        ):  # its port says nothing: a NAT may change it
            via = "stray"
        seen = self.seen
        if via == "gre":
            seen = replace(seen, gre=source)
        elif via == "stray":
            seen = replace(seen, stray=True)
        else:
            seen = replace(seen, udp=source, udp_port=port)
        size = said.get("size", 0)
        if isinstance(size, int) and size > seen.largest:
            seen = replace(seen, largest=size)
        largest = said.get("seen", {}).get("largest", 0)
        search = self.search
        sent = self.sent
        if isinstance(largest, int) and largest > search.low:
            search, sent = search.came(largest), False
        return replace(self, seen=seen, peer=said, search=search, sent=sent, last=0)

    def _body(self, via: Via, size: int = 0) -> bytes:
        seen = self.seen
        told: dict[str, Any] = {
            "v": _VERSION,
            "key": self.key,
            "n": self.nonce,
            "via": via,
            "local": self.local,
            "seen": {
                "gre": seen.gre,
                "udp": seen.udp,
                "port": seen.udp_port,
                "stray": seen.stray,
                "largest": seen.largest,
            },
            "done": self.finished,
            "told": bool(self.peer.get("done")),
            "mtu": self.search.result if self.search.done else 0,
        }
        if size:
            told["size"] = size
        return json.dumps(told, separators=(",", ":")).encode()

    def facts(self) -> PathFacts | None:
        """What was found out; None if the other end was never heard, nor heard this one."""
        if not self.peer:
            return None
        theirs = self.peer.get("seen", {})
        mtus = [self.search.result if self._carrier() else 0, self.peer.get("mtu") or 0]
        return PathFacts(
            gre=bool(self.seen.gre and theirs.get("gre")),
            udp=bool(self.seen.udp and theirs.get("udp")),
            here=_nat(
                self.local,
                theirs.get("udp") or theirs.get("gre") or "",
                theirs.get("port") == self.port and self.seen.stray,
                bool(theirs.get("udp")),
            ),
            there=_nat(
                str(self.peer.get("local", "")),
                self.seen.udp or self.seen.gre,
                self.seen.udp_port == self.port and bool(theirs.get("stray")),
                bool(self.seen.udp),
            ),
            mtu=min(mtus) or None,
        )


def _nat(own: str, seen: str, open_: bool, by_udp: bool) -> Nat:
    """Between an end's own address and the one it was seen with. `open_`: the port is the same, and
    what nobody asked for comes in. By GRE alone, which has no ports, nothing tells a box for one
    from a box for many."""
    if not seen or seen == own:
        return "none"
    return "one_to_one" if open_ or not by_udp else "port"


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body.rstrip(b"\0"))
    except ValueError:
        return {}
    if not isinstance(found, dict) or not isinstance(found.get("seen", {}), dict):
        return {}
    return found
