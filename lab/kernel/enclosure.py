"""The in-place mode: a command in fresh namespaces of this kernel, all of which end with it, or
with us.

This file is run as a program (`python3 -I -S enclosure.py`), with standard library only. Two
processes: the outer one makes the namespaces and is killed by the kernel when its parent dies; the
inner one is process 1 of the new PID namespace and is killed when the outer dies, and the whole
namespace with it (pid_namespaces(7)).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x08000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 16384, 1 << 18
PR_SET_PDEATHSIG = 1
CGROUP_PREFIX = "dvn-command-"
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(kind: str, target: str, flags: int = 0, options: str = "") -> None:
    _check(
        _libc.mount(
            kind.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()
        ),
        f"mount {kind} on {target}",
    )


def _die_with_parent() -> None:
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def _furnish() -> None:
    """File systems, loopback and name of the new namespaces; runs as their process 1."""
    _check(
        _libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None),
        "mount --make-rprivate /",
    )
    _mount("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _mount("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if "cgroup2" in Path("/proc/filesystems").read_text():
        _mount("cgroup2", "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        _delegate(Path("/sys/fs/cgroup"))
    _mount("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755")
    Path("/run/lock").mkdir()
    Path("/run/lock").chmod(0o1777)
    socket.sethostname("lab")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        # SIOCSIFFLAGS with IFF_UP | IFF_RUNNING (netdevice(7))
        fcntl.ioctl(handle, 0x8914, struct.pack("16sH14x", b"lo", 0x41))


def _own_cgroup() -> Path | None:
    """The cgroup that was made for us (see runner), as the outer process sees it."""
    path = Path("/proc/self/cgroup").read_text().strip().rpartition(":")[2]
    return Path("/sys/fs/cgroup" + path) if CGROUP_PREFIX in path else None


def _delegate(root: Path) -> None:
    """Gives the controllers on to the groups the command will make."""
    for name in (root / "cgroup.controllers").read_text().split():
        try:
            (root / "cgroup.subtree_control").write_text(f"+{name}")
        except OSError:  # one the host does not delegate; the features probe asked for ours
            continue


def _inner(outer_lives: int, argv: list[str]) -> int:
    """Process 1: starts the command, reaps, passes signals on. The exit status, as a shell gives
    it.

    `outer_lives` is the read end of a pipe that the outer process holds: its end means that the
    outer died before we asked to die with it.
    """
    _die_with_parent()
    if select.select([outer_lives], [], [], 0)[0]:
        return 125
    os.set_inheritable(outer_lives, False)
    _furnish()
    child = os.fork()
    if child == 0:
        for number in (*FORWARDED, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        try:
            os.execvp(argv[0], argv)
        except OSError as error:
            sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
            sys.stderr.flush()
            os._exit(127 if isinstance(error, FileNotFoundError) else 126)
    # Keys of the terminal reach the command by themselves (it is in the foreground group, and INT
    # and QUIT are ignored here); these come by kill(2).
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda number, _: os.kill(child, _meaning(number)))
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _meaning(number: int) -> int:
    """SIGUSR1 from the outer process stands for SIGINT, which a terminal would have given the
    command already.
    """
    return signal.SIGINT if number == signal.SIGUSR1 else number


def main() -> int:
    """argv: the parent's process id, then the command. 125 when the namespaces cannot be made."""
    parent, argv = int(sys.argv[1]), sys.argv[2:]
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    try:
        _die_with_parent()
        if os.getppid() != parent:  # it died before the call
            return 125
        group = _own_cgroup()
        flags = (
            CLONE_NEWNS
            | CLONE_NEWUTS
            | CLONE_NEWIPC
            | CLONE_NEWPID
            | CLONE_NEWNET
            | CLONE_NEWCGROUP
        )
        _check(_libc.unshare(flags), "unshare")
        if group is not None:
            # Into a leaf, after the namespace has taken the group as its root: a group with
            # processes of its own cannot give controllers on (cgroups(7), "no internal processes").
            (group / "command").mkdir()
            (group / "command/cgroup.procs").write_text("0")
        outer_lives, held = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(held)
            os._exit(_guarded(outer_lives, argv))
    except OSError as error:
        sys.stderr.write(f"lab.kernel: {error.strerror}\n")
        return 125
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda number, _: os.kill(child, number))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _guarded(outer_lives: int, argv: list[str]) -> int:
    try:
        status = _inner(outer_lives, argv)
    except OSError as error:
        sys.stderr.write(f"lab.kernel: {error.strerror}\n")
        status = 125
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    sys.exit(main())
