"""The VM as its user meets it: exit status, output, input, signals, terminal, files, time limits.

These boot VMs of their own, so they run outside of one.
"""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from lab.kernel import KernelError, Vm, find_kernel
from lab.kernel.pulse import Pulse
from lab.kernel.vm import MARK
from tests.kernel_runner.waiting import children, wait_until


def _why_not() -> str | None:
    if os.environ.get(MARK):
        return "runs outside of the lab's kernel"
    if os.geteuid() != 0:
        return "needs root (to read all of the host's files)"
    if shutil.which("qemu-system-x86_64") is None:
        return "qemu-system-x86_64 is not installed (./run test installs it where it is needed)"
    try:
        find_kernel()
    except KernelError as error:
        return str(error)
    return None


_WHY_NOT = _why_not()
pytestmark = [
    pytest.mark.skipif(_WHY_NOT is not None, reason=_WHY_NOT or ""),
    pytest.mark.timeout(300),
]


# Those that share a VM are best in one worker; the others may spread.
in_one_vm = pytest.mark.xdist_group("vm")


class Shell:
    """Runs commands in one VM and keeps what they wrote."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm

    def __call__(
        self, *argv: str, stdin: bytes | None = None, timeout: float | None = None, cwd: str = "/"
    ) -> tuple[int, str, str]:
        with (
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
            tempfile.TemporaryFile() as given,
        ):
            given.write(stdin or b"")
            given.seek(0)
            status = self.vm.run(
                argv,
                stdin=None if stdin is None else given.fileno(),
                stdout=out.fileno(),
                stderr=err.fileno(),
                timeout=timeout,
                cwd=cwd,
            )
            out.seek(0)
            err.seek(0)
            return status, out.read().decode(), err.read().decode()


@pytest.fixture(scope="module")
def vm() -> Iterator[Vm]:
    with Vm(cpus=1, memory_mb=1024) as booted:
        yield booted


@pytest.fixture
def shell(vm: Vm) -> Shell:
    return Shell(vm)


@in_one_vm
def test_status_and_both_streams(shell: Shell) -> None:
    assert shell("sh", "-c", "echo out; echo err >&2; exit 3") == (3, "out\n", "err\n")
    assert shell("true") == (0, "", "")  # and another in the same boot


@in_one_vm
def test_death_by_signal_is_128_and_the_number(shell: Shell) -> None:
    assert shell("sh", "-c", "kill -9 $$")[0] == 137


@in_one_vm
def test_commands_that_cannot_start(shell: Shell) -> None:
    assert shell("no-such-command") == (127, "", "no-such-command: No such file or directory\n")
    assert shell("/etc/passwd")[0] == 126
    assert shell("true", cwd="/no/such/directory") == (
        127,
        "",
        "/no/such/directory: No such file or directory\n",
    )


@in_one_vm
def test_it_is_another_kernel_with_the_same_files(shell: Shell, vm: Vm) -> None:
    status, out, _ = shell("sh", "-c", f"uname -r; cat {__file__}; echo ${MARK}")
    release, _, rest = out.partition("\n")
    assert status == 0
    assert release == find_kernel().version
    assert rest == Path(__file__).read_text() + "vm\n"


@in_one_vm
def test_what_is_written_stays_in_the_vm(shell: Shell, tmp_path: Path) -> None:
    assert shell("sh", "-c", f"echo x > {tmp_path}/written; echo y >> /etc/hostname")[0] == 0
    assert list(tmp_path.iterdir()) == []


@in_one_vm
def test_furniture(shell: Shell) -> None:
    checks = (
        "test -c /dev/null && test -d /dev/pts && test -w /dev/shm && test -e /dev/fd/0",
        "mountpoint -q /run && mountpoint -q /proc && mountpoint -q /sys",
        "grep -qw memory /sys/fs/cgroup/cgroup.subtree_control",
        "modprobe ip_gre && modprobe 8021q",
        "ip -o addr show lo | grep -q 127.0.0.1",
        'test "$(ls /sys/class/net | grep -vc "^lo$\\|^gre\\|^erspan")" = 0',
        'test "$(hostname)" = lab',
    )
    for check in checks:
        assert shell("sh", "-c", check) == (0, "", ""), check


@in_one_vm
def test_the_mask_of_new_files_is_ours(shell: Shell) -> None:
    before = os.umask(0o027)
    try:
        assert shell("sh", "-c", "umask") == (0, "0027\n", "")
    finally:
        os.umask(before)


@in_one_vm
def test_the_clock_is_the_hosts(shell: Shell) -> None:
    before = int(subprocess.check_output(["date", "+%s"]))
    guest = int(shell("date", "+%s")[1])
    after = int(subprocess.check_output(["date", "+%s"]))
    assert before - 2 <= guest <= after + 2


@in_one_vm
def test_much_input_and_output(shell: Shell) -> None:
    data = "".join(f"{number}\n" for number in range(300_000))  # many times the window
    status, out, err = shell("sh", "-c", "tee /dev/stderr | wc -c", stdin=data.encode())
    assert (status, out) == (0, f"{len(data)}\n")
    assert err == data


@in_one_vm
def test_input_that_nobody_reads(shell: Shell) -> None:
    assert shell("sh", "-c", "exec <&-; echo done", stdin=b"x" * 1_000_000) == (0, "done\n", "")


@in_one_vm
def test_output_comes_while_the_command_runs(vm: Vm) -> None:
    read, write = os.pipe()
    answer, ask = os.pipe()
    helper = subprocess.Popen(  # answers only after it has seen the first line
        [
            sys.executable,
            "-c",
            "import sys; sys.stdout.write(sys.stdin.readline()); sys.stdout.flush()",
        ],
        stdin=read,
        stdout=ask,
    )
    os.close(read)
    os.close(ask)
    status = vm.run(
        ["sh", "-c", "echo first; read x && test $x = first"], stdin=answer, stdout=write
    )
    os.close(write)
    os.close(answer)
    helper.wait(20)
    assert status == 0


@in_one_vm
def test_nothing_outlives_its_command(shell: Shell) -> None:
    assert shell("sh", "-c", "sleep 4713 & setsid sleep 4713 & echo started")[1] == "started\n"
    assert shell("sh", "-c", "pgrep -fx 'sleep 4713'") == (1, "", "")


@in_one_vm
def test_time_limit(shell: Shell) -> None:
    status, _, err = shell("sleep", "1000", timeout=0.5)
    assert status == 124
    told = [line.split() for line in err.splitlines() if "sleep 1000" in line]
    assert told, err
    assert [told[0][2], *told[0][-2:]] == ["S", "sleep", "1000"]
    assert shell("echo", "still here") == (0, "still here\n", "")


def test_files_and_trees_come_out(
    vm: Vm, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, tree = tmp_path / "report.json", tmp_path / "plots"
    script = f"""
        printf '{{}}' > {out}
        mkdir -p {tree}/deep/empty; head -c 3000000 /dev/zero > {tree}/deep/big; : > {tree}/nothing
        printf '#!/bin/sh' > {tree}/tool; chmod 755 {tree}/tool; ln -s deep/big {tree}/link
    """
    gone = tmp_path / "not-made"
    assert vm.run(["sh", "-ec", script], stdin=None, outputs=[out, tree, gone]) == 0
    assert out.read_text() == "{}"
    assert (tree / "deep/big").stat().st_size == 3_000_000
    assert (tree / "deep/empty").is_dir()
    assert (tree / "nothing").read_bytes() == b""
    assert (tree / "tool").stat().st_mode & 0o777 == 0o755
    assert (tree / "link").readlink() == Path("deep/big")
    assert not gone.exists()
    assert f"{gone} was not made" in capfd.readouterr().err


def _cli(*words: str, **streams: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "lab.kernel", "--vm", "--cpus", "1", "--memory", "1024", *words],
        stdin=streams.get("stdin", subprocess.DEVNULL),
        stdout=streams.get("stdout", subprocess.PIPE),
        stderr=streams.get("stderr", subprocess.PIPE),
        start_new_session=streams.get("session", 0) == 1,
        # A shell starts what runs in its background with Ctrl-C ignored, the test run perhaps, too.
        preexec_fn=_heed_ctrl_c,  # noqa: PLW1509 - it only sets a signal
    )


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_reaches_the_command(tmp_path: Path) -> None:
    report = tmp_path / "report"
    script = f"trap 'echo cleaned up > {report}; exit 9' INT; echo ready; sleep 600 & wait"
    process = _cli("--output", str(report), "--", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 9
    assert report.read_text() == "cleaned up\n"  # outputs come back also then
    process.communicate()


def test_a_terminal_here_is_a_terminal_there() -> None:
    """Colours, window size, Ctrl-C as a key, and a terminal that is as it was afterwards."""
    import fcntl
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    before = termios.tcgetattr(slave)
    script = "trap 'echo got-it; exit 8' INT; test -t 0 && test -t 1 && stty size; sleep 600 & wait"
    process = _cli("--", "sh", "-c", script, stdin=slave, stdout=slave, stderr=slave, session=1)
    seen = b""
    try:
        while b"33 101" not in seen:
            seen += os.read(master, 1024)
        os.write(master, b"\x03")
        while b"got-it" not in seen:
            seen += os.read(master, 1024)
        assert process.wait(60) == 8
        assert termios.tcgetattr(slave) == before
    finally:
        process.kill()
        os.close(master)
        os.close(slave)


def test_the_reader_of_our_output_goes_away() -> None:
    process = _cli("--", "sh", "-c", "yes; echo status $? >&2")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(2) == b"y\n"
    process.stdout.close()
    process.wait(60)
    process.stderr.close()


@pytest.mark.parametrize("when", ["booting", "running"])
def test_no_qemu_outlives_a_killed_parent(when: str) -> None:
    process = _cli("--", "sh", "-c", "echo ready; sleep 600")
    assert process.stdout is not None
    if when == "running":
        assert process.stdout.readline() == b"ready\n"
    wait_until(lambda: bool(children(process.pid)), "QEMU starts")
    (qemu,) = children(process.pid)
    process.kill()
    process.wait(10)
    wait_until(lambda: not Path(f"/proc/{qemu}").exists() or _is_zombie(qemu), "QEMU ends", 10)
    process.communicate()


def _is_zombie(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


STUCK = """
import os
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
while True:
    pass
