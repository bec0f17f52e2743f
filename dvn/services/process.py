"""The serving process of a site: is it there, start it, have it read again, end it.

Its directory is /run/dvn/SITE/services: config.json, the pid file that it holds locked as long as
it lives (so that a pid used again is not taken for it), and `state`, which is its own. The leases
are below /var/lib/dvn/SITE/services. With an empty memory all is found again by these.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dvn.services.config import (
    CONFIG,
    LOADED,
    PID,
    STATE,
    Service,
    digest,
    from_json,
    to_json,
)
from dvn.services.privileges import account

RUN, LIB = Path("/run/dvn"), Path("/var/lib/dvn")
_READY_S, _END_S, _POLL_S = 60.0, 15.0, 0.01
_LOG = "log"
_MODULE = "dvn.services.server"


class Process:
    """Of one site. Raises OSError with words for people."""

    def __init__(self, site: str) -> None:
        self._directory = RUN / site / "services"
        self._leases = LIB / site / "services"

    def serving(self) -> tuple[Service, ...]:
        """What is served now, and not only written down; nothing if the process is dead."""
        text = self._config()
        if not text or self._pid() is None:
            return ()
        loaded = self._loaded()
        if loaded.get("digest") != digest(text):
            return ()
        failed = loaded.get("failed", {})
        return tuple(service for service in _services(text) if service.network not in failed)

    def told(self) -> tuple[Service, ...]:
        """What a living process was told to serve."""
        return _services(self._config()) if self._pid() is not None else ()

    def serve(self, services: tuple[Service, ...]) -> None:
        """Have these served, and no others; returns when they are."""
        if not services:
            self._end()
            return
        self._prepare()
        text = to_json(sorted(services, key=lambda service: service.network))
        new = self._directory / f"{CONFIG}.new"
        new.write_text(text)
        new.replace(self._directory / CONFIG)
        child = self._start_or_reload()
        self._wait(digest(text), child)
        failed = self._loaded().get("failed", {})
        for network, why in failed.items():
            raise OSError(errno.EADDRNOTAVAIL, f"{network} cannot be served: {why}")

    def _prepare(self) -> None:
        uid, gid = account()
        for directory, mode, owner in (
            (self._directory, 0o755, (0, 0)),
            (self._directory / STATE, 0o755, (uid, gid)),
            (self._leases, 0o700, (uid, gid)),
        ):
            directory.mkdir(parents=True, exist_ok=True)
            os.chown(directory, *owner)
            directory.chmod(mode)

    def _start_or_reload(self) -> subprocess.Popen[bytes] | None:
        pid = self._pid()
        if pid is not None:
            os.kill(pid, signal.SIGHUP)
            return None
        with contextlib.suppress(FileNotFoundError):
            (self._directory / STATE / LOADED).unlink()
        # The package may lie where only this process looks for it, such as a checkout.
        own = str(Path(__file__).parents[2])
        paths = [own, *filter(None, [os.environ.get("PYTHONPATH")])]
        with (self._directory / _LOG).open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", _MODULE, str(self._directory), str(self._leases)],
                cwd="/",
                env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # it outlives who starts it
            )

    def _wait(self, wanted: str, child: subprocess.Popen[bytes] | None) -> None:
        end = time.monotonic() + _READY_S
        while self._loaded().get("digest") != wanted:
            if (child and child.poll() is not None) or (child is None and self._pid() is None):
                raise OSError(errno.ECHILD, f"the DHCP server ended: {self._last_words()}")
            if time.monotonic() > end:
                raise OSError(
                    errno.ETIMEDOUT,
                    f"the DHCP server is not ready after {_READY_S:.0f} s: {self._last_words()}",
                )
            time.sleep(_POLL_S)

    def _end(self) -> None:
        pid = self._pid()
        if pid is not None:
            # Told first that there is nothing: it says farewell to the machines.
            (self._directory / CONFIG).write_text(to_json(()))
            os.kill(pid, signal.SIGHUP)
            self._wait(digest(to_json(())), None)
            os.kill(pid, signal.SIGTERM)
            end = time.monotonic() + _END_S
            while self._pid() is not None:
                if time.monotonic() > end:
                    raise OSError(errno.ETIMEDOUT, f"the DHCP server (pid {pid}) does not end")
                time.sleep(_POLL_S)
        shutil.rmtree(self._directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._directory.parent.rmdir()

    def _pid(self) -> int | None:
        """Of the living process; None if there is none. It is ours: it holds the lock, and its
        command line names the directory."""
        try:
            with (self._directory / PID).open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    pid = int(file.read() or 0)
                else:
                    return None
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        ours = _MODULE.encode() in words and str(self._directory).encode() in words
        return pid if ours else None

    def _config(self) -> str:
        try:
            return (self._directory / CONFIG).read_text()
        except OSError:
            return ""

    def _loaded(self) -> dict[str, Any]:
        try:
            found = json.loads((self._directory / STATE / LOADED).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _last_words(self) -> str:
        try:
            lines = (self._directory / _LOG).read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "it said nothing"


@functools.lru_cache(maxsize=8)
def _services(text: str) -> tuple[Service, ...]:
    """Kept, since each look at the kernel asks."""
    try:
        return from_json(text)
    except (ValueError, KeyError, TypeError):
        return ()
