"""The few Linux calls that Python 3.11 has no name for: namespaces and mounts.

Thin wrappers of libc (unshare(2), setns(2), mount(2), umount2(2), prctl(2)); an error is an
OSError that says which call failed. Nothing here keeps state.
"""

import ctypes
import os
from pathlib import Path

# Of unshare(2) and setns(2).
CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# For mount and umount2, in section 2 of the manual.
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_FORCE = 0x1
MNT_DETACH = 0x2

_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces named by flags; only the calling thread moves (unshare(2))."""
    _check(_libc.unshare(ctypes.c_int(flags)), f"unshare({flags:#x})")


def setns(fd: int, flags: int) -> None:
    """Enter namespaces of fd (a namespace file, or a pidfd: Linux 5.8) with the calling thread."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(flags)), f"setns({flags:#x})")


def mount(
    source: str, target: str | Path, kind: str = "", flags: int = 0, options: str = ""
) -> None:
    """mount(2); empty kind and options are passed as NULL."""
    result = _libc.mount(
        source.encode(),
        os.fsencode(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _check(result, f"mount {kind or source} on {target}")


def own_root() -> None:
    """Into a mount namespace of our own: its root is what we see as /, nothing is seen outside.

    A chroot's namespace has the machine's root, and setns(2) takes who enters it *there*: a program
    would leave the chroot. Here what we see is moved to the namespace's root, as switch_root(8)
    does. For a process of one thread; its working directory is / afterwards.
    """
    unshare(CLONE_NEWNS)
    seen = os.open("/", os.O_PATH | os.O_DIRECTORY)
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    try:
        setns(own, CLONE_NEWNS)  # "/" is the namespace's now
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        os.fchdir(seen)
        if _place(seen) != _place_of("/"):
            here = str(Path.cwd())
            mount(here, here, "", MS_BIND | MS_REC)  # only what is mounted can be moved
            os.chdir(here)
            mount(".", "/", "", MS_MOVE)
            os.chroot(".")
        os.chdir("/")
    finally:
        os.close(own)
        os.close(seen)


def _place_of(path: str) -> tuple[str, int]:
    handle = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        return _place(handle)
    finally:
        os.close(handle)


def _place(handle: int) -> tuple[str, int]:
    """Which directory of which mount: the same files may be mounted twice (proc(5), fdinfo)."""
    info = Path(f"/proc/self/fdinfo/{handle}").read_text()
    (mount_id,) = [line.split()[1] for line in info.splitlines() if line.startswith("mnt_id:")]
    return mount_id, os.fstat(handle).st_ino


def umount(target: str | Path, flags: int = 0) -> None:
    """umount2(2); EBUSY while something uses the file system."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), f"umount {target}")


def detach(target: str | Path) -> None:
    """umount2(target, MNT_DETACH): out of sight now, freed when unused; EINVAL if no mount."""
    umount(target, MNT_DETACH)


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send us this signal when the *thread* that forked us ends (prctl(2))."""
    result = _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal_number), 0, 0, 0)
    _check(result, "prctl(PR_SET_PDEATHSIG)")
