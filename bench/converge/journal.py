"""What a long measurement knows so far: a line for each run, and the file rewritten as it grows.

A run of an hour that is stopped has then still said all that it saw.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO


class Journal:
    """`file`: figures as JSON, with `complete` false until the end; None: none. `clock`: seconds,
    of which the lines tell those since the beginning."""

    def __init__(
        self, file: Path | None, clock: Callable[[], float], lines: TextIO = sys.stderr
    ) -> None:
        self._file, self._lines, self._clock = file, lines, clock
        self._begin = clock()
        self.figures: dict[str, Any] = {}

    def say(self, what: str, seconds: Mapping[str, float] | None = None) -> None:
        """One line: what was just measured."""
        values = "".join(f"  {name} {value:.3f} s" for name, value in (seconds or {}).items())
        self._lines.write(f"{self.seconds():7.0f} s  {what}{values}\n")
        self._lines.flush()

    def keep(self, found: Mapping[str, Any], *, complete: bool = False) -> None:
        """Add figures, and write all of them to the file."""
        self.figures |= found
        self.figures |= {"seconds": round(self.seconds(), 1), "complete": complete}
        if self._file:
            draft = self._file.with_name(self._file.name + ".part")
            draft.write_text(json.dumps(self.figures, indent=1) + "\n")
            draft.replace(self._file)

    def seconds(self) -> float:
        return self._clock() - self._begin
