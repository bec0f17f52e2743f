"""What several measurements of the same say: the middle one, and how far apart they are.

On a machine that others use, too, the clock says how long it took, and the processor time what it
would take alone; both are given.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def middle(seconds: Sequence[float]) -> float:
    return round(statistics.median(seconds), 4)


def ends(seconds: Sequence[float]) -> list[float]:
    """The least and the most."""
    return [round(min(seconds), 4), round(max(seconds), 4)]
