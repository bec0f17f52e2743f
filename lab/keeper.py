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
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from lab import linux, netfs, rtnl

MESSAGE_LIMIT = 1 << 18  # bytes in one request or answer
INIT_LEAF = "init.scope"  # where pid 1 and everything we start lives: a leaf, as cgroup v2 wants
CONTROLLERS = ("cpu", "memory", "pids", "cpuset", "io")
CPU_PERIOD_US = 50_000
SCRATCH = "/mnt"  # covered by the host's own memory file system while its overlays are laid


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
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
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
            case "kill":  # at once; the lab reaps what it started in there, then sends "bury"
                netfs.abandon(self._hosts[name])
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
        _sweep(root)
        wanted = [c for c in (root / "cgroup.controllers").read_text().split() if c in CONTROLLERS]
        group = root / f"dvn-lab-{self._name}"
        self._home = root / _own_cgroup().lstrip("/")
        keeper = group / "keeper"
        keeper.mkdir(parents=True)
        # We live in it, so that a lab that starts later can tell a group in use from a left one.
        (keeper / "cgroup.procs").write_text("0")
        self._controllers = frozenset(_enable(root, wanted)) & frozenset(_enable(group, wanted))
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
            _become_host(name, request, group, self._upper(name), writer)
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
            _remove_group(self._cgroup / name)
        if self._state is not None:
            shutil.rmtree(self._state / name, ignore_errors=True)

    def _remove_all(self) -> None:
        for pid in self._hosts.values():
            netfs.abandon(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name in tuple(self._hosts):
            self._bury(name)
        if self._cgroup is not None and self._home is not None:
            (self._home / "cgroup.procs").write_text("0")
            _remove_group(self._cgroup)
        if self._state is not None:
            with suppress(OSError):  # others' files may be in it
                self._state.rmdir()


def _own_cgroup() -> str:
    """Our path in the cgroup v2 hierarchy (cgroups(7), /proc/PID/cgroup)."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::")
    return "/"


def _enable(group: Path, controllers: Sequence[str]) -> list[str]:
    """Give the group's children these controllers; returns those that it could."""
    done = []
    for controller in controllers:
        with suppress(OSError):
            (group / "cgroup.subtree_control").write_text(f"+{controller}")
            done.append(controller)
    return done


def _sweep(root: Path) -> None:
    """Remove groups of labs that were killed together with their keeper: they have no process."""
    for group in root.glob("dvn-lab-*"):
        with suppress(OSError):
            if "populated 0" in (group / "cgroup.events").read_text():
                _remove_group(group, limit_s=1.0)


def _remove_group(group: Path, limit_s: float = 20.0) -> None:
    """Remove a control group and those below it, waiting until their last process is reaped."""
    if not group.is_dir():
        return
    with suppress(OSError):
        (group / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + limit_s
    below = sorted((d for d in group.rglob("*/")), key=lambda d: -len(d.parts))
    for directory in (*below, group):
        while True:
            try:
                directory.rmdir()
            except FileNotFoundError:
                break
            except OSError:  # EBUSY: a dying process is still in it
                if time.monotonic() > deadline:
                    return
                time.sleep(0.01)
            else:
                break


def _become_host(
    name: str, request: Mapping[str, Any], group: Path | None, upper: Path | None, ready: int
) -> NoReturn:
    """In the fork: enter the host's namespaces, furnish them, then be pid 1 until killed."""
    try:
        linux.die_with_parent(signal.SIGKILL)
        os.setsid()
        if group is not None:
            (group / "cgroup.procs").write_text("0")
        linux.unshare(
            linux.CLONE_NEWNET
            | linux.CLONE_NEWNS
            | linux.CLONE_NEWUTS
            | linux.CLONE_NEWIPC
            | linux.CLONE_NEWCGROUP
        )
        socket.sethostname(name)
        _furnish(request, group is not None, upper)
        Path("/etc/hostname").write_text(f"{name}\n")
        Path("/etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost ip6-localhost\n")
        _configure_network(request["sysctls"])
        os.write(ready, b"ready")
        os.close(ready)
        _reap_for_ever()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        os.write(ready, str(error).encode())
    finally:
        os._exit(1)


def _furnish(request: Mapping[str, Any], has_cgroup: bool, upper: Path | None) -> None:
    """The host's file systems. The root is read-only; what is in `private` is the host's own."""
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    with suppress(OSError):
        linux.detach(SCRATCH)  # the keeper's cgroup2 mount
    keep = {path: os.open(path, os.O_PATH) for path in request["keep"] if Path(path).exists()}
    scratch = upper
    if scratch is None:
        linux.mount("tmpfs", SCRATCH, "tmpfs", 0, "mode=700")
        scratch = Path(SCRATCH)
    private = {p: kind for p, kind in request["private"].items() if Path(p).is_dir()}
    # Overlays first: an empty directory (/tmp) may cover where their upper layers are reached.
    for path, kind in private.items():
        if kind == "overlay":
            _overlay(path, scratch)
    for path, kind in private.items():
        if kind == "empty":
            mode = "1777" if path in ("/tmp", "/dev/shm") else "755"
            linux.mount("tmpfs", path, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, f"mode={mode}")
    if upper is None:
        linux.detach(SCRATCH)  # the overlays keep it; the host's files are out of others' sight
    linux.mount("none", "/", "", linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY)
    for path, fd in keep.items():
        _restore(path, fd)
    _mount_kernel_views(has_cgroup)
    if private.get("/run") == "empty":
        Path("/run/lock").mkdir(exist_ok=True)
        Path("/run/lock").chmod(0o1777)


def _overlay(path: str, scratch: Path) -> None:
    """A writable layer over path; where the kernel refuses (two layers already), a copy."""
    layer = scratch / path.strip("/").replace("/", "-")
    for part in ("upper", "work"):
        (layer / part).mkdir(parents=True)
    shutil.copystat(path, layer / "upper")
    options = f"lowerdir={path},upperdir={layer / 'upper'},workdir={layer / 'work'}"
    try:
        linux.mount("overlay", path, "overlay", 0, options)
    except OSError:
        copy = layer / "copy"
        subprocess.run(["cp", "-a", "--", path, str(copy)], check=True, timeout=120)
        linux.mount(str(copy), path, "", linux.MS_BIND)


def _restore(path: str, fd: int) -> None:
    """Show a directory again, read-only, that a private directory has covered."""
    with suppress(OSError):
        if os.path.samestat(Path(path).stat(), os.fstat(fd)):
            os.close(fd)
            return
    Path(path).mkdir(parents=True, exist_ok=True)
    linux.mount(f"/proc/self/fd/{fd}", path, "", linux.MS_BIND | linux.MS_REC)
    linux.mount("none", path, "", linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY)
    os.close(fd)


def _mount_kernel_views(has_cgroup: bool) -> None:
    """/proc of the pid namespace, /sys of the network namespace, cgroup2 of the cgroup one."""
    safe = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.detach("/proc")
    linux.mount("proc", "/proc", "proc", safe)
    with suppress(OSError):
        linux.detach("/sys")
    linux.mount("sysfs", "/sys", "sysfs", safe)
    if not has_cgroup:
        return
    root = Path("/sys/fs/cgroup")
    linux.mount("cgroup2", root, "cgroup2", safe)
    leaf = root / INIT_LEAF
    leaf.mkdir()
    (leaf / "cgroup.procs").write_text("0")
    _enable(root, (root / "cgroup.controllers").read_text().split())
    (root / "system.slice").mkdir()  # services (slurmd) expect it and make theirs below


def _configure_network(sysctls: Mapping[str, str]) -> None:
    for key, value in sysctls.items():
        file = Path("/proc/sys") / key.replace(".", "/")
        try:
            file.write_text(value)
        except FileNotFoundError as error:
            if not key.startswith("net.ipv6."):  # a kernel without IPv6 is no reason to fail
                raise OSError(f"sysctl {key} does not exist in this kernel") from error
    rtnl.set_up("lo")


def _reap_for_ever() -> NoReturn:
    """What is left of init: collect orphans. Signals from inside cannot end pid 1; SIGKILL from
    outside does, and the kernel then kills the whole host."""
    null = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    with _blocked(signal.SIGCHLD):
        while True:
            try:
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    pass
            except ChildProcessError:
                pass
            signal.sigwait({signal.SIGCHLD})


@contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})


def main(arguments: Sequence[str]) -> None:
    """`keeper FD NAME [STATE]`: serve the lab at the socket FD."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=int(arguments[0]))
    state = Path(arguments[2]) if len(arguments) > 2 else None
    Keeper(control, arguments[1], state).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
