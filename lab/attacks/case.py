"""An attack as a value: what is sent from where, and where it must not, or must, be seen.

Every packet carries a marker of 16 bytes in its payload, so that it is known again wherever it
comes out: bridged, routed, translated, in or out of a tunnel, quoted in an error message.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

MAGIC = b"\xd1dvn\x9e\x7f\xa4\x01"
MARKER_SIZE = 16
_MARKER = struct.Struct("!8sIB3s")


class Phase(IntEnum):
    """The order of a run; all cases go through a phase together."""

    SETUP = 0  # what the attack needs: a flow of the victim, say
    CONTROL = 1  # the honest twin
    ATTACK = 2
    AFTER = 3  # what shows that the attack took effect, or did not; late controls


class Role(IntEnum):
    """Whose marker a packet carries."""

    NONE = 0
    ATTACK = 1
    CONTROL = 2


def marker(number: int, role: Role) -> bytes:
    """16 bytes of the case with this number."""
    body = struct.pack("!IB", number, role)
    check = bytes((sum(body) * factor) & 0xFF for factor in (3, 7, 11))
    return _MARKER.pack(MAGIC, number, role, check)


def markers(data: bytes) -> Iterable[tuple[int, Role]]:
    """Every whole marker in `data`: (number, role)."""
    at = data.find(MAGIC)
    while at >= 0:
        piece = data[at : at + MARKER_SIZE]
        if len(piece) == MARKER_SIZE:
            _magic, number, role, _check = _MARKER.unpack(piece)
            if role in (Role.ATTACK, Role.CONTROL) and piece == marker(number, Role(role)):
                yield number, Role(role)
        at = data.find(MAGIC, at + 1)


@dataclass(frozen=True)
class Shot:
    """One frame, put on an interface of a host as it is. Of `times` copies each has the next
    number at `sweep`, the place of 16 bits such as a UDP port (without a checksum); 0: none has."""

    phase: Phase
    host: str
    interface: str
    frame: bytes
    times: int = 1
    sweep: int = 0

    def frames(self) -> Iterator[bytes]:
        yield self.frame
        first = int.from_bytes(self.frame[self.sweep : self.sweep + 2], "big")
        for more in range(1, self.times):
            if not self.sweep:
                yield self.frame
                continue
            number = ((first + more) & 0xFFFF).to_bytes(2, "big")
            yield self.frame[: self.sweep] + number + self.frame[self.sweep + 2 :]


@dataclass(frozen=True)
class Case:
    """One attack from one place on one victim, with its positive control.

    leaks_at: places where the attack's marker is a leak. arrives_at: places that must all see the
    control's. Both may be narrowed to frames that contain all of some pieces.
    """

    number: int
    attack: str  # the attack's name in the catalogue
    name: str  # unique: `arp-spoof/red-farm`
    tries: str
    source: str  # standard, CVE or VU#
    family: int  # 4, 6; 0: neither
    attacker: str
    shots: tuple[Shot, ...]
    leaks_at: frozenset[str]
    arrives_at: frozenset[str]
    control: str  # what the control is, in words
    leaks_with: tuple[bytes, ...] = ()
    arrives_with: tuple[bytes, ...] = ()  # of the control: its address outside, say
    needs: frozenset[str] = field(default_factory=frozenset)  # features of the ground

    def as_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "attack": self.attack,
            "name": self.name,
            "tries": self.tries,
            "source": self.source,
            "family": self.family,
            "attacker": self.attacker,
            "shots": [
                [s.phase, s.host, s.interface, s.frame.hex(), s.times, s.sweep] for s in self.shots
            ],
            "leaks_at": sorted(self.leaks_at),
            "arrives_at": sorted(self.arrives_at),
            "control": self.control,
            "leaks_with": [piece.hex() for piece in self.leaks_with],
            "arrives_with": [piece.hex() for piece in self.arrives_with],
            "needs": sorted(self.needs),
        }

    @staticmethod
    def of_json(body: dict[str, Any]) -> Case:
        shots = tuple(
            Shot(Phase(phase), host, interface, bytes.fromhex(frame), times, sweep)
            for phase, host, interface, frame, times, sweep in body["shots"]
        )
        return Case(
            **{
                **body,
                "shots": shots,
                "leaks_at": frozenset(body["leaks_at"]),
                "arrives_at": frozenset(body["arrives_at"]),
                "leaks_with": tuple(bytes.fromhex(piece) for piece in body["leaks_with"]),
                "arrives_with": tuple(bytes.fromhex(piece) for piece in body["arrives_with"]),
                "needs": frozenset(body["needs"]),
            }
        )


def dump(cases: Iterable[Case]) -> str:
    return json.dumps([case.as_json() for case in cases])


def load(text: str) -> tuple[Case, ...]:
    return tuple(Case.of_json(body) for body in json.loads(text))
