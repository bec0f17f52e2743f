"""One host of the lab: run, write, listen and power off inside its namespaces (see lab.hosts)."""

import codecs
import errno
import grp
import os
import pwd
import select
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lab import linux, rtnl
from lab.init import INIT_LEAF
from lab.process import (
    CommandError,
    CommandTimeoutError,
    HostDownError,
    LabError,
    memory_file,
    stop,
    text_of,
    told,
    wait_for,
)

__all__ = [
    "PRIVATE",
    "CommandError",
    "CommandTimeoutError",
    "Host",
    "HostDownError",
    "HostSpec",
    "LabError",
    "stop",
    "wait_for",
]

T = TypeVar("T")
# The codec of host names: were it first looked for inside a host without our Python (see
# HostSpec.root), it would be unknown everywhere from then on.
codecs.lookup("idna")

PRIVATE = (
    "/etc",
    "/var",
    "/run:empty",
    "/tmp:empty",
    "/home:empty",
    "/root:empty",
    "/dev/shm:empty",
)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ALL_NAMESPACES = (
    linux.CLONE_NEWNS
    | linux.CLONE_NEWCGROUP
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
)
_ENTER = f"echo 0 > /sys/fs/cgroup/{INIT_LEAF}/cgroup.procs; "
_IP_FREEBIND = 15  # ip(7)


@dataclass(frozen=True)
class HostSpec:
    """What a host has. cores in lab cores, None: no limit; memory in MiB, None: no limit.

    private: directories of its own; "DIR" starts with the machine's files, "DIR:empty" with none.
    The rest of the file system is the machine's, read-only. root: a directory with another system
    (lab.farm.trees), whose files the host has instead of the machine's, all of them writable;
    `private` then only says which directories start empty. shown: directories of the machine that
    are seen as they are, read-only, also below one of `private`.
    """

    name: str
    cores: float | None = None
    memory_mb: int | None = None
    private: tuple[str, ...] = PRIVATE
    sysctls: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None
    shown: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if (
            not self.name
            or len(self.name) > 63
            or not all(c.isascii() and (c.isalnum() or c == "-") for c in self.name)
        ):
            raise LabError(f"host name {self.name!r}: use up to 63 letters, digits and hyphens")
        if self.cores is not None and self.cores <= 0:
            raise LabError(f"host {self.name}: cores must be above 0, not {self.cores}")
        if self.memory_mb is not None and self.memory_mb < 8:
            raise LabError(f"host {self.name}: memory_mb must be at least 8, not {self.memory_mb}")


class Power(Protocol):
    """What a host needs of its lab."""

    has_cgroup: bool

    def halt(self, name: str, patience_s: float) -> None:
        """Kill all but pid 1, let go of what the kernel would hold (lab.halt)."""

    def kill(self, name: str) -> None:
        """SIGKILL the host's pid 1."""


