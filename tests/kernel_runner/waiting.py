"""Waiting for a condition with a limit, and looking at processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Until `condition()` is true; AssertionError naming `what` after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.05)


def command_lines() -> dict[int, str]:
    """Process id -> command line of all processes we see."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                )
            except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
                continue
    return found


def running(words: str) -> list[int]:
    """Ids of the processes whose command line has `words`."""
    return [pid for pid, line in command_lines().items() if words in line]


def children(pid: int) -> list[int]:
    """Ids of the direct children of a process (none if it is gone)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found
