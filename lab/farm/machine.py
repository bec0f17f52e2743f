"""What every host of the cluster has before its daemons start: key, configuration, users.

Written by Python calls inside the host, without a fork: a fork costs 40 ms and more in the lab's
VM, and a farm has many hosts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.farm.config import CGROUP_CONF, User
from lab.host import Host, LabError

# munged insists on these owners and modes; slurmd and slurmctld need their directories.
_DIRECTORIES: Mapping[str, tuple[str, int]] = {
    "/etc/munge": ("munge", 0o700),
    "/var/lib/munge": ("munge", 0o700),
    "/var/log/munge": ("munge", 0o700),
    "/run/munge": ("munge", 0o755),
    "/etc/slurm": ("root", 0o755),
    "/var/log/slurm": ("slurm", 0o755),
    "/var/spool/slurmctld": ("slurm", 0o755),
    "/var/spool/slurmd": ("root", 0o755),
}
MUNGED = "setpriv --reuid=munge --regid=munge --clear-groups munged\n"


@dataclass(frozen=True)
class Files:
    """What a host of the cluster is given."""

    munge_key: bytes
    slurm_conf: str
    hosts: str  # /etc/hosts
    users: tuple[User, ...]
    cgroup_conf: str = CGROUP_CONF


def put_users(users: Iterable[User], root: str = "") -> None:
    """Make accounts known, by a call inside the host; root: of a tree on it."""
    for path, lines in (
        (f"{root}/etc/passwd", [user.passwd for user in users]),
        (f"{root}/etc/group", [user.group for user in users]),
    ):
        text = Path(path).read_text()
        missing = [line for line in lines if f"\n{line.split(':')[0]}:" not in f"\n{text}"]
        if missing:
            Path(path).write_text(text.rstrip("\n") + "\n" + "\n".join(missing) + "\n")


def prepare(host: Host, files: Files) -> None:
    """Put everything in place; a second time changes nothing."""

    def put() -> None:
        for path, (owner, mode) in _DIRECTORIES.items():
            Path(path).mkdir(parents=True, exist_ok=True)
            shutil.chown(path, owner, owner)
            Path(path).chmod(mode)
        key = Path("/etc/munge/munge.key")
        key.unlink(missing_ok=True)
        with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "wb") as file:
            file.write(files.munge_key)
        shutil.chown(key, "munge", "munge")
        Path("/etc/slurm/slurm.conf").write_text(files.slurm_conf)
        Path("/etc/slurm/cgroup.conf").write_text(files.cgroup_conf)
        Path("/etc/hosts").write_text(files.hosts)
        put_users(files.users)
        # Slurm 22.05 wants the slice (lab.farm.config.CGROUP_CONF); no cgroup v2: no need.
        slices = Path("/sys/fs/cgroup/system.slice")
        if (slices.parent / "cgroup.controllers").exists():
            slices.mkdir(exist_ok=True)

    try:
        host.inside(put)
    except LookupError as error:
        raise LabError(f"{host.name}: {error}: install munge and slurmd on this machine") from error
    except OSError as error:
        raise LabError(f"{host.name}: cannot prepare the host for Slurm: {error}") from error