"""


def test_a_vm_that_stops_is_given_up_and_tells_where_it_is(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that lets no other run, not even process 1."""
    monkeypatch.setattr("lab.kernel.session.Pulse", partial(Pulse, every=1, patience=10))
    script = 'echo -1 > /proc/sys/kernel/sched_rt_runtime_us; exec /usr/bin/python3 -c "$0"'
    with Vm(cpus=1, memory_mb=1024) as vm:
        with pytest.raises(KernelError, match="the VM has stopped: it does not answer"):
            vm.run(["sh", "-c", script, STUCK], stdin=None)
        pid = vm.pid
    assert not Path(f"/proc/{pid}").exists()
    err = capfd.readouterr().err
    assert "RIP=" in err
    assert "Kernel panic - not syncing: NMI" in err
    assert "Comm: python3" in err


def test_who_reads_slowly_does_not_lose_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """While our reader keeps us waiting, the machine's answers lie unread, and count later."""
    monkeypatch.setattr("lab.kernel.session.Pulse", partial(Pulse, every=0, patience=10))
    read, write = os.pipe()
    slow = subprocess.Popen(
        ["sh", "-c", "sleep 15; exec wc -c"], stdin=read, stdout=subprocess.PIPE
    )
    os.close(read)
    with Vm(cpus=1, memory_mb=1024) as vm:
        script = "head -c 3000000 /dev/zero"
        status = vm.run(["sh", "-c", script], stdin=None, stdout=write)
    os.close(write)
    assert status == 0
    assert slow.communicate(timeout=60)[0].split() == [b"3000000"]


