"""Hosts of the lab with the files of another Debian: batch systems this one has no package for.

A tree is made once by debootstrap(8) through the machine's own mirror (about a minute and 650 MB)
and kept beside the lab's kernel, outside the repository. A `TreeHost` is a lab host with a private
overlay of that tree; its commands run in it by chroot(8).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import linux
from lab.host import Host, LabError
from lab.hosts import Lab
from lab.kernel.image import cache_dir

# What a tree needs to be the whole root of a host (lab.host.HostSpec.root): what a cloud image has,
# and the programs of the farm's file server.
WHOLE = ("iproute2", "procps", "curl", "python3", "kmod", "nfs-kernel-server")
ROOT = "/run/tree"  # where the tree is on its host
_BUILD_LIMIT_S = 1200
_PRIVATE = ("/etc", "/run:empty", "/tmp:empty")  # the rest of the machine is not used
_NO_START = "#!/bin/sh\nexit 101\n"  # policy-rc.d: installing a package starts no daemon


@dataclass(frozen=True)
class Tree:
    """A Debian suite with packages. seeds: debconf answers, as debconf-set-selections(1) reads."""

    suite: str
    packages: tuple[str, ...]
    seeds: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()  # packages whose own set-up cannot work here, and need not

    @property
    def path(self) -> Path:
        """One place for each set of packages: two farms of one suite do not undo each other."""
        asked = "\n".join((*sorted(self.packages), *self.seeds))
        digest = hashlib.sha256(asked.encode()).hexdigest()[:12]
        return cache_dir() / "farm" / f"{self.suite}-{digest}"

    @property
    def ready(self) -> bool:
        return self.path.is_dir()  # put there whole, by one rename

    def build(self, say: Callable[[str], None] = lambda _: None) -> Path:
        """Make it unless it is there; LabError says which step failed. Safe side by side."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.ready:
                self._build(say)
        return self.path

    def _build(self, say: Callable[[str], None]) -> None:
        if shutil.which("debootstrap") is None:
            raise LabError("debootstrap is not installed: apt-get install debootstrap")
        say(f"making a tree of Debian {self.suite} with {', '.join(self.packages)}")
        new = Path(tempfile.mkdtemp(prefix=f".{self.suite}-", dir=self.path.parent))
        try:
            new.chmod(0o755)
            _step("debootstrap", "--variant=minbase", self.suite, str(new))
            policy = new / "usr/sbin/policy-rc.d"
            policy.write_text(_NO_START)
            policy.chmod(0o755)
            if self.seeds:
                text = "\n".join(self.seeds) + "\n"
                _step("chroot", str(new), "debconf-set-selections", given=text)
            install = ("apt-get", "install", "-y", "--no-install-recommends")
            done = _step("chroot", str(new), *install, *self.packages, may_fail=bool(self.broken))
            for name in self.packages:
                listed = _step("chroot", str(new), "dpkg", "-L", name, may_fail=True)
                if not listed.strip():
                    raise LabError(f"package {name} is not in the tree: {done[-400:]}")
            new.rename(self.path)
        finally:
            if new.exists():
                shutil.rmtree(new)


def _step(*argv: str, given: str = "", may_fail: bool = False) -> str:
    try:
        done = subprocess.run(
            argv,
            input=given,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_BUILD_LIMIT_S,
            # What debootstrap mounts goes when it ends.
            preexec_fn=linux.own_root,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
            check=False,
        )
    except subprocess.SubprocessError as error:
        raise LabError(f"{' '.join(argv[:4])}: {error}") from error
    if done.returncode != 0 and not may_fail:
        said = "\n".join(filter(None, (done.stdout.strip(), done.stderr.strip())))
        raise LabError(f"{' '.join(argv[:4])}: status {done.returncode}: {said[-800:]}")
    return done.stdout


class TreeHost:
    """A lab host whose programs and files are those of a tree; the surface of `lab.host.Host`."""

    def __init__(self, host: Host, tree: Tree) -> None:
        self.host = host
        self.name = host.name
        lower = str(tree.path)

        def furnish() -> None:
            for part in ("tree", "tree.upper", "tree.work"):
                Path("/run", part).mkdir()
            linux.mount(
                "overlay",
                ROOT,
                "overlay",
                0,
                f"lowerdir={lower},upperdir=/run/tree.upper,workdir=/run/tree.work",
            )
            for part in ("proc", "sys", "dev"):
                linux.mount(f"/{part}", f"{ROOT}/{part}", "", linux.MS_BIND | linux.MS_REC)
            linux.mount("tree-shm", f"{ROOT}/dev/shm", "tmpfs", 0, "mode=1777")
            linux.mount("tree-run", f"{ROOT}/run", "tmpfs", 0, "mode=755")
            Path(ROOT, "run/lock").mkdir(mode=0o1777)

        try:
            host.inside(furnish)
        except OSError as error:
            raise LabError(f"{host.name}: cannot lay the tree {lower}: {error}") from error

    def run(
        self,
        *argv: str,
        check: bool = True,
        timeout: float = 60,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002 - as in subprocess.run
        cwd: str = "/",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the tree and wait for it; as `lab.host.Host.run`."""
        become: Sequence[str] = ()
        home = "/root"
        if user not in (None, "root"):
            uid, gid, home = self._account(str(user))
            become = ("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups")
        variables = {"HOME": home, "USER": user or "root", "LOGNAME": user or "root", **(env or {})}
        words = [f"{name}={value}" for name, value in variables.items()]
        return self.host.run(
            "chroot", ROOT, "env", "-C", cwd, *words, *become, *argv,
            check=check, timeout=timeout, input=input, cwd="/",
        )  # fmt: skip

    def script(
        self,
        text: str,
        *arguments: str,
        check: bool = True,
        timeout: float = 60,
        user: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Several commands with one entry: `sh -eu`, with arguments as $1 and on."""
        return self.run(
            "/bin/sh", "-euc", text, "sh", *arguments, check=check, timeout=timeout, user=user
        )

    def write(self, path: str, text: str | bytes, mode: int = 0o644) -> None:
        self.host.write(f"{ROOT}{path}", text, mode)

    def read(self, path: str) -> str:
        return self.host.read(f"{ROOT}{path}")

    def kill(self) -> None:
        self.host.kill()

    @property
    def alive(self) -> bool:
        return self.host.alive

    def _account(self, user: str) -> tuple[int, int, str]:
        for line in self.read("/etc/passwd").splitlines():
            fields = line.split(":")
            if fields[0] == user:
                return int(fields[2]), int(fields[3]), fields[5]
        raise LabError(f"{self.name}: there is no user {user} in the tree")


def tree_host(
    lab: Lab, name: str, tree: Tree, *, cores: float | None = None, memory_mb: int | None = None
) -> TreeHost:
    """A new host of the lab with the tree's files; `tree.build()` must have been called."""
    host = lab.host(name, cores=cores, memory_mb=memory_mb, private=_PRIVATE)
    return TreeHost(host, tree)
