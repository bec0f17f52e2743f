"""The serving process of a site: is it there, start it, tell it what to serve, end it.

Its directory is /run/dvn/SITE/services: config.json, a file that it holds locked as long as it
lives, and a socket on which it answers; no process is ever found by its number, which may be
somebody else's by now. The leases are below /var/lib/dvn/SITE/services. With an empty memory all is
found again by these.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dvn.services.config import CONFIG, CONTROL, LOCK, LOG, Service, digest, from_json, to_json
from dvn.services.privileges import account

RUN, LIB = Path("/run/dvn"), Path("/var/lib/dvn")
_ANSWER_S, _READY_S, _END_S, _POLL_S = 60.0, 60.0, 15.0, 0.01
_MODULE = "dvn.services.server"


class Process:
    """Of one site. Raises OSError with words for people."""

    def __init__(self, site: str) -> None:
        self._directory = RUN / site / "services"
        self._leases = LIB / site / "services"

    def serving(self) -> tuple[Service, ...]:
        """What is served now, and not only written down; nothing if the process is dead."""
        text = self._config()
        if not text or not self.is_alive():
            return ()
        told = self._ask("tell")
        if told.get("digest") != digest(text):
            return ()
        failed = told.get("failed", {})
        return tuple(service for service in _services(text) if service.network not in failed)

    def told(self) -> tuple[Service, ...]:
        """What a living process was told to serve."""
        return _services(self._config()) if self.is_alive() else ()

    def serve(self, services: tuple[Service, ...]) -> None:
        """Have these served, and no others; returns when they are."""
        if not services:
            self._end()
            return
        self._prepare()
        text = to_json(sorted(services, key=lambda service: service.network))
        new = self._directory / f"{CONFIG}.new"
        new.write_text(text)
        new.chmod(0o644)
        new.replace(self._directory / CONFIG)
        if not self.is_alive():
            self._start()
        told = self._ask("load")
        for network, why in told.get("failed", {}).items():
            raise OSError(errno.EADDRNOTAVAIL, f"{network} cannot be served: {why}")
        if told.get("digest") != digest(text):
            raise OSError(errno.EINVAL, f"the DHCP server did not take it: {self._last_words()}")

    def is_alive(self) -> bool:
        try:
            with (self._directory / LOCK).open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def _prepare(self) -> None:
        uid, gid = account()
        # Whatever our umask is: who serves has given up root, and reads its file there.
        for directory in (RUN, self._directory.parent, self._directory):
            directory.mkdir(parents=True, exist_ok=True)
            found = directory.stat()
            if found.st_uid == os.geteuid() and found.st_mode & 0o011 != 0o011:
                directory.chmod(stat.S_IMODE(found.st_mode) | 0o011)  # what is in it guards itself
        self._leases.mkdir(parents=True, exist_ok=True)
        os.chown(self._leases, uid, gid)
        self._leases.chmod(0o700)

    def _start(self) -> None:
        # The package may lie where only this process looks for it, such as a checkout.
        own = str(Path(__file__).parents[2])
        paths = [own, *filter(None, [os.environ.get("PYTHONPATH")])]
        with (self._directory / LOG).open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", _MODULE, str(self._directory), str(self._leases)],
                cwd="/",
                env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # it outlives who starts it
            )
        end = time.monotonic() + _READY_S
        while not (self.is_alive() and self._ask("tell")):
            if child.poll() is not None:
                raise OSError(errno.ECHILD, f"the DHCP server ended: {self._last_words()}")
            if time.monotonic() > end:
                raise OSError(errno.ETIMEDOUT, "the DHCP server did not start")
            time.sleep(_POLL_S)

    def _end(self) -> None:
        if self.is_alive():
            self._ask("end")
            end = time.monotonic() + _END_S
            while self.is_alive():
                if time.monotonic() > end:
                    raise OSError(errno.ETIMEDOUT, "the DHCP server does not end")
                time.sleep(_POLL_S)
        shutil.rmtree(self._directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._directory.parent.rmdir()

    def _ask(self, what: str) -> dict[str, Any]:
        """One question on the process's socket; {} if it ended meanwhile."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(_ANSWER_S)
            try:
                sock.connect(str(self._directory / CONTROL))
                sock.sendall(what.encode() + b"\n")
                with sock.makefile("rb") as file:
                    found = json.loads(file.readline() or b"{}")
            except TimeoutError:
                said = self._last_words()
                raise OSError(errno.ETIMEDOUT, f"the DHCP server does not answer: {said}") from None
            except (FileNotFoundError, ConnectionError):
                return {}
        return found if isinstance(found, dict) else {}

    def _config(self) -> str:
        try:
            return (self._directory / CONFIG).read_text()
        except OSError:
            return ""

    def _last_words(self) -> str:
        try:
            lines = (self._directory / LOG).read_text(errors="replace").strip().splitlines()
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
