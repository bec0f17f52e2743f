"""A PostgreSQL of the test's own: its cluster in a directory, on a unix socket only.

Its programs are looked for where Debian puts them and on PATH; nothing else of the machine is
touched, and nothing stays.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from lab.process import wait_for

DEBIAN = Path("/usr/lib/postgresql")
OWNER = "owner"


def programs() -> Path | None:
    """The directory of `initdb` and `postgres`, the newest of Debian's before PATH."""
    found = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


@dataclass(frozen=True, slots=True)
class Cluster:
    """One running server. Every database of it belongs to `OWNER`, who needs no password."""

    directory: Path
    bin: Path
    as_whom: dict[str, Any]  # the server refuses to run as root

    def url(self, database: str, **more: str) -> str:
        options = "".join(f"&{key}={value}" for key, value in more.items())
        return f"postgresql+psycopg://{OWNER}@/{database}?host={self.directory}{options}"

    def database(self) -> str:
        """A new, empty one; its name."""
        name = f"dvn_{uuid4().hex[:12]}"
        self.sql(f"CREATE DATABASE {name}", "postgres")
        return name

    def sql(self, statement: str, database: str) -> None:
        import psycopg

        place = f"host={self.directory} user={OWNER} dbname={database}"
        with psycopg.connect(place, autocommit=True) as connection:
            connection.execute(statement.encode())

    def restart(self) -> None:
        self.stop()
        self.start()

    def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            subprocess.Popen(
                [self.bin / "postgres", "-D", self.directory / "data", "-k", self.directory,
                 "-c", "listen_addresses=", "-c", "fsync=off"],
                stdout=log, stderr=log, cwd=self.directory, start_new_session=True, **self.as_whom,
            )  # fmt: skip
        ready = [str(self.bin / "pg_isready"), "-q", "-h", str(self.directory), "-d", "postgres"]
        wait_for(
            lambda: subprocess.run(ready, check=False, timeout=30).returncode == 0,
            60,
            what="the PostgreSQL server",
        )

    def stop(self) -> None:
        """At once; the server's own children end with it."""
        pidfile = self.directory / "data" / "postmaster.pid"
        if pidfile.exists():
            pid = int(pidfile.read_text().split()[0])
            os.kill(pid, signal.SIGQUIT)
            wait_for(lambda: not Path(f"/proc/{pid}").exists() or _reap(pid), 60, what="its end")


def _reap(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


@contextmanager
def cluster(bin_: Path) -> Iterator[Cluster]:
    whom: dict[str, Any] = {}
    # The path of a unix socket has at most 107 characters: not below pytest's own directories.
    with tempfile.TemporaryDirectory(prefix="dvn-pg-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            whom = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(directory, nobody.pw_uid, nobody.pw_gid)
        subprocess.run(
            [bin_ / "initdb", "-D", directory / "data", "-U", OWNER, "-A", "trust", "-N",
             "-E", "UTF8", "--locale=C.UTF-8"],
            check=True, timeout=120, cwd=directory, capture_output=True, **whom,
        )  # fmt: skip
        server = Cluster(directory, bin_, whom)
        try:
            server.start()
            yield server
        finally:
            server.stop()
