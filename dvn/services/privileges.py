"""Give up root: keep the right to bind low ports and to send raw frames, and nothing else."""

from __future__ import annotations

import ctypes
import os
import pwd

_PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 8, 24, 38
_CAPABILITY_VERSION_3 = 0x20080522
CAP_NET_BIND_SERVICE, CAP_NET_RAW = 10, 13
_LAST_CAPABILITY = 63

# The first that the host has; a package may make the one of our own.
USERS = ("dvn-services", "nobody")


def account() -> tuple[int, int]:
    """(uid, gid) that serves. Raises LookupError."""
    for name in USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise LookupError(f"none of the users {', '.join(USERS)} is on this host")


def give_up(uid: int, gid: int) -> None:
    """Become `uid`, with two capabilities (capabilities(7)). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(_LAST_CAPABILITY + 1):
        libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # those the kernel does not know fail
    _check(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    kept = 1 << CAP_NET_BIND_SERVICE | 1 << CAP_NET_RAW
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # capget(2): effective, permitted, inheritable; the low 32 bits, then the high ones
    sets = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)
    _check(libc.capset(header, sets))
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _check(status: int) -> None:
    if status != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
