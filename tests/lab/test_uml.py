"""A kernel that is a process: the same files, everything a full kernel has, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.kernel import uml
from lab.kernel.session import TIMED_OUT

CHECKOUT = Path(__file__).resolve().parents[2]
real = [
    pytest.mark.long,
    pytest.mark.timeout(3600),  # it may have to be built
    pytest.mark.skipif(os.geteuid() != 0, reason="reads this machine's files as its root"),
    pytest.mark.skipif(
        not all(Path(f"/usr/bin/{name}").exists() for name in uml.NEEDED),
        reason=f"to build it takes {', '.join(uml.NEEDED)}",
    ),
]


def on_it(*argv: str, limit: str = "120") -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "lab.kernel", "--uml", "--timeout", limit, "--", *argv)
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)


def processes() -> set[str]:
    return {
        entry.name
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and b"dvn-uml-" in _words(entry)
    }


def _words(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


def test_it_is_put_on_a_cpu_that_we_may_use() -> None:
    assert uml.quietest(0.01) in os.sched_getaffinity(0)


@pytest.mark.parametrize("_case", [pytest.param(0, marks=real)])
def test_a_command_runs_on_it_and_what_it_writes_is_gone(_case: int, tmp_path: Path) -> None:
    there = tmp_path / "there"
    done = on_it(
        "sh", "-c", f'echo "it is $1"; touch {there}; ls {there}; '
        f"{sys.executable} -m lab.kernel --missing; exit 3", "sh", "one 'word",
    )  # fmt: skip
    assert done.returncode == 3, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if "ubd device" not in line]
    assert lines == ["it is one 'word", str(there)], "and no feature is missing"
    assert not there.exists()


@pytest.mark.parametrize("_case", [pytest.param(0, marks=real)])
def test_one_that_takes_too_long_is_ended_with_all_it_started(_case: int) -> None:
    before = processes()
    began = time.monotonic()
    done = on_it("sleep", "1000", limit="1")
    assert done.returncode == TIMED_OUT
    assert time.monotonic() - began < 600
    assert processes() <= before
