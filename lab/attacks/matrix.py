"""What is lost with each rule: the attacks that then come through, the controls that do not."""

from __future__ import annotations

import sys
from typing import Any

from lab.attacks.change import Part
from lab.attacks.judge import Verdict


def lost(part: Part, verdict: Verdict) -> dict[str, Any]:
    """One row, told on standard error as well, since a matrix takes minutes."""
    counts = f"{len(verdict.leaks):5} leaks, {len(verdict.missed):5} controls missed"
    sys.stderr.write(f"{counts} without {part}\n")
    return {
        "rule": str(part),
        "leaks": len(verdict.leaks),
        "attacks": sorted({leak.case.attack for leak in verdict.leaks}),
        "cases": [leak.case.name for leak in verdict.leaks],
        "controls_missed": sorted(verdict.missed),
    }
