"""A full kernel as an ordinary process: user-mode Linux, for one long command.

Its programs run on the real processor, only their system calls and faults go through the kernel
that is a process. So what computes for itself is as fast as outside (QEMU that emulates a guest
inside, above all: in the emulated VM that is two emulations, and no use), and what calls the
kernel all the time is not: a fork takes 25 ms. There is one CPU.

Each page that a program inside touches is a mapping of a process outside, and those are limited
(vm.max_map_count, 65530 unless raised: 256 MiB); a program that needs more is killed.

Debian's own package has no nf_tables for IPv4 and no connection tracking zones, so it is built
from Debian's source, which takes some minutes once (lab/kernel/uml.config says with what).
Sources: Documentation/virt/uml/user_mode_linux_howto_v2.rst of the kernel.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lab.kernel.errors import KernelError
from lab.kernel.image import SYSTEM_PATH, cache_dir
from lab.kernel.session import TIMED_OUT
from lab.kernel.vm import MARK

SOURCE = "linux-source-6.1"  # Debian's package
NEEDED = ("gcc", "make", "flex", "bison", "bc", "xz", "dpkg-deb", "apt-get")
_STEP_LIMIT_S = 3600.0
_BOOT_S = 60.0  # that the command's own limit is not about
_ENDED = "dvn-uml: the command ended with "
_WATCHED_S = 0.3
_MAPPINGS = 500_000  # 2 GiB in one program

# The machine's files, read-only; what is written to these goes to memory.
_INIT = """\
#!/bin/bash
export PATH={path} HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2> /dev/null
mkdir -p /dev/pts /dev/shm
ln -s /proc/self/fd /dev/fd; ln -s fd/0 /dev/stdin; ln -s fd/1 /dev/stdout; ln -s fd/2 /dev/stderr
mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm; mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for each in etc var root tmp home; do
  mkdir -p /run/written/$each /run/work/$each
  mount -t overlay -o lowerdir=/$each,upperdir=/run/written/$each,workdir=/run/work/$each o /$each
done
ip link set lo up
cd {cwd} && setsid -w env -i {env} {command} < /dev/null
echo "{ended}$?"
echo o > /proc/sysrq-trigger; sleep 60
"""


def kernel() -> Path:
    """The kernel, built when it is not in the cache yet. KernelError says what is missing, or
    which step failed."""
    config = Path(__file__).with_name("uml.config").read_text()
    told = hashlib.sha256(f"{SOURCE}\0{config}".encode()).hexdigest()[:12]
    image = cache_dir() / "uml" / f"linux-{told}"
    image.parent.mkdir(parents=True, exist_ok=True)
    with image.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.exists():
            _build(image, config)
    return image


def _build(image: Path, config: str) -> None:
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    if lacking:
        raise KernelError(f"to build a kernel, install what has {', '.join(lacking)}")
    sys.stderr.write(f"lab.kernel: building {SOURCE} for user mode, once: some minutes\n")
    with tempfile.TemporaryDirectory(prefix="build-", dir=image.parent) as name:
        place = Path(name)
        place.chmod(0o755)
        _step(place, "apt-get", "download", SOURCE)
        (package,) = place.glob("*.deb")
        _step(place, "dpkg-deb", "-x", package.name, "package")
        _step(place, "tar", "-xJf", f"package/usr/src/{SOURCE}.tar.xz")
        source = place / SOURCE
        make = ("make", "ARCH=um", f"-j{len(os.sched_getaffinity(0))}")
        _step(source, *make, "defconfig")
        with (source / ".config").open("a") as file:
            file.write(config)
        _step(source, *make, "olddefconfig")
        _step(source, *make, "linux")
        (source / "linux").rename(image)


def _step(where: Path, *argv: str) -> None:
    try:
        done = subprocess.run(
            argv, cwd=where, capture_output=True, text=True, timeout=_STEP_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"{shlex.join(argv)}: not done in {_STEP_LIMIT_S:.0f} s") from error
    if done.returncode != 0:
        raise KernelError(f"{shlex.join(argv)}: {(done.stderr or done.stdout).strip()[-600:]}")


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    timeout: float | None = None,
    memory_mb: int = 4096,
) -> int:
    """Runs `argv` with this machine's files; what it writes is gone with it. Its exit status, 124
    after `timeout` seconds. stdout and stderr are one."""
    if os.geteuid() != 0:
        raise KernelError("user-mode Linux reads this machine's files as its root: run it as root")
    image = kernel()
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    if limit < _MAPPINGS:
        sys.stderr.write(
            f"lab.kernel: programs inside that touch more than {limit * 4 // 1024} MiB are killed: "
            f"sysctl vm.max_map_count={_MAPPINGS} would let them\n"
        )
    given = {**(os.environ if env is None else env), MARK: "uml"}
    with tempfile.TemporaryDirectory(prefix="dvn-uml-") as name:
        init = Path(name) / "init"
        init.write_text(
            _INIT.format(
                path=SYSTEM_PATH,
                cwd=shlex.quote(str(cwd or Path.cwd())),
                env=" ".join(shlex.quote(f"{key}={value}") for key, value in given.items()),
                command=shlex.join(argv),
                ended=_ENDED,
            )
        )
        init.chmod(0o755)
        words = (
            "rootfstype=hostfs", "rootflags=/", "ro", "quiet", f"mem={memory_mb}M",
            f"init={init}", "con0=null,fd:1", "con=null",
        )  # fmt: skip
        return _booted([str(image), *words], name, timeout)


def _booted(command: list[str], home: str, timeout: float | None) -> int:
    processor = quietest()

    def alone() -> None:
        os.setsid()
        # The kernel and its processes take turns, thousands of times a second: on one CPU none
        # waits for the other to be let run.
        os.sched_setaffinity(0, {processor})

    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
        # Its memory is a file in one, its own names are in the other.
        env={"TMPDIR": "/dev/shm", "HOME": home, "PATH": SYSTEM_PATH},
        preexec_fn=alone,  # noqa: PLW1509 - nothing of ours runs in threads here
    )
    overdue = threading.Event()

    def end() -> None:
        overdue.set()
        _kill(process)

    watchdog = threading.Timer((timeout or 0) + _BOOT_S, end)
    watchdog.daemon = True
    if timeout is not None:
        watchdog.start()
    status = None
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(_ENDED):
                status = int(line.removeprefix(_ENDED))
                break
            sys.stdout.write(line)
            sys.stdout.flush()
    finally:
        watchdog.cancel()
        _kill(process)
        process.wait()
    if status is None and not overdue.is_set():
        raise KernelError("the user-mode kernel ended before the command did")
    return TIMED_OUT if status is None else status


def _kill(process: subprocess.Popen[str]) -> None:
    """With all of its group: the kernel's processes are ours, too."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def quietest(watch_s: float = _WATCHED_S) -> int:
    """The CPU of ours with the most time that is free or of low priority (proc(5), /proc/stat)."""
    before = _spare()
    time.sleep(watch_s)
    after = _spare()
    return max(os.sched_getaffinity(0), key=lambda cpu: after.get(cpu, 0) - before.get(cpu, 0))


def _spare() -> dict[int, int]:
    found = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name != "cpu":
            found[int(name.removeprefix("cpu"))] = int(numbers[1]) + int(numbers[3])
    return found
