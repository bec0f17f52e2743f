"""The keeper: a small process that makes the lab's hosts, holds them, and cleans up after them.

The lab starts one keeper and speaks to it over a socket pair. The keeper forks pid 1 of every host,
so making a host costs one small fork and no exec (a fork of a big, threaded Python would be slow
and unsafe). When the socket ends, whether the lab closed it or was killed, the keeper kills the
hosts, removes their control groups and files, and leaves. Should the keeper itself be killed, its
hosts die with it (PR_SET_PDEATHSIG).

Messages are JSON objects, one a datagram (SOCK_SEQPACKET): a request, then its answer.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lab import linux
from lab.cgroups import enable, own_cgroup, remove_group, sweep
from lab.halt import halt
from lab.init import SCRATCH, become_host

MESSAGE_LIMIT = 1 << 18  # bytes in one request or answer
CONTROLLERS = ("cpu", "memory", "pids", "cpuset", "io")
CPU_PERIOD_US = 50_000


class Keeper:
    """Makes and removes hosts on request; see the module's text."""

    def __init__(self, control: socket.socket, name: str, state: Path | None) -> None:
        self._control = control
        self._name = name
        self._state = state
        self._hosts: dict[str, int] = {}
        self._cgroup: Path | None = None
        self._controllers: frozenset[str] = frozenset()
        self._home: Path | None = None  # the control group we were started in
        self._own_pidns = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def serve(self) -> None:
        """Answer until the lab's end of the socket is closed, then remove everything."""
        linux.own_root()
        try:
            self._quiet_tunnels()
            self._make_cgroup()
            cgroup = self._cgroup is not None
            self._say({"ok": True, "cgroup": cgroup, "controllers": sorted(self._controllers)})
            while request := self._control.recv(MESSAGE_LIMIT):
                self._answer(json.loads(request))
        except ConnectionError:
            pass  # the lab died while we wrote to it: the same as its end of file
        finally:
            self._remove_all()

    @staticmethod
    def _quiet_tunnels() -> None:
        """In the lab's VM: no gre0, sit0 and the like appear by themselves in each host.

        The setting is the whole kernel's, so it is left alone on a machine that is not ours.
        """
        if os.environ.get("DVN_LAB_KERNEL") == "vm":
            with suppress(OSError):
                Path("/proc/sys/net/core/fb_tunnels_only_for_init_net").write_text("1")

    def _say(self, message: Mapping[str, Any]) -> None:
        self._control.send(json.dumps(message).encode())

    def _answer(self, request: Mapping[str, Any]) -> None:
        try:
            self._say({"ok": True, **self._act(request)})
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            if isinstance(error, ConnectionError):
                raise
            self._say({"ok": False, "error": str(error)})

    def _act(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name = str(request["name"])
        match request["op"]:
            case "make":
                return {"pid": self._make(name, request)}
            case "halt":
                halt(self._hosts[name], self._own_pidns, float(request["patience_s"]))
            case "kill":  # at once; the lab reaps what it started in there, then sends "bury"
                os.kill(self._hosts[name], signal.SIGKILL)
            case "bury":
                self._bury(name)
            case unknown:
                raise ValueError(f"the lab's keeper knows no operation {unknown!r}")
        return {}

    # control groups

    def _make_cgroup(self) -> None:
        """Our own cgroup2 mount (private to us) with a group for this lab, where there is one."""
        try:
            linux.mount("cgroup2", SCRATCH, "cgroup2", linux.MS_NOSUID | linux.MS_NODEV)
        except OSError:
            return  # no cgroup v2 at all: hosts without limits still work
        root = Path(SCRATCH)
        sweep(root)
        wanted = [c for c in (root / "cgroup.controllers").read_text().split() if c in CONTROLLERS]
        group = root / f"dvn-lab-{self._name}"
        self._home = root / own_cgroup().lstrip("/")
        keeper = group / "keeper"
        keeper.mkdir(parents=True)
        # We live in it, so that a lab that starts later can tell a group in use from a left one.
        (keeper / "cgroup.procs").write_text("0")
        self._controllers = frozenset(enable(root, wanted)) & frozenset(enable(group, wanted))
        self._cgroup = group

    def _limit(self, name: str, request: Mapping[str, Any]) -> Path | None:
        """The host's group with its limits; OSError if a limit is asked for that we cannot set."""
        limits = {}
        if (cores := request["cores"]) is not None:
            limits["cpu.max"] = f"{max(1000, round(cores * CPU_PERIOD_US))} {CPU_PERIOD_US}"
        if (memory := request["memory_mb"]) is not None:
            limits["memory.max"] = str(memory << 20)
        missing = {knob.partition(".")[0] for knob in limits} - self._controllers
        if missing:
            raise OSError(
                f"the cgroup v2 controllers {', '.join(sorted(missing))} are not available here: "
                "run the lab in its VM (python -m lab.kernel --vm), or give no cores and memory_mb"
            )
        if self._cgroup is None:
            return None
        group = self._cgroup / name
        group.mkdir()
        for knob, value in limits.items():
            (group / knob).write_text(value)
        return group

    # hosts

    def _make(self, name: str, request: Mapping[str, Any]) -> int:
        if name in self._hosts:
            raise OSError(f"there is a host {name} already")
        group = self._limit(name, request)
        reader, writer = os.pipe()
        linux.unshare(linux.CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            self._control.close()
            become_host(name, request, group, self._upper(name), writer)
        linux.setns(self._own_pidns, linux.CLONE_NEWPID)
        os.close(writer)
        self._hosts[name] = pid
        with os.fdopen(reader, "rb") as answer:
            problem = answer.read().decode()
        if problem != "ready":
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._bury(name)
            raise OSError(f"host {name} could not be made: {problem or 'its pid 1 died'}")
        return pid

    def _upper(self, name: str) -> Path | None:
        if self._state is None:
            return None
        upper = self._state / name
        upper.mkdir(parents=True)
        return upper

    def _bury(self, name: str) -> None:
        if (pid := self._hosts.pop(name, None)) is not None:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        if self._cgroup is not None:
            remove_group(self._cgroup / name)
        if self._state is not None:
            shutil.rmtree(self._state / name, ignore_errors=True)

    def _remove_all(self) -> None:
        # The last made first: servers are usually made before their clients.
        for pid in reversed(tuple(self._hosts.values())):
            halt(pid, self._own_pidns, 1.0)
        for pid in self._hosts.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name in tuple(self._hosts):
            self._bury(name)
        if self._cgroup is not None and self._home is not None:
            (self._home / "cgroup.procs").write_text("0")
            remove_group(self._cgroup)
        if self._state is not None:
            with suppress(OSError):  # others' files may be in it
                self._state.rmdir()


def main(arguments: Sequence[str]) -> None:
    """`keeper FD NAME [STATE]`: serve the lab at the socket FD."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=int(arguments[0]))
    state = Path(arguments[2]) if len(arguments) > 2 else None
    Keeper(control, arguments[1], state).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
