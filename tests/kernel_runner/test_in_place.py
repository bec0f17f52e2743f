"""The in-place mode, on a full kernel: namespaces that end with the command, signals, cgroup."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.kernel import missing_features
from lab.kernel.enclosure import CGROUP_PREFIX
from lab.kernel.runner import CGROUP, run_here
from tests.kernel_runner.waiting import running, wait_until

pytestmark = pytest.mark.kernel

START = "import sys; from lab.kernel.runner import run_here; sys.exit(run_here(sys.argv[1:]))"


def _start(*argv: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", START, *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )


def _groups() -> list[str]:
    return [path.name for path in CGROUP.glob(f"{CGROUP_PREFIX}*")]


def test_the_labs_kernel_misses_nothing() -> None:
    assert missing_features() == ()


def test_namespaces_furniture_and_status(capfd: pytest.CaptureFixture[str]) -> None:
    kinds = ("net", "mnt", "pid", "uts", "ipc", "cgroup")
    script = (
        f"for n in {' '.join(kinds)}; do readlink /proc/self/ns/$n; done; echo ppid $PPID;"
        " ls -A /run; cat /sys/fs/cgroup/cgroup.subtree_control; hostname;"
        " ls /sys/class/net; exit 7"
    )
    assert run_here(["sh", "-c", script]) == 7
    seen = capfd.readouterr().out.splitlines()
    for kind, inside in zip(kinds, seen, strict=False):
        assert inside.startswith(f"{kind}:[")
        assert inside != os.readlink(f"/proc/self/ns/{kind}")  # noqa: PTH115 - no path, a name
    assert seen[6:8] == ["ppid 1", "lock"]
    assert {"cpu", "memory", "pids"} <= set(seen[8].split())
    assert seen[9] == "lab"
    assert "lo" in seen[10:]
    assert _groups() == []


def test_a_command_that_cannot_start_and_one_that_is_killed() -> None:
    assert run_here(["no-such-command"]) == 127
    assert run_here(["sh", "-c", "kill -9 $$"]) == 137


def test_time_limit() -> None:
    assert run_here(["sleep", "1000"], timeout=2) == 124


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "INT"), (signal.SIGTERM, "TERM")])
def test_signals_reach_the_command(number: signal.Signals, word: str) -> None:
    process = _start("sh", "-c", f"trap 'echo got; exit 5' {word}; echo ready; sleep 600 & wait")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    assert process.wait(30) == 5
    assert process.stdout.read() == b"got\n"


def test_everything_dies_with_a_killed_parent() -> None:
    process = _start("sh", "-c", "sleep 47.11 & setsid sleep 47.11 & echo ready; wait")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    wait_until(lambda: len(running("sleep 47.11")) >= 2, "both sleeps run")
    process.kill()
    process.wait(10)
    wait_until(lambda: not running("sleep 47.11"), "the sleeps end")
    process.communicate()


def test_nothing_outlives_its_command_and_stale_cgroups_go() -> None:
    stale = CGROUP / f"{CGROUP_PREFIX}999999999"
    stale.mkdir()
    # Its /run is its own; ours may hold what other tests have left there.
    left = Path("/run/left-by-a-command")
    assert run_here(["sh", "-c", f"touch {left}; setsid sleep 47.12 & exit 0"]) == 0
    wait_until(lambda: not running("sleep 47.12"), "the sleep ends")
    assert not stale.exists()
    assert not left.exists()
