"""The start of the daemon as root, and its end: lock, agent, dropped privileges, signals.

The privileged part, the network agent, is another process, started while this one is still root.
It ends with this process, however this one ends, because then its end of a pipe is closed.
"""

from __future__ import annotations

import fcntl
import grp
import logging
import os
import pwd
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from gateway.sitefile import SiteFile

if TYPE_CHECKING:
    from gateway.parts import Parts

log = logging.getLogger(__name__)


class StartError(Exception):
    """The daemon cannot start; the message says why and what to do."""


class Lock:
    """That no two daemons run on one state. Held by an open file: it ends with the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(f"cannot open {self._path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise StartError(
                f"another gateway (process {holder}) runs on this state, {self._path.parent}: "
                "stop it first"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor


class AgentProcess:
    """The network agent as our child. `ended` is called, once, if it ends before we do."""

    def __init__(self, socket: str, owner: str | None) -> None:
        self._stopping = False
        read_end, self._write_end = os.pipe()
        owned = ["--owner", owner] if owner else []
        argv = [sys.executable, "-m", "dvn.agent", "--socket", socket, "--mode", "0600", *owned]
        try:
            self._process = subprocess.Popen(
                [*argv, "--parent-fd", str(read_end)],
                stdin=subprocess.DEVNULL,
                pass_fds=(read_end,),
                start_new_session=True,  # a Ctrl-C is for us; we tell the agent by the pipe
            )
        except OSError as error:
            os.close(self._write_end)
            raise StartError(f"cannot start the network agent: {error}") from error
        finally:
            os.close(read_end)
        log.info("event=agent pid=%d socket=%s", self._process.pid, socket)

    def watch(self, ended: Callable[[int], None]) -> None:
        def wait() -> None:
            status = self._process.wait()
            if not self._stopping:
                ended(status)

        threading.Thread(target=wait, name="agent-watch", daemon=True).start()

    def stop(self) -> None:
        self._stopping = True
        os.close(self._write_end)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            log.warning("event=slow-agent pid=%d", self._process.pid)


def prepare_directories(file: SiteFile) -> None:
    """Make the directories of state and sockets, and give them to `gateway.user`."""
    config = file.gateway
    owner = _account(config.user) if os.geteuid() == 0 else None
    sockets = {Path(config.socket).parent: 0o755, Path(config.agent_socket).parent: 0o755}
    for path, mode in (sockets | {config.state_directory: 0o700}).items():
        try:
            if not path.exists():
                path.mkdir(parents=True, exist_ok=True)
                path.chmod(mode)  # whatever our umask is
            if owner is None:
                continue
            if path in _SHARED:
                raise StartError(
                    f"{path} belongs to the whole system: name a directory of its own in the "
                    "site file, such as /run/dvn or /var/lib/dvn"
                )
            if path.stat().st_uid == 0:
                os.chown(path, owner.pw_uid, owner.pw_gid)
                path.chmod(mode)
        except OSError as error:
            raise StartError(f"cannot prepare {path}: {error.strerror}") from error


_SHARED = frozenset(map(Path, ("/", "/etc", "/run", "/tmp", "/var", "/var/lib", "/var/run")))


def drop_privileges(user: str | None) -> None:
    """Become `user`, for good, with its groups and no capability. Raises `StartError`."""
    account = _account(user)
    if account is None or os.geteuid() == account.pw_uid:
        return
    if os.geteuid() != 0:
        raise StartError(
            f"gateway.user is {account.pw_name}, and only root may become it: start as root or as "
            f"{account.pw_name}"
        )
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)  # from root: all three ids, and every capability is lost
    os.environ.update(HOME=account.pw_dir, USER=account.pw_name, LOGNAME=account.pw_name)
    log.info("event=user name=%s uid=%d", account.pw_name, account.pw_uid)


def _account(user: str | None) -> pwd.struct_passwd | None:
    if user is None:
        return None
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise StartError(
            f"gateway.user {user!r} does not exist on this host: make it, or name another"
        ) from None


def owner_of(user: str | None) -> str | None:
    """`USER:GROUP` for the agent's socket."""
    account = _account(user)
    if account is None:
        return None
    return f"{account.pw_name}:{grp.getgrgid(account.pw_gid).gr_name}"


class Signals:
    """SIGTERM and SIGINT end the daemon; the second ends it without waiting for machines.

    The kernel may deliver a signal to any thread, and then Python's own handler waits for the
    main thread to wake up, which sleeps for good. The wake-up descriptor is written at once.
    """

    def __init__(self, stop: Callable[[bool], None], *, drain: bool) -> None:
        self._stop = stop
        self._drain = drain
        self._read_end, self._write_end = os.pipe()

    def install(self) -> None:
        os.set_blocking(self._write_end, False)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        threading.Thread(target=self._run, name="signals", daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _noted)

    def _run(self) -> None:
        drain = self._drain
        while received := os.read(self._read_end, 1):
            log.info("event=signal name=%s", signal.Signals(received[0]).name)
            self._stop(drain)
            drain = False


def _noted(_number: int, _frame: FrameType | None) -> None:
    """The wake-up descriptor has told already."""


def run(
    file: SiteFile,
    *,
    drain_on_exit: bool = False,
    agent: bool = True,
    parts: Callable[[], Parts] | None = None,
) -> int:
    """Run the daemon until a signal; returns the exit status. Raises `StartError`.

    `agent=False`: another one, started by the system, listens at `gateway.agent_socket`.
    `parts`: what to put the daemon together from; the site file's own unless given.
    """
    config = file.gateway
    os.umask(0o077)  # state and secrets; the API's socket gets its own mode
    _account(config.user)  # said before anything is made
    prepare_directories(file)
    lock = Lock(config.state_directory / "gateway.lock")
    lock.take()
    child: AgentProcess | None = None
    if agent and os.geteuid() == 0:
        child = AgentProcess(config.agent_socket, owner_of(config.user))
    elif agent:
        log.warning(
            "event=no-agent socket=%s hint=%r",
            config.agent_socket,
            "not started as root: another process must serve this socket",
        )
    try:
        drop_privileges(config.user)
        return _serve(file, child, drain_on_exit, parts)
    finally:
        if child is not None:
            child.stop()


def _serve(
    file: SiteFile,
    child: AgentProcess | None,
    drain_on_exit: bool,
    parts: Callable[[], Parts] | None,
) -> int:
    # Only now: these imports take seconds on a slow machine, and the agent loads beside them.
    from gateway.api.server import ApiError
    from gateway.daemon import Daemon
    from gateway.parts import real_parts
    from gateway.store import StoreError
    from gateway.tls import TlsError
    from gateway.tokens import SecretError

    try:
        daemon = Daemon(file, (parts or real_parts)())
        status = 0

        def agent_ended(code: int) -> None:
            nonlocal status
            log.error("event=agent-ended status=%d", code)
            status = 1  # we cannot start another without root; who started us can
            daemon.stop()

        if child is not None:
            child.watch(agent_ended)
        Signals(lambda drain: daemon.stop(drain=drain), drain=drain_on_exit).install()
        daemon.run()
    except (StoreError, ApiError, TlsError, SecretError) as error:
        raise StartError(str(error)) from error
    return status
