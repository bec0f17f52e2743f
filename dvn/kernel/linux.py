"""The kernel this process runs on: route netlink, libnftables, /proc/sys."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dvn.kernel.driver import KernelError
from dvn.kernel.looking import Looking
from dvn.kernel.opened import refused
from dvn.kernel.writing import Writing

_LOCK = Path("/run/dvn/kernel.lock")
_LOCK_WAIT_S, _LOCK_POLL_S = 20.0, 0.02


class LinuxKernel(Looking, Writing):
    """Opens its sockets on first use, in the namespace of the thread that uses it first."""

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """A lock between processes, such as the command line and the daemon's agent; the kernel
        lets it go with the process that holds it."""
        try:
            _LOCK.parent.mkdir(parents=True, exist_ok=True)
            file = _LOCK.open("a")
        except OSError as error:
            raise refused(error) from error
        with file:
            end = time.monotonic() + _LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise KernelError(
                            f"another process has held {_LOCK} for {_LOCK_WAIT_S:.0f} s; "
                            "is a dvn command or agent stuck?"
                        ) from None
                    time.sleep(_LOCK_POLL_S)
            yield
