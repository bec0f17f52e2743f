"""What this process may do."""

from __future__ import annotations

import ctypes

_CAP_NET_ADMIN, _CAPABILITY_VERSION_3 = 12, 0x20080522


def may_change_networks() -> bool:
    """Whether this thread has CAP_NET_ADMIN in effect (capget(2), version 3 of its structures)."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # two times effective, permitted, inheritable
    if ctypes.CDLL(None).capget(header, sets) != 0:
        return False
    return bool(sets[0] >> _CAP_NET_ADMIN & 1)
