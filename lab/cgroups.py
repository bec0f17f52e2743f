"""Control groups of the lab, version 2 (cgroups(7)): give out controllers, remove, sweep."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def own_cgroup() -> str:
    """Our path in the cgroup v2 hierarchy (cgroups(7), /proc/PID/cgroup)."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::")
    return "/"


def enable(group: Path, controllers: Sequence[str]) -> list[str]:
    """Give the group's children these controllers; returns those that it could."""
    done = []
    for controller in controllers:
        with suppress(OSError):
            (group / "cgroup.subtree_control").write_text(f"+{controller}")
            done.append(controller)
    return done


def sweep(root: Path) -> None:
    """Remove groups of labs that were killed together with their keeper: they have no process."""
    for group in root.glob("dvn-lab-*"):
        with suppress(OSError):
            if "populated 0" in (group / "cgroup.events").read_text():
                remove_group(group, limit_s=1.0)


def remove_group(group: Path, limit_s: float = 20.0) -> None:
    """Remove a control group and those below it, waiting until their last process is reaped."""
    if not group.is_dir():
        return
    with suppress(OSError):
        (group / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + limit_s
    below = sorted((d for d in group.rglob("*/")), key=lambda d: -len(d.parts))
    for directory in (*below, group):
        while True:
            try:
                directory.rmdir()
            except FileNotFoundError:
                break
            except OSError:  # EBUSY: a dying process is still in it
                if time.monotonic() > deadline:
                    return
                time.sleep(0.01)
            else:
                break
