"""What happened, line by line: the same lines for the same seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime

from lab.simulated.site import EPOCH


class Story:
    """`show` is given each line as it happens; `digest` sums up all of them."""

    def __init__(self, show: Callable[[str], None] | None = None) -> None:
        self._show = show
        self._sum = hashlib.sha256()
        self.lines = 0

    def tell(self, now: datetime, text: str) -> None:
        line = f"{(now - EPOCH).total_seconds():9.2f}  {text}"
        self._sum.update(line.encode() + b"\n")
        self.lines += 1
        if self._show is not None:
            self._show(line)

    @property
    def digest(self) -> str:
        return self._sum.hexdigest()[:16]