class Host:
    """One running host of a Lab; made by Lab.host()."""

    def __init__(self, spec: HostSpec, pid: int, power: Power) -> None:
        self.spec = spec
        self.name = spec.name
        self.pid = pid
        self._power = power
        self._pidfd = os.pidfd_open(pid)
        self._alive = True
        self._children: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Host {self.name} pid {self.pid}{'' if self._alive else ' off'}>"

    @property
    def alive(self) -> bool:
        """False after kill(), or when pid 1 has died."""
        return self._alive and not self._ends_within(0)

    def _ends_within(self, seconds: float) -> bool:
        """Whether pid 1 has ended, at the latest so many seconds from now."""
        poll = select.poll()  # a pidfd is readable when its process has ended (pidfd_open(2))
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(1000 * seconds))

    def inside(self, action: Callable[[], T], *, namespaces: int = _ALL_NAMESPACES) -> T:
        """Call action in a thread that is inside the host: its files, network and process ids.

        A socket made there stays the host's. Do not import modules or start threads in it.
        """
        result: list[T] = []
        problem: list[BaseException] = []

        def enter() -> None:
            try:
                linux.unshare(linux.CLONE_FS)  # else setns of a mount namespace is refused
                self._enter(namespaces)
                result.append(action())
            except BaseException as error:  # noqa: BLE001 - carried to the caller, raised below
                problem.append(error)

        thread = threading.Thread(target=enter, name=f"inside-{self.name}", daemon=True)
        thread.start()
        thread.join()
        if problem:
            raise problem[0]
        return result[0]

    def _enter(self, namespaces: int) -> None:
        if not self._alive:
            raise HostDownError(f"host {self.name} is off")
        try:
            linux.setns(self._pidfd, namespaces)
        except OSError as error:
            if self._alive and not isinstance(error, ProcessLookupError):
                raise
            raise HostDownError(f"host {self.name} is off: its pid 1 died") from error

    def spawn(
        self,
        *argv: str,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        cwd: str | None = None,
        stdin: Any = subprocess.DEVNULL,
        stdout: Any = None,
        stderr: Any = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command on the host, in a session of its own; it dies with the host.

        log: a file of the lab's machine, appended to; without it (and stdout, stderr) the output is
        dropped. env is added to a plain login environment, not to ours. user: a name in the host's
        /etc/passwd. A command that does not exist ends with 127.
        """
        sink = None if log is None else log.open("ab")
        if stdout is None:
            stdout = sink if sink is not None else subprocess.DEVNULL
        if stderr is None:
            stderr = stdout if sink is not None else subprocess.DEVNULL

        def start() -> subprocess.Popen[bytes]:
            prefix, variables = _as_user(self.name, user)
            script = (_ENTER if self._power.has_cgroup else "") + 'exec "$@"'
            return subprocess.Popen(
                ["/bin/sh", "-c", script, argv[0], *prefix, *argv],
                env={**variables, **(env or {})},
                cwd=cwd or variables["HOME"],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

        try:
            child = self.inside(start)
        except OSError as error:
            # What fork(2) says in a namespace whose pid 1 is on its way out (pid_namespaces(7)).
            if not self.alive or (error.errno == errno.ENOMEM and self._ends_within(10)):
                raise HostDownError(f"host {self.name} is off") from error
            raise LabError(f"{self.name}: {shlex.join(argv)}: {error}") from error
        finally:
            if sink is not None:
                sink.close()
        with self._lock:
            if self._alive:
                self._children = [c for c in self._children if c.poll() is None]
                self._children.append(child)
                return child
        # Killed meanwhile, and kill() did not know this child: unreaped, it would keep the host's
        # pid namespace, and whoever waits for that, for good.
        child.wait(timeout=30)
        raise HostDownError(f"host {self.name} is off")

    def run(
        self,
        *argv: str,
        check: bool = True,
        timeout: float = 60,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002 - as in subprocess.run
        cwd: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host and wait for it. See spawn() for user and env.

        CommandError if it ends with another status than 0 (unless check=False); CommandTimeoutError
        after `timeout` seconds, when it and its process group have been killed.
        """
        # Files in memory, not pipes: a daemon that keeps its standard error open does not hold
        # us up, and nothing blocks however much is written.
        with memory_file() as fed, memory_file() as out, memory_file() as err:
            if input is not None:
                fed.write(input.encode())
                fed.seek(0)
            child = self.spawn(
                *argv, user=user, env=env, cwd=cwd, stdin=fed, stdout=out, stderr=err
            )
            try:
                status = child.wait(timeout=timeout)
            except subprocess.TimeoutExpired as error:
                raise CommandTimeoutError(
                    f"{self.name}: {shlex.join(argv)}: not done after {timeout:g} s"
                    + told(text_of(out), text_of(err))
                ) from error
            finally:
                if child.returncode is None:
                    stop(child)
            result = subprocess.CompletedProcess(list(argv), status, text_of(out), text_of(err))
        if check and status != 0:
            ended = f"was killed by signal {-status}" if status < 0 else f"ended with {status}"
            raise CommandError(
                f"{self.name}: {shlex.join(argv)}: {ended}" + told(result.stdout, result.stderr),
                result,
            )
        return result

    def script(
        self,
        text: str,
        *arguments: str,
        check: bool = True,
        timeout: float = 60,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002 - as in subprocess.run
    ) -> subprocess.CompletedProcess[str]:
        """Run several commands with one entry: `sh -eu`, with arguments as $1 and on."""
        return self.run(
            "/bin/sh", "-euc", text, "sh", *arguments,
            check=check, timeout=timeout, user=user, env=env, input=input,
        )  # fmt: skip

    def write(
        self, path: str, text: str | bytes, mode: int = 0o644, owner: str | None = None
    ) -> None:
        """Write a file on the host, whole or not at all; makes the directories above it.

        owner: "user" or "user:group", names of the host.
        """
        data = text.encode() if isinstance(text, str) else text

        def put() -> None:
            file = Path(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            new = file.with_name(f".{file.name}.new")
            new.write_bytes(data)
            new.chmod(mode)
            if owner is not None:
                _chown(self.name, new, owner)
            new.replace(file)

        try:
            self.inside(put)
        except OSError as error:
            raise LabError(f"{self.name}: cannot write {path}: {error}") from error

    def read(self, path: str) -> str:
        """The text of a file of the host; LabError if there is none."""
        try:
            return self.inside(lambda: Path(path).read_text(errors="replace"))
        except OSError as error:
            raise LabError(f"{self.name}: cannot read {path}: {error}") from error

    def listen(self, address: str, port: int, *, backlog: int = 128) -> socket.socket:
        """A TCP socket that listens inside the host's network, for a server in our process.

        The address need not exist yet (IP_FREEBIND). Close it to let the network go.
        """
        family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def make() -> socket.socket:
            listener = socket.socket(family, socket.SOCK_STREAM)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
                listener.bind((address, port))
                listener.listen(backlog)
            except OSError:
                listener.close()
                raise
            return listener

        try:
            return self.inside(make)
        except OSError as error:
            raise LabError(
                f"{self.name}: cannot listen on {address} port {port}: {error}"
            ) from error

    def connect(self, address: str, port: int, *, timeout: float = 10) -> socket.socket:
        """A TCP connection made from inside the host's network; OSError as from connect(2)."""
        return self.inside(lambda: socket.create_connection((address, port), timeout=timeout))

    def wait_for(
        self,
        condition: Callable[[], T | None] | Sequence[str],
        timeout: float = 30,
        *,
        what: str = "",
        interval: float = 0.1,
    ) -> T | subprocess.CompletedProcess[str]:
        """Wait until a command of the host succeeds, or a function returns something true.

        CommandTimeoutError after `timeout` seconds; it says what was waited for and what came last.
        """
        if callable(condition):
            return wait_for(condition, timeout, what=f"{self.name}: {what}", interval=interval)
        argv = condition
        last = ""

        def succeeds() -> subprocess.CompletedProcess[str] | None:
            nonlocal last
            result = self.run(*argv, check=False, timeout=max(deadline - time.monotonic(), 1.0))
            last = f" (status {result.returncode})" + told(result.stdout, result.stderr)
            return result if result.returncode == 0 else None

        deadline = time.monotonic() + timeout
        name = what or shlex.join(argv)
        try:
            return wait_for(succeeds, timeout, interval=interval)
        except CommandTimeoutError as error:
            text = f"{self.name}: waited {timeout:g} s for {name}{last or f': {error}'}"
            raise CommandTimeoutError(text) from error

    def kill(self) -> None:
        """Power off at once: links gone, every process killed. Calling it again does nothing."""
        with self._lock:
            if not self._alive:
                return
            # First the links: a network namespace may outlive its last process for a while, or
            # for as long as our own process has a socket in it.
            with suppress(LabError, OSError):
                self.inside(rtnl.delete_links, namespaces=linux.CLONE_NEWNET)
            self._alive = False
            os.close(self._pidfd)
            self._power.halt(self.name, 0.3)
            self._power.kill(self.name)
            # The kernel holds a pid namespace until our own children in it are reaped.
            for child in self._children:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=30)
            self._children.clear()


def _as_user(host: str, user: str | None) -> tuple[list[str], dict[str, str]]:
    """The argv prefix that becomes the user, and the login environment. Runs inside the host."""
    variables = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root", "USER": "root"}
    variables |= {"LOGNAME": "root", "SHELL": "/bin/sh", "TERM": os.environ.get("TERM", "dumb")}
    if user is None or user == "root":
        return [], variables
    try:
        entry = pwd.getpwnam(user)
    except KeyError as error:
        raise LabError(f"host {host} has no user {user}: add it with useradd first") from error
    groups = ",".join(str(gid) for gid in os.getgrouplist(user, entry.pw_gid))
    prefix = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", f"--groups={groups}"]
    variables |= {"HOME": entry.pw_dir, "USER": user, "LOGNAME": user, "SHELL": entry.pw_shell}
    if not Path(entry.pw_dir).is_dir():
        variables["HOME"] = "/"
    return prefix, variables


def _chown(host: str, path: Path, owner: str) -> None:
    """Give the file to "user" or "user:group", names of the host. Runs inside the host."""
    user, _, group = owner.partition(":")
    try:
        uid = pwd.getpwnam(user).pw_uid if user else -1
        gid = grp.getgrnam(group).gr_gid if group else -1
    except KeyError as error:
        raise LabError(f"host {host}: {error.args[0]}") from error
    os.chown(path, uid, gid)
