"""One command on a full kernel: in place, or in a VM."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal

from lab.kernel import enclosure
from lab.kernel.enclosure import CGROUP_PREFIX
from lab.kernel.errors import KernelError
from lab.kernel.features import missing_features
from lab.kernel.session import GRACE, TIMED_OUT
from lab.kernel.vm import MARK, Vm, guest_python

CGROUP = Path("/sys/fs/cgroup")


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    outputs: Sequence[Path] = (),
    timeout: float | None = None,
    tty: bool | None = None,
    cpus: int = 4,
    memory_mb: int = 6144,
    where: Literal["auto", "here", "vm"] = "auto",
) -> int:
    """Runs `argv` in place if this kernel misses nothing, else in a VM; returns its exit status.

    `timeout` in seconds (status 124); `outputs` are copied back from the VM (in place they are
    where they belong). Raises KernelError when there is no kernel to run it on.
    """
    if where == "vm":
        missing: tuple[str, ...] = ("asked for",)
    elif os.environ.get(MARK):  # we are inside already: whoever started us has looked
        missing = ()
    else:
        missing = missing_features()
    if where == "here" and missing:
        raise KernelError(
            f"this kernel (or user) cannot do {', '.join(missing)}: leave out --here to get a VM"
        )
    if not missing:
        return run_here(argv, env=env, cwd=cwd, timeout=timeout)
    with Vm(cpus=cpus, memory_mb=memory_mb) as vm:
        return vm.run(argv, env=env, cwd=cwd, outputs=outputs, timeout=timeout, tty=tty)


def run_here(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    timeout: float | None = None,
) -> int:
    """Runs `argv` in fresh net, mount, pid, uts, ipc and cgroup namespaces; as root, without
    asking for features.
    """
    environment = dict(os.environ if env is None else env) | {MARK: "here"}
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    program = str(Path(enclosure.__file__).resolve())
    with _cgroup() as join:
        process = subprocess.Popen(
            [*join, guest_python(), "-I", "-S", program, str(os.getpid()), *map(str, argv)],
            env=environment,
            cwd=cwd,
        )
        with _forwarding(process):
            try:
                return _shell_status(process.wait(timeout))
            except subprocess.TimeoutExpired:
                process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return TIMED_OUT


def _shell_status(code: int) -> int:
    return code if code >= 0 else 128 - code


@contextmanager
def _forwarding(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Signals sent to us by kill(2) go to the command; a terminal's Ctrl-C has reached it without
    us.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and not _from_terminal():
            number = signal.SIGUSR1  # see enclosure: SIGINT itself would come twice at a terminal
        if number != signal.SIGINT and process.poll() is None:
            process.send_signal(number)

    kept = {
        number: signal.signal(number, forward)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _from_terminal() -> bool:
    """Whether we are a terminal's foreground group, whose keys signal the command directly."""
    try:
        with open("/dev/tty") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


@contextmanager
def _cgroup() -> Iterator[list[str]]:
    """A cgroup for the command, removed afterwards; yields the words that put a process into it.

    Those of runs that were killed with -9 are empty and are removed by the next run.
    """
    if not (CGROUP / "cgroup.procs").exists():
        yield []
        return
    for stale in CGROUP.glob(f"{CGROUP_PREFIX}*"):
        if not Path(f"/proc/{stale.name.removeprefix(CGROUP_PREFIX)}").exists():
            _remove_cgroup(stale)
    group = CGROUP / f"{CGROUP_PREFIX}{os.getpid()}"
    group.mkdir(exist_ok=True)
    try:
        yield [
            shutil.which("sh") or "/bin/sh",
            "-c",
            f'echo 0 > {group}/cgroup.procs; exec "$@"',
            "sh",
        ]
    finally:
        _remove_cgroup(group)


def _remove_cgroup(group: Path) -> None:
    for directory, _, _ in os.walk(group, topdown=False):
        try:
            Path(directory).rmdir()
        except OSError:  # somebody's process is still leaving it; the next run removes it
            return
