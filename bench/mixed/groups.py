"""A control group (v2) of the benchmark's own, with the two sides of mixed mode in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lab.cgroups import remove_group

BATCH, MACHINES = "system.slice", "machine.slice"  # as on a host with systemd
ROOT = Path("/sys/fs/cgroup")


class NoGroupsError(Exception):
    """This kernel's control groups cannot do it; the message says what is missing."""


@contextmanager
def sides() -> Iterator[Path]:
    """The directory that holds both sides; removed afterwards with all processes in it."""
    known = ROOT / "cgroup.controllers"
    if not known.is_file():
        raise NoGroupsError(f"{ROOT} is no cgroup v2 hierarchy")
    if "cpu" not in known.read_text().split():
        raise NoGroupsError("the cpu controller is not in the cgroup v2 hierarchy")
    top = ROOT / f"dvn-bench-{os.getpid()}"
    for controller in ("cpu", "io"):
        with suppress(OSError):
            (ROOT / "cgroup.subtree_control").write_text(f"+{controller}")
    top.mkdir()
    try:
        for controller in ("cpu", "io"):
            with suppress(OSError):
                (top / "cgroup.subtree_control").write_text(f"+{controller}")
        for side in (BATCH, MACHINES):
            (top / side).mkdir()
        yield top
    finally:
        remove_group(top)
