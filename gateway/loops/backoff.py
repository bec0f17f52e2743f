"""How long to leave somebody alone who did not answer."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import timedelta


@dataclass
class Backoff:
    """Doubles from `first` to `limit`; a success resets it.

    The jitter (the upper half is random) keeps many gateways that lost one service from coming
    back to it in step.
    """

    first: timedelta
    limit: timedelta
    random: random.Random = field(default_factory=random.Random)
    failures: int = 0

    def success(self) -> None:
        self.failures = 0

    def failure(self) -> timedelta:
        """Count one more; returns how long to wait now."""
        whole: timedelta = min(self.first * 2 ** min(self.failures, 30), self.limit)
        self.failures += 1
        return whole / 2 + whole / 2 * self.random.random()
