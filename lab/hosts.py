"""Hosts of the lab: each a set of namespaces with its own files, processes, network and limits.

    with Lab() as lab:
        head, node = lab.host("head"), lab.host("node", cores=1, memory_mb=512)
        lab.link(head, "eth0", node, "eth0")
        head.run("ip", "address", "add", "10.0.0.1/24", "dev", "eth0")

A host is a network, mount, uts, pid, ipc and cgroup namespace (namespaces(7)) under a pid 1 that
reaps. Nothing outlives the lab: not at its exit, not when its process is killed with SIGKILL
(lab.keeper). Needs root; the network of the machine itself is never touched.
"""

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab import linux, rtnl
from lab.host import PRIVATE, Host, HostSpec
from lab.keeper import MESSAGE_LIMIT
from lab.process import (
    CommandError,
    CommandTimeoutError,
    HostDownError,
    LabError,
    stop,
    wait_for,
)

__all__ = [
    "PRIVATE",
    "CommandError",
    "CommandTimeoutError",
    "Host",
    "HostDownError",
    "HostSpec",
    "Lab",
    "LabError",
    "stop",
    "wait_for",
]

QUIET_IPV6 = {
    # No advertised routes, no second of waiting for duplicate address detection, and no
    # link-local address nobody asked for: captures show only what the lab's hosts send.
    "net.ipv6.conf.default.accept_ra": "0",
    "net.ipv6.conf.all.accept_dad": "0",
    "net.ipv6.conf.default.accept_dad": "0",
    "net.ipv6.conf.default.addr_gen_mode": "1",
}
# As where nobody has loaded br_netfilter, which turns these on in every namespace there is.
PLAIN_BRIDGES = {
    f"net.bridge.bridge-nf-call-{name}": "0" for name in ("iptables", "ip6tables", "arptables")
}
_ANSWER_LIMIT_S = 300.0  # a host that is removed may wait for the kernel; no longer than this
_lab_numbers = itertools.count(1)


class Lab:
    """A set of hosts. A context manager: what it made is gone at its end, and after SIGKILL.

    state: a directory for the hosts' files (else they live in memory). core_share: what part of a
    real core one lab core is; it scales all hosts alike, so that many cores fit a small machine.
    """

    def __init__(self, *, state: Path | None = None, core_share: float = 1.0) -> None:
        if os.geteuid() != 0:
            raise LabError("the lab makes namespaces and needs root: use sudo")
        if core_share <= 0:
            raise LabError(f"core_share must be above 0, not {core_share}")
        self.hosts: dict[str, Host] = {}
        self.core_share = core_share
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(_ANSWER_LIMIT_S)
        name = f"{os.getpid()}-{next(_lab_numbers)}"
        code = (
            f"import sys; sys.path.insert(0, {str(_checkout())!r}); "
            "from lab.keeper import main; main(sys.argv[1:])"
        )
        argv = [sys.executable, "-I", "-S", "-B", "-c", code, str(theirs.fileno()), name]
        if state is not None:
            state.mkdir(parents=True, exist_ok=True)
            argv.append(str(state))
        self._keeper = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is for the lab: the keeper cleans up after it
            cwd="/",
        )
        theirs.close()
        try:
            hello = self._hear()
            self.controllers = frozenset(hello["controllers"])
            self.has_cgroup = bool(hello["cgroup"])
        except LabError:
            self.close()
            raise

    @property
    def keeper_pid(self) -> int:
        """The process that holds the hosts."""
        return self._keeper.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Power off and remove every host; wait until it is done. Calling it again does nothing."""
        for host in reversed(tuple(self.hosts.values())):
            with suppress(LabError):
                self.remove(host)
        self._control.close()
        try:
            self._keeper.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()

    def host(
        self,
        name: str,
        *,
        cores: float | None = None,
        memory_mb: int | None = None,
        private: Sequence[str] = PRIVATE,
        sysctls: Mapping[str, str] | None = None,
        root: Path | None = None,
    ) -> Host:
        """Make a host and start its pid 1. LabError if the kernel or the machine cannot."""
        return self.add(HostSpec(name, cores, memory_mb, tuple(private), sysctls or {}, root))

    def add(self, spec: HostSpec) -> Host:
        """Make the host that spec describes (see host())."""
        kinds = {}
        for entry in spec.private:
            path, _, kind = entry.partition(":")
            if kind not in ("", "empty") or not path.startswith("/"):
                raise LabError(f"host {spec.name}: private {entry!r}: write DIR or DIR:empty")
            kinds[path] = kind or "overlay"
        cores = None if spec.cores is None else spec.cores * self.core_share
        answer = self._ask(
            op="make",
            name=spec.name,
            cores=cores,
            memory_mb=spec.memory_mb,
            private=kinds,
            sysctls={**QUIET_IPV6, **PLAIN_BRIDGES, **spec.sysctls},
            keep=[] if spec.root else [*_kept_paths(), *map(str, spec.shown)],
            root=str(spec.root) if spec.root else None,
        )
        host = Host(spec, int(answer["pid"]), self)
        self.hosts[spec.name] = host
        return host

    def link(self, a: Host, ifa: str, b: Host, ifb: str, *, mtu: int = 1500) -> None:
        """Join two hosts with a cable (veth(4)) and set both ends up."""
        for name in (ifa, ifb):
            rtnl.check_name(name)
        try:
            with rtnl.Netlink() as netlink:
                netlink.add_veth(ifa, a.pid, ifb, b.pid, mtu)
        except OSError as error:
            where = f"{a.name}:{ifa} - {b.name}:{ifb}"
            raise LabError(f"link {where}: {error.strerror or error}") from error
        for host, name in ((a, ifa), (b, ifb)):
            host.inside(partial(rtnl.set_up, name), namespaces=linux.CLONE_NEWNET)

    def remove(self, host: Host) -> None:
        """Power the host off and forget it; its links, files and control group are gone after.

        While its links are still there it lets go of network file systems; a host that should
        vanish without a word gets Host.kill() first.
        """
        if host.alive:
            self.halt(host.name, 3.0)
        host.kill()
        self._ask(op="bury", name=host.name)
        self.hosts.pop(host.name, None)

    def halt(self, name: str, patience_s: float) -> None:
        """Kill a host's processes and unmount its network file systems (lab.halt)."""
        self._ask(op="halt", name=name, patience_s=patience_s)

    def kill(self, name: str) -> None:
        """SIGKILL a host's pid 1; Host.kill() is what callers want."""
        self._ask(op="kill", name=name)

    def _ask(self, **request: Any) -> dict[str, Any]:
        with self._lock:
            try:
                self._control.send(json.dumps(request).encode())
            except OSError as error:
                raise LabError(
                    f"the lab is closed, or its keeper died ({error.strerror})"
                ) from error
            return self._hear()

    def _hear(self) -> dict[str, Any]:
        try:
            message = self._control.recv(MESSAGE_LIMIT)
        except TimeoutError as error:
            self._control.close()  # its answer, should it come, would be taken for another's
            raise LabError(
                f"the lab's keeper has not answered for {_ANSWER_LIMIT_S:g} s"
            ) from error
        if not message:
            raise LabError("the lab's keeper died; its standard error above says why")
        answer: dict[str, Any] = json.loads(message)
        if not answer["ok"]:
            raise LabError(str(answer["error"]))
        return answer


def _checkout() -> Path:
    return Path(__file__).resolve().parent.parent


def _kept_paths() -> list[str]:
    """Our code and interpreter: hosts see them (read-only) even under a directory of their own."""
    return sorted({str(_checkout()), sys.prefix, sys.base_prefix, sys.exec_prefix})
