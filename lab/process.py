"""Running commands in the lab: what went wrong, waiting, stopping, and what was said."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class LabError(Exception):
    """Something in the lab did not work; the text says on which host, what was tried, what came."""


class HostDownError(LabError):
    """The host has been powered off (or its pid 1 died)."""


class CommandError(LabError):
    """A command on a host ended with a status other than 0; `.result` has its output."""

    def __init__(self, text: str, result: subprocess.CompletedProcess[str]) -> None:
        super().__init__(text)
        self.result = result


class CommandTimeoutError(LabError):
    """A command on a host, or a condition waited for, took longer than it was given."""


def wait_for(
    condition: Callable[[], T | None], timeout: float = 30, *, what: str = "", interval: float = 0.1
) -> T:
    """Call condition until it returns something true, and return that.

    CommandTimeoutError after `timeout` seconds; it says `what` was waited for and the last answer.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise CommandTimeoutError(
                f"waited {timeout:g} s for {what or 'a condition'}; the last answer was {value!r}"
            )
        time.sleep(interval)
    return value


def stop(child: subprocess.Popen[bytes], *, patience: float = 0.0) -> int:
    """End what spawn() started, with its process group: SIGTERM, after `patience` s SIGKILL."""
    for number, limit in ((signal.SIGTERM, patience), (signal.SIGKILL, 30.0)):
        if number == signal.SIGTERM and patience <= 0:
            continue
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=limit)
            break
    return child.wait(timeout=1)


def memory_file() -> Any:
    return os.fdopen(os.memfd_create("output"), "w+b", buffering=0)


def text_of(file: Any) -> str:
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode(errors="replace")


def told(out: str, err: str) -> str:
    """What a command said, for an error text: standard error, else output, its last lines."""
    said = err.strip() or out.strip()
    return ": " + "\n".join(said.splitlines()[-20:]) if said else " and said nothing"
