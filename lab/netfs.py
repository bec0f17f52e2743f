"""Hosts that die with a network file system mounted, its server out of reach.

Their processes could not end: closing a file waits, killed or not, until what is dirty has been
written, minutes with a soft mount and for ever with a hard one. A machine whose power is cut does
not wait. So a process apart enters the host's mount namespace and fails every request that is under
way (umount2(2), MNT_FORCE) until the host is dead. What waiting is left, it does alone.
"""

from __future__ import annotations

import ctypes
import os
import select
from pathlib import Path

from lab import linux

_KINDS = frozenset({"nfs", "nfs4", "cifs", "ceph"})  # not 9p: the root of the lab's VM is one
_PATIENCE_S = 300.0
_EVERY_S = 0.05
_MNT_FORCE = 0x1

_libc = ctypes.CDLL(None)


def abandon(pid: int) -> None:
    """Before SIGKILL of a host's pid 1: see that its network mounts do not keep it alive.

    Returns at once and never raises OSError. For a process without threads.
    """
    try:
        mounts = [line.split() for line in Path(f"/proc/{pid}/mounts").read_text().splitlines()]
        targets = [target for _, target, kind, *_ in mounts if kind in _KINDS]
        if not targets:
            return
        with open(f"/proc/{pid}/ns/mnt", "rb") as namespace:
            pidfd = os.pidfd_open(pid)
            if os.fork() == 0:
                _fail_requests(pidfd, namespace.fileno(), targets)
            os.close(pidfd)
    except OSError:
        return  # the host is dead already, or there is no memory for a fork: then it takes longer


def _fail_requests(pidfd: int, namespace: int, targets: list[str]) -> None:
    """The child: holds nothing of the parent's; leaves when the host has died."""
    try:
        os.setsid()
        linux.setns(namespace, linux.CLONE_NEWNS)
        os.dup2(pidfd, 0)
        os.closerange(1, os.sysconf("SC_OPEN_MAX"))
        for _ in range(int(_PATIENCE_S / _EVERY_S)):
            for target in targets:
                _libc.umount2(target.encode(), _MNT_FORCE)  # "busy" is the answer expected
            if select.select([0], [], [], _EVERY_S)[0]:
                break
    finally:
        os._exit(0)