def test_an_emulator_that_stops_is_given_up(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.kernel.session.Pulse", partial(Pulse, every=1, patience=3))
    with Vm(cpus=1, memory_mb=1024) as vm:
        os.kill(vm.pid, signal.SIGSTOP)
        with pytest.raises(KernelError, match="the VM has stopped: it does not answer"):
            vm.run(["true"], stdin=None)
    assert "monitor, info registers -a: timed out" in capfd.readouterr().err


def test_a_vm_that_dies_is_one_clear_line() -> None:
    script = "echo ready; read go; echo b > /proc/sysrq-trigger; sleep 600"
    process = _cli("--", "sh", "-c", script, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    out, err = process.communicate(b"go\n", timeout=300)
    assert process.returncode == 125
    assert out == b""
    assert err.startswith(b"lab.kernel: the VM ended before its command did")
    assert err.count(b"\n") == 1


def test_switches_of_the_kernel_stay_on_while_it_runs() -> None:
    """What comes and goes in tests would else have the emulated kernel patch its running code."""
    look = """
    for n in $(seq 150); do
      pid=$(pgrep -fx 'sleep infinity') && break; sleep 0.2
    done
    exec nsenter --target $pid --net sh -c 'tc qdisc show dev lo; nft list tables'
    """
    with Vm(cpus=1, memory_mb=1024) as booted:
        status, said, error = Shell(booted)("sh", "-c", look)
    assert status == 0, error
    assert "qdisc clsact" in said
    assert "table inet held\ntable bridge held\n" in said
