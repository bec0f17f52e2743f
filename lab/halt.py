"""Halting a host: what must be let go of before its pid 1 is killed.

A network file system is unmounted by the last process of its mount namespace, which then speaks to
the server; dirty files are written when their last process ends. If the server is out of reach,
that process, our pid 1, hangs for minutes in calls that no signal ends, as it is exiting already.
So a child of ours fails the requests that are under way and unmounts: it is not exiting, and a
fatal signal gets it out of there. Likewise the kernel's NFS server: its threads are nobody's
children, and would keep the network namespace for ever.
"""

import errno
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from lab import linux

NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "ceph"})  # not 9p: the VM's root is one
_SERVER = "nfsd"  # the file system that steers the kernel's NFS server (nfsd(7))
_DEATH_LIMIT_S = 15.0  # for the host's processes to end
_ATTEMPTS = 5


def halt(pid: int, own_pidns: int, patience_s: float) -> None:
    """Kill all of a host but its pid 1, then unmount what is on the network.

    patience_s: how long the server of one file system may take to answer. own_pidns: a file of the
    caller's pid namespace. Does nothing on a host without network file systems; the calling process
    must have one thread. Never raises OSError: then the host takes longer to end.
    """
    with suppress(OSError):
        host = os.pidfd_open(pid)
        try:
            for _ in range(_ATTEMPTS):  # a file system whose server is silent costs one child
                if not (targets := _mounted(pid)):
                    return
                linux.setns(host, linux.CLONE_NEWPID)
                try:
                    child = os.fork()
                    if child == 0:
                        _let_go(pid, host, targets, patience_s)
                finally:
                    linux.setns(own_pidns, linux.CLONE_NEWPID)
                os.waitpid(child, 0)
        finally:
            os.close(host)


def _mounted(pid: int) -> list[tuple[str, str]]:
    """The host's network file systems and NFS server, as (type, mount point); the last first."""
    found = []
    for line in Path(f"/proc/{pid}/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split(" ")
        if kind in NETWORK_FILE_SYSTEMS or kind == _SERVER:
            found.append((kind, target.encode().decode("unicode_escape")))
    return found[::-1]


def _let_go(pid: int, host: int, targets: list[tuple[str, str]], patience_s: float) -> NoReturn:
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        expected = Path(f"/proc/{pid}/ns/pid").stat().st_ino
        linux.setns(host, linux.CLONE_NEWNS | linux.CLONE_NEWNET)
        # The check: a mistake here would kill the machine's processes.
        if Path("/proc/self/ns/pid").stat().st_ino == expected and os.getpid() > 1:
            with suppress(ProcessLookupError):  # there is none
                os.kill(-1, signal.SIGKILL)  # all that we see but pid 1 and us
        for kind, target in targets:
            if kind == _SERVER:
                with suppress(OSError):
                    Path(target, "threads").write_text("0")
                linux.detach(target)
            else:
                _unmount(target, patience_s)
    finally:
        os._exit(0)


def _unmount(target: str, patience_s: float) -> None:
    """Fail the requests under way, until nobody uses the file system and it can be unmounted."""
    deadline = time.monotonic() + _DEATH_LIMIT_S
    while time.monotonic() < deadline:
        signal.setitimer(signal.ITIMER_REAL, patience_s)  # ends us; see the module's text
        try:
            linux.umount(target, linux.MNT_FORCE)
        except OSError as error:
            if error.errno != errno.EBUSY:
                return
            time.sleep(0.01)
        else:
            return
