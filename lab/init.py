"""The first process of a lab host: enters its namespaces, furnishes them, then reaps until killed.

Runs in a fork of the keeper (lab.keeper): small, of one thread, nothing is executed.
"""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from lab import linux, rtnl
from lab.cgroups import enable

INIT_LEAF = "init.scope"  # where pid 1 and all we start lives: a leaf, as cgroup v2 wants
SCRATCH = "/mnt"  # covered by the host's own memory file system while its overlays are laid


def become_host(
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
    if request["root"]:
        _other_root(request["root"], request["private"], upper)
        _mount_kernel_views(has_cgroup)
        return
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
            _empty(path)
    if upper is None:
        linux.detach(SCRATCH)  # the overlays keep it; the host's files are out of others' sight
    linux.mount("none", "/", "", linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY)
    for path, fd in keep.items():
        _restore(path, fd)
    _mount_kernel_views(has_cgroup)
    if private.get("/run") == "empty":
        Path("/run/lock").mkdir(exist_ok=True)
        Path("/run/lock").chmod(0o1777)


def _other_root(root: str, private: Mapping[str, str], upper: Path | None) -> None:
    """A writable layer over another system's files, in the place of the machine's."""
    scratch = upper
    if scratch is None:
        with suppress(OSError):
            linux.detach(SCRATCH)  # the keeper's cgroup2 mount
        linux.mount("tmpfs", SCRATCH, "tmpfs", 0, "mode=755")
        scratch = Path(SCRATCH)
    for part in ("upper", "work", "root"):
        (scratch / part).mkdir()
    options = f"lowerdir={root},upperdir={scratch / 'upper'},workdir={scratch / 'work'}"
    linux.mount("overlay", scratch / "root", "overlay", 0, options)
    linux.mount("/dev", scratch / "root/dev", "", linux.MS_BIND | linux.MS_REC)
    linux.mount("/proc", scratch / "root/proc", "", linux.MS_BIND)  # until its own is there
    # As switch_root(8) does; setns(2) enters a namespace at what is mounted on its root last.
    os.chdir(scratch / "root")
    linux.mount(".", "/", "", linux.MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    for path in (path for path, kind in private.items() if kind == "empty"):
        Path(path).mkdir(parents=True, exist_ok=True)
        _empty(path)
    Path("/run/lock").mkdir(mode=0o1777, parents=True, exist_ok=True)
    # Where the tree was made there was a name server; here each look-up would wait for it in vain.
    resolver = Path("/etc/resolv.conf")
    resolver.unlink(missing_ok=True)
    resolver.touch()


def _empty(path: str) -> None:
    mode = "1777" if path in ("/tmp", "/dev/shm") else "755"
    linux.mount("tmpfs", path, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, f"mode={mode}")


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
    enable(root, (root / "cgroup.controllers").read_text().split())
    (root / "system.slice").mkdir()  # services (slurmd) expect it and make theirs below


def _configure_network(sysctls: Mapping[str, str]) -> None:
    for key, value in sysctls.items():
        file = Path("/proc/sys") / key.replace(".", "/")
        try:
            file.write_text(value)
        except FileNotFoundError as error:
            # A kernel without IPv6 is no reason to fail, nor one without br_netfilter.
            if not key.startswith(("net.ipv6.", "net.bridge.")):
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
