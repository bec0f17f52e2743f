"""The plan's result and the wire's, put together: a case is blocked where both say so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Result = Mapping[str, Any]  # what Verdict.as_json gives


def together(wire: Result | None, plan: Result | None) -> dict[str, Any]:
    """One result of one or two. `leaks` and `controls_missed` say where: on the wire or plan."""
    given = {name: found for name, found in (("wire", wire), ("plan", plan)) if found is not None}
    leaks = [leak | {"on": name} for name, found in given.items() for leak in found["leaks"]]
    missed = {
        (case if name == "wire" else f"{case} (plan)"): places
        for name, found in given.items()
        for case, places in found["controls_missed"].items()
    }
    run = {case for found in given.values() for case in found["names"]}
    leaking = {leak["case"] for leak in leaks}
    silent = {case for found in given.values() for case in found["controls_missed"]}
    return {
        "cases": len(run),
        "blocked": len(run - leaking),
        "controls": len(run),
        "controls_passed": len(run - silent),
        "leaks": leaks,
        "controls_missed": missed,
        "attacks": _rows(given),
        **{name: _short(found) for name, found in given.items()},
    }


def _short(found: Result) -> dict[str, Any]:
    """One run: its counts, and what it left out and why."""
    kept = ("cases", "blocked", "controls", "controls_passed", "frames", "seconds", "left_out")
    more = {name: found[name] for name in ("without", "matrix") if name in found}
    return {name: found[name] for name in kept} | more | {"leaks": len(found["leaks"])}


def _rows(given: Mapping[str, Result]) -> list[dict[str, Any]]:
    """A row for each attack, with the counts of each run."""
    rows: dict[str, dict[str, Any]] = {}
    for name, found in given.items():
        for row in found["attacks"]:
            about = {key: row[key] for key in ("attack", "tries", "source")}
            counts = {key: row[key] for key in ("cases", "blocked", "controls_passed")}
            rows.setdefault(row["attack"], about)[name] = counts
    return list(rows.values())


def why_left_out(found: Mapping[str, Any], names: Iterable[str] = ("wire", "plan")) -> list[str]:
    """One line for each reason."""
    lines = []
    for name in names:
        reasons = list(found.get(name, {}).get("left_out", {}).values())
        for why in sorted(set(reasons)):
            lines.append(f"{reasons.count(why)} cases not on the {name}: {why}")
    return lines
