"""Python programs that start at once: forked from a process that has imported their modules.

On an emulated processor the daemon's libraries take half a minute to import, and tests that start
it twenty times would wait for nothing else. `python -m lab.warm SOCKET` imports them once, on a
host of the lab, and forks itself for every command it is asked for. From `main()` on that process
is what it always is: a session, files and environment of its own, ended by its own exit or by any
signal. The demo and the bare command line do without.

A request is one message: JSON, and three descriptors (standard input, output, error). The answers
are the process id, as credentials (unix(7), SCM_CREDENTIALS: translated into the asker's pid
namespace), and at the end the wait status.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Protocol

from lab.host import PATH
from lab.process import memory_file, text_of

MODULES = (
    "alembic.command", "alembic.script", "boto3", "burst.join.bundle", "burst.join.slurm",
    "burst.join.userdata", "burst.lrms.slurm", "burst.providers.ec2", "dvn.agent_client",
    "dvn.engine", "dvn.present", "gateway.api.app", "gateway.cli.main", "gateway.daemon",
    "gateway.parts", "gateway.service", "gateway.sitefile", "gateway.store", "rich.console",
    "rich.table", "uvicorn",
)  # fmt: skip
_MAX_REQUEST = 1 << 16
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_STATUS = struct.Struct("i")


class Process(Protocol):
    """What subprocess.Popen and a warm process have in common."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...


class WarmProcess:
    """A process forked for us; like subprocess.Popen where it is alike."""

    def __init__(self, connection: socket.socket, argv: Sequence[str]) -> None:
        self.args = list(argv)
        self.returncode: int | None = None
        self._connection = connection
        _data, ancillary, _flags, _address = connection.recvmsg(
            1, socket.CMSG_SPACE(_CREDENTIALS.size)
        )
        if not ancillary:
            raise ChildProcessError(f"no process was forked for {' '.join(argv)}")
        self.pid: int = _CREDENTIALS.unpack(ancillary[0][2])[0]
        self._pidfd = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, or minus the signal; subprocess.TimeoutExpired."""
        if self.returncode is not None:
            return self.returncode
        # Without a time limit settimeout(None) blocks; 0 would be an error of another kind.
        self._connection.settimeout(None if timeout is None else max(timeout, 0.001))
        try:
            answer = self._connection.recv(_STATUS.size)
        except TimeoutError:
            raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
        finally:
            self._connection.settimeout(None)
        # No answer: the parent died, and with the host all of its processes.
        status = _STATUS.unpack(answer)[0] if answer else signal.SIGKILL
        self.returncode = os.waitstatus_to_exitcode(status)
        self._connection.close()
        os.close(self._pidfd)
        return self.returncode

    def send_signal(self, sig: int) -> None:
        if self.returncode is None:
            signal.pidfd_send_signal(self._pidfd, sig)


def start(
    path: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    output: IO[bytes],
    errors: IO[bytes] | None = None,
) -> WarmProcess:
    """Ask the server at `path` for `dvn ARGV`, with a login environment and `env`.

    Output goes to `output`, errors to `errors` or there too. Raises OSError if nobody answers.
    """
    variables = {"PATH": PATH, "HOME": "/root", "USER": "root", "LANG": "C.UTF-8", **env}
    request = json.dumps({"argv": list(argv), "env": variables, "cwd": "/root"}).encode()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        connection.connect(path)
        with Path("/dev/null").open("rb") as null:
            files = [null.fileno(), output.fileno(), (errors or output).fileno()]
            socket.send_fds(connection, [request], files)
        return WarmProcess(connection, argv)
    except OSError:
        connection.close()
        raise


def run(
    path: str, argv: Sequence[str], *, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """`start`, wait, and give what it wrote; killed and subprocess.TimeoutExpired if too late."""
    with memory_file() as out, memory_file() as err:
        child = start(path, argv, env=env, output=out, errors=err)
        try:
            status = child.wait(timeout)
        finally:
            child.send_signal(signal.SIGKILL)
        return subprocess.CompletedProcess(["dvn", *argv], status, text_of(out), text_of(err))


def wait_ready(path: str, timeout: float) -> None:
    """Until the server listens. Raises TimeoutError."""
    end = time.monotonic() + timeout
    while not Path(path).is_socket():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing listens at {path} after {timeout:g} s")
        time.sleep(0.1)


class _Server:
    def __init__(self, path: str) -> None:
        self._children: dict[int, socket.socket] = {}
        self._wakeup, self._written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, _noted)
        signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Not there before it listens: who waits for the file may ask at once.
        self._listener.bind(f"{path}.new")
        self._listener.listen()
        Path(f"{path}.new").rename(path)

    def serve(self) -> list[str]:
        """Returns in a forked child, with its arguments; in the parent, never."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wakeup, selectors.EVENT_READ)
            while True:
                for key, _events in selector.select():
                    if key.fileobj is self._listener:
                        argv = self._fork(self._listener.accept()[0])
                        if argv is not None:
                            return argv
                    else:
                        os.read(self._wakeup, 512)
                        self._reap()

    def _fork(self, connection: socket.socket) -> list[str] | None:
        request, files, _flags, _address = socket.recv_fds(connection, _MAX_REQUEST, 3)
        if len(files) != 3:  # the asker went away
            connection.close()
            return None
        pid = os.fork()
        if pid:
            self._children[pid] = connection
            for file in files:
                os.close(file)
            return None
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        own = _CREDENTIALS.pack(os.getpid(), os.getuid(), os.getgid())
        connection.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, own)])
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        # By their objects: one closed behind its object's back is closed again by the collector,
        # and its number belongs to another file then.
        for each in (connection, self._listener, *self._children.values()):
            each.close()
        os.close(self._wakeup)
        os.close(self._written)
        asked = json.loads(request)
        os.environ.clear()
        os.environ.update(asked["env"])
        os.chdir(asked["cwd"])
        os.umask(0o022)
        argv: list[str] = asked["argv"]
        return argv

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with self._children.pop(pid) as connection:
                try:
                    connection.send(_STATUS.pack(status))
                except OSError:  # nobody waits for it any more
                    continue


def _noted(_number: int, _frame: FrameType | None) -> None:
    """The wake-up descriptor has told already."""


def main() -> None:
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()  # a collection in a child would copy every page it looks at
    argv = _Server(sys.argv[1]).serve()
    sys.argv = ["dvn", *argv]
    importlib.import_module("gateway.cli.main").main()


if __name__ == "__main__":
    main()
