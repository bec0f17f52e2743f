"""What was seen, judged: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.attacks.case import Case, Role
from lab.attacks.wire import Sightings


@dataclass(frozen=True)
class Leak:
    """An attack that came through."""

    case: Case
    places: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "case": self.case.name,
            "attack": self.case.attack,
            "tries": self.case.tries,
            "source": self.case.source,
            "family": self.case.family,
            "attacker": self.case.attacker,
            "seen_at": list(self.places),
        }


@dataclass(frozen=True)
class Verdict:
    """A run's result. `missed`: controls that did not arrive, with the places that lack them."""

    cases: tuple[Case, ...]
    leaks: tuple[Leak, ...]
    missed: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, str]  # case -> why it was not run
    seconds: float = 0.0
    frames: int = 0

    @property
    def holds(self) -> bool:
        return bool(self.cases) and not self.leaks and not self.missed

    def as_json(self) -> dict[str, Any]:
        return {
            "cases": len(self.cases),
            "blocked": len(self.cases) - len(self.leaks),
            "controls": len(self.cases),
            "controls_passed": len(self.cases) - len(self.missed),
            "leaks": [leak.as_json() for leak in self.leaks],
            "controls_missed": {name: list(places) for name, places in self.missed.items()},
            "names": [case.name for case in self.cases],
            "left_out": dict(self.left_out),
            "frames": self.frames,
            "seconds": round(self.seconds, 3),
            "attacks": [row.as_json() for row in self.rows()],
        }

    def rows(self) -> list[Row]:
        """One for each attack of the catalogue."""
        leaking = {leak.case.name for leak in self.leaks}
        rows: dict[str, Row] = {}
        for case in self.cases:
            row = rows.get(case.attack, Row(case.attack, case.tries, case.source, 0, 0, 0))
            rows[case.attack] = Row(
                row.attack,
                row.tries,
                row.source,
                row.cases + 1,
                row.blocked + (case.name not in leaking),
                row.controls_passed + (case.name not in self.missed),
            )
        return list(rows.values())


@dataclass(frozen=True)
class Row:
    attack: str
    tries: str
    source: str
    cases: int
    blocked: int
    controls_passed: int

    def as_json(self) -> dict[str, Any]:
        return {
            "attack": self.attack,
            "tries": self.tries,
            "source": self.source,
            "cases": self.cases,
            "blocked": self.blocked,
            "controls_passed": self.controls_passed,
        }


def judge(
    cases: Iterable[Case], sightings: Sightings, left_out: Mapping[str, str] | None = None,
    *, seconds: float = 0.0, frames: int = 0,
) -> Verdict:  # fmt: skip
    """Leaks and missed controls of the cases that were run."""
    chosen = tuple(cases)
    leaks, missed = [], {}
    for case in chosen:
        attack = sightings.places(case.number, Role.ATTACK)
        where = tuple(sorted(case.leaks_at & _where(attack, case.leaks_with)))
        if where:
            leaks.append(Leak(case, where))
        control = sightings.places(case.number, Role.CONTROL)
        lacking = case.arrives_at - _where(control, case.arrives_with)
        if lacking:
            missed[case.name] = tuple(sorted(lacking))
    return Verdict(chosen, tuple(leaks), missed, left_out or {}, seconds, frames)


def _where(seen: Mapping[str, Sequence[bytes]], pieces: tuple[bytes, ...]) -> frozenset[str]:
    """Places with a frame that has all the pieces."""
    return frozenset(
        place
        for place, frames in seen.items()
        if any(all(piece in frame for piece in pieces) for frame in frames)
    )
