"""Commands of a batch system: how they are run, and what their silence and refusals mean.

Every adapter talks to its batch system through one `Commands`; tests and the lab give it another
`Runner` (a stand-in, or a command on a host of the lab).
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from burst.lrms.base import LrmsError, LrmsUnavailable

DRAIN_PREFIX = "dvn: "  # begins the reason of every drain of ours; admit() lifts no other

_PATIENCE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Result:
    """What a command did: exit status, standard output, standard error."""

    status: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return (self.err.strip() or self.out.strip())[-500:]

    @property
    def lines(self) -> list[str]:
        """Everything it said, errors first: the commands differ in where they put what."""
        return [line.strip() for line in f"{self.err}\n{self.out}".splitlines() if line.strip()]

    def says(self, phrases: Iterable[str]) -> bool:
        return has(f"{self.err}\n{self.out}", phrases)


class Runner(Protocol):
    def __call__(self, argv: Sequence[str], given: str, timeout: timedelta) -> Result:
        """Run a command with `given` as its standard input.

        LrmsUnavailable after `timeout`, LrmsError if there is no such command.
        """


def subprocess_runner(
    keep: Sequence[str], env: Mapping[str, str] | None = None, hint: str = ""
) -> Runner:
    """The runner of production: a subprocess with a clean environment.

    keep: variables that are passed on (PATH always is); env: more of them; hint: what to install.
    """

    def run(argv: Sequence[str], given: str, timeout: timedelta) -> Result:
        kept = {name: os.environ[name] for name in ("PATH", *keep) if name in os.environ}
        try:
            done = subprocess.run(
                list(argv),
                input=given,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout.total_seconds(),
                env={**kept, "LC_ALL": "C", **(env or {})},
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            seconds = timeout.total_seconds()
            raise LrmsUnavailable(f"{argv[0]}: no answer in {seconds:g} s") from error
        except OSError as error:
            raise LrmsError(f"{argv[0]}: {error.strerror or error}: {hint}") from error
        return Result(done.returncode, done.stdout, done.stderr)

    return run


class Commands:
    """The commands of one batch system; `unavailable` are the phrases that mean nobody answers."""

    def __init__(
        self, runner: Runner, unavailable: Sequence[str], timeout: timedelta = _PATIENCE
    ) -> None:
        self._run = runner
        self._unavailable = tuple(phrase.lower() for phrase in unavailable)
        self._timeout = timeout

    def __call__(self, *argv: str, given: str = "") -> Result:
        """Run it; LrmsUnavailable if the batch system did not answer, whatever the status."""
        result = self._run(argv, given, self._timeout)
        if (result.status != 0 or not result.out.strip()) and has(
            f"{result.err}\n{result.out}", self._unavailable
        ):
            raise LrmsUnavailable(f"{argv[0]}: {result.said}")
        return result

    def must(self, *argv: str, given: str = "") -> str:
        """Run it and return what it wrote; LrmsError unless its status is 0."""
        result = self(*argv, given=given)
        if result.status != 0:
            shown = " ".join(argv[:4])
            raise LrmsError(f"{shown}: status {result.status}: {result.said}")
        return result.out


def has(text: str, phrases: Iterable[str]) -> bool:
    lowered = text.lower()
    return any(phrase in lowered for phrase in phrases)


def checked(pattern: re.Pattern[str], what: str, text: str, system: str) -> str:
    """Names go into commands: a space or newline would start another option or command."""
    if not pattern.fullmatch(text):
        raise LrmsError(f"{what} {text!r} is not one {system} could have given")
    return text


def reason_text(reason: str) -> str:
    """A drain's reason on one line, marked as ours."""
    text = " ".join(reason.split()).removeprefix(DRAIN_PREFIX.strip()).strip()
    return f"{DRAIN_PREFIX}{text}"


def in_chunks(items: Sequence[str], size: int = 200) -> Iterable[Sequence[str]]:
    """Command lines have a length limit (execve(2)); no batch system is asked for more at once."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
