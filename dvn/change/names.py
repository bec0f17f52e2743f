"""The names our processes do their work under: nftables announces them with each transaction."""

from __future__ import annotations

import ctypes

AGENT, COMMAND, GUARD = "dvn-agent", "dvn", "dvn-guard"
OURS = frozenset({AGENT, COMMAND, GUARD})
_PR_SET_NAME = 15


def call_thread(name: str) -> None:
    """Name the calling thread, as `ps` and the kernel show it (prctl(2); 15 bytes)."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
