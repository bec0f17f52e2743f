"""Problems a person can act on: what is wrong, where, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # the privileged agent has problems, but reads no YAML
    from dvn.located import Located

Path_: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, order=True)
class Problem:
    """What is wrong, where, and how to mend it. `line` 0: the line is not known."""

    file: str
    line: int
    what: str
    fix: str = ""
    path: Path_ = field(default=(), compare=False)

    @property
    def message(self) -> str:
        return self.what

    def placed(self, doc: Located) -> Problem:
        """The same problem with file and line of its path in `doc`, unless it has them already."""
        if self.file or not self.path:
            return self if self.file else replace(self, file=doc.file)
        return replace(self, file=doc.file, line=doc.line_of(self.path))

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        if not where and self.path:
            where = ".".join(map(str, self.path)) + ": "
        return where + self.what + (f"; {self.fix}" if self.fix else "")


class SpecError(ValueError):
    """The input is wrong; `problems` has every problem found, by line, each once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(sorted(set(problems)))
        super().__init__("\n".join(map(str, self.problems)))

    def placed(self, doc: Located) -> SpecError:
        return SpecError(problem.placed(doc) for problem in self.problems)
