"""Lab hosts: what is theirs is theirs alone, limits hold, and nothing of them stays behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lab.host import Host, HostSpec
from lab.hosts import Lab
from lab.process import (
    CommandError,
    CommandTimeoutError,
    HostDownError,
    LabError,
    stop,
    wait_for,
)

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.mark.kernel
def test_a_host_with_another_systems_files_has_no_others(tmp_path: Path) -> None:
    """Its root is a layer over the given directory; what it writes, the directory does not get."""
    for name in ("bin", "dev", "proc", "sys", "tmp", "etc", "run"):
        (tmp_path / name).mkdir()
    shutil.copy("/bin/busybox", tmp_path / "bin/busybox")
    for name in ("sh", "cat", "ls", "hostname"):
        (tmp_path / "bin" / name).symlink_to("busybox")
    (tmp_path / "etc/release").write_text("another\n")
    (tmp_path / "tmp/left").write_text("x")
    (tmp_path / "etc/resolv.conf").write_text("nameserver 192.0.2.53\n")
    with Lab() as lab:
        host = lab.host("other", root=tmp_path)
        assert host.run("cat", "/etc/release").stdout == "another\n"
        assert host.run("cat", "/etc/resolv.conf").stdout == "", "nobody is asked in vain"
        assert host.run("hostname").stdout == "other\n"
        assert host.run("ls", "/tmp").stdout == "", "a directory of its own"
        assert "usr" not in host.run("ls", "/").stdout.split()
        host.write("/etc/release", "changed\n")
        assert host.read("/etc/release") == "changed\n"
    assert (tmp_path / "etc/release").read_text() == "another\n"


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"name": ""}, "use up to 63 letters"),
        ({"name": "a b"}, "use up to 63 letters"),
        ({"name": "../x"}, "use up to 63 letters"),
        ({"name": "x" * 64}, "use up to 63 letters"),
        ({"name": "x", "cores": 0}, "cores must be above 0"),
        ({"name": "x", "memory_mb": 1}, "memory_mb must be at least 8"),
    ],
)
def test_a_wrong_host_is_refused(spec: dict[str, object], problem: str) -> None:
    with pytest.raises(LabError, match=problem):
        HostSpec(**spec)  # type: ignore[arg-type]


pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(core_share=0.5) as made:
        yield made


@pytest.fixture(scope="module")
def a(lab: Lab) -> Host:
    host = lab.host("a")
    host.run("useradd", "--create-home", "--shell", "/bin/sh", "alice")
    return host


@pytest.fixture(scope="module")
def b(lab: Lab) -> Host:
    return lab.host("b")


class TestOwn:
    def test_namespaces(self, a: Host, b: Host) -> None:
        for kind in ("net", "mnt", "uts", "pid", "ipc", "cgroup"):
            link = f"/proc/self/ns/{kind}"
            places = {a.run("readlink", link).stdout, b.run("readlink", link).stdout}
            places.add(f"{Path(link).readlink()}\n")
            assert len(places) == 3, kind

    def test_name_and_processes(self, a: Host) -> None:
        seen = a.script("hostname; cat /etc/hostname; ls /proc | grep -c '^[0-9]'").stdout.split()
        assert seen[:2] == ["a", "a"]
        assert int(seen[2]) <= 4  # pid 1, the shell, ls, grep

    def test_files(self, a: Host, b: Host) -> None:
        for directory in ("/etc", "/var/lib", "/run", "/tmp", "/home", "/root", "/dev/shm"):
            file = f"{directory}/only-of-a"
            a.write(file, "hello")
            assert a.read(file) == "hello"
            assert not Path(file).exists()
            with pytest.raises(LabError, match=r"b: cannot read .*only-of-a"):
                b.read(file)

    def test_the_rest_of_the_root_is_read_only(self, a: Host) -> None:
        with pytest.raises(LabError, match="Read-only"):
            a.write("/usr/only-of-a", "hello")

    def test_our_code_is_there_but_not_to_be_changed(self, a: Host) -> None:
        code = "import lab.hosts; print(lab.hosts.__file__)"
        seen = a.run(sys.executable, "-c", code, env={"PYTHONPATH": str(CHECKOUT)}).stdout
        assert seen.strip() == str(CHECKOUT / "lab" / "hosts.py")
        with pytest.raises(LabError, match="Read-only"):
            a.write(str(CHECKOUT / "only-of-a"), "hello")

    def test_network(self, lab: Lab, a: Host, b: Host) -> None:
        lab.link(a, "to-b", b, "to-a", mtu=1400)
        a.run("ip", "address", "add", "10.77.0.1/30", "dev", "to-b")
        b.run("ip", "address", "add", "10.77.0.2/30", "dev", "to-a")
        assert "1 received" in a.run("ping", "-c1", "10.77.0.2").stdout
        assert "mtu 1400" in b.run("ip", "link", "show", "to-a").stdout
        assert "inet6" not in b.run("ip", "address", "show", "to-a").stdout
        names = a.run("ls", "/sys/class/net").stdout.split()
        assert names == ["lo", "to-b"]  # /sys is of the host's network too, and no gre0, sit0
        assert "1 received" in a.run("ping", "-c1", "127.0.0.1").stdout

    def test_sysctls(self, lab: Lab) -> None:
        host = lab.host("router", sysctls={"net.ipv4.ip_forward": "1"})
        assert host.read("/proc/sys/net/ipv4/ip_forward") == "1\n"
        lab.remove(host)
        with pytest.raises(LabError, match=r"sysctl net\.nothing does not exist"):
            lab.host("router", sysctls={"net.nothing": "1"})
        assert "router" not in lab.hosts

    def test_more_directories(self, lab: Lab) -> None:
        host = lab.host("more", private=("/etc", "/opt:empty"))
        host.write("/opt/tool", "x")
        assert host.run("ls", "/opt").stdout == "tool\n"
        lab.remove(host)
        with pytest.raises(LabError, match="write DIR or DIR:empty"):
            lab.host("more", private=("opt",))

    def test_a_name_is_given_once(self, lab: Lab, a: Host) -> None:
        with pytest.raises(LabError, match="there is a host a already"):
            lab.host("a")
        assert a.alive


class TestCommands:
    def test_output_status_and_input(self, a: Host) -> None:
        result = a.script("cat; echo no >&2; exit 3", input="yes", check=False)
        assert (result.returncode, result.stdout, result.stderr) == (3, "yes", "no\n")

    def test_a_failure_says_where_what_and_why(self, a: Host) -> None:
        with pytest.raises(CommandError) as caught:
            a.run("sh", "-c", "echo it broke >&2; exit 3")
        assert str(caught.value) == "a: sh -c 'echo it broke >&2; exit 3': ended with 3: it broke"
        assert caught.value.result.returncode == 3

    def test_a_command_that_is_not_there(self, a: Host) -> None:
        with pytest.raises(CommandError, match=r"no-such-thing: ended with 127: .*not found"):
            a.run("no-such-thing")

    def test_one_that_takes_too_long_is_killed_with_its_children(self, a: Host) -> None:
        with pytest.raises(CommandTimeoutError, match=r"a: .* not done after 0.5 s: at work"):
            a.script("echo at work; sleep 4321 & wait", timeout=0.5)
        a.wait_for(lambda: a.run("pgrep", "-f", "sleep 4321", check=False).returncode == 1)

    def test_a_daemon_that_keeps_its_output_open_does_not_hold_us_up(self, a: Host) -> None:
        started = time.monotonic()
        a.script("sleep 30 & echo $!")
        assert time.monotonic() - started < 20

    def test_users(self, a: Host) -> None:
        seen = a.script(
            "id -un; id -gn; echo $HOME; pwd; touch mine; stat -c %U mine", user="alice"
        )
        assert seen.stdout.split() == ["alice", "alice", "/home/alice", "/home/alice", "alice"]
        with pytest.raises(CommandError, match="Permission denied"):
            a.script("echo >/etc/x", user="alice")
        with pytest.raises(LabError, match="host a has no user nobody-such"):
            a.run("id", user="nobody-such")

    def test_our_environment_stays_ours(self, a: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET_OF_THE_LAB", "1")
        seen = a.run("env", env={"OF_THE_HOST": "1"}).stdout
        assert "OF_THE_HOST=1\n" in seen
        assert "SECRET_OF_THE_LAB" not in seen

    def test_spawn_logs_and_can_be_stopped(self, a: Host, tmp_path: Path) -> None:
        log = tmp_path / "log"
        child = a.spawn(
            "sh", "-c", "echo up; trap 'echo down; exit 5' TERM; sleep 99 & wait", log=log
        )
        a.wait_for(lambda: log.read_text() == "up\n")
        assert stop(child, patience=20) == 5
        assert log.read_text() == "up\ndown\n"

    def test_orphans_are_reaped_by_pid_1(self, a: Host) -> None:
        a.script("(sleep 0.1 & ) ; exit 0")
        a.wait_for(lambda: " Z" not in a.run("ps", "ax", "-o", "stat=").stdout.replace("\n", " "))

    def test_files_with_owner_and_mode(self, a: Host) -> None:
        a.write("/home/alice/deep/file", "secret", mode=0o600, owner="alice:alice")
        seen = a.run("stat", "-c", "%U:%G %a", "/home/alice/deep/file").stdout
        assert seen == "alice:alice 600\n"
        with pytest.raises(LabError, match="nobody-such"):
            a.write("/home/alice/x", "", owner="nobody-such")

    def test_listen_and_connect(self, a: Host) -> None:
        with a.listen("127.0.0.1", 7777) as server, a.connect("127.0.0.1", 7777) as client:
            client.sendall(b"hi")
            assert server.accept()[0].recv(2) == b"hi"
            with pytest.raises(LabError, match=r"a: cannot listen on 127\.0\.0\.1 port 7777"):
                a.listen("127.0.0.1", 7777)

    def test_waiting_in_vain_tells_the_last_answer(self, a: Host) -> None:
        with pytest.raises(
            CommandTimeoutError, match=r"waited 1 s for ls /nothing \(status 2\): .*No such"
        ):
            a.wait_for(["ls", "/nothing"], 1)
        with pytest.raises(CommandTimeoutError, match=r"waited 0.1 s for a: rain; .* was None"):
            a.wait_for(lambda: None, 0.1, what="rain")


def cpu_usage_us(host: Host) -> int:
    return int(host.read("/sys/fs/cgroup/cpu.stat").split()[1])


def burn(host: Host, cpu_us: int) -> float:
    """What part of a core the host gets with two busy loops, measured while it uses cpu_us."""
    loops = [host.spawn("sh", "-c", "while :; do :; done") for _ in range(2)]
    try:
        host.wait_for(lambda: cpu_usage_us(host) > 50_000, what="the loops to run")
        first, start = cpu_usage_us(host), time.monotonic()
        host.wait_for(lambda: cpu_usage_us(host) >= first + cpu_us, 60, interval=0.02)
        return (cpu_usage_us(host) - first) / 1e6 / (time.monotonic() - start)
    finally:
        for loop in loops:
            stop(loop)


@pytest.fixture
def limits(lab: Lab) -> None:
    if os.environ.get("DVN_LAB_KERNEL") != "vm" and not {"cpu", "memory"} <= lab.controllers:
        pytest.skip("this machine's cgroup v2 has no cpu and memory controllers; the VM's has")


@pytest.mark.usefixtures("limits")
class TestLimits:
    def test_cores(self, lab: Lab) -> None:
        small, free = lab.host("small", cores=0.5), lab.host("free")  # 0.25 of a real one
        assert small.read("/sys/fs/cgroup/cpu.max") == "12500 50000\n"
        assert burn(small, 300_000) < 0.32
        assert "nr_throttled 0\n" not in small.read("/sys/fs/cgroup/cpu.stat")
        assert burn(free, 300_000) > 0.4  # the control: it was the limit
        lab.remove(small)
        lab.remove(free)

    def test_memory(self, lab: Lab) -> None:
        host = lab.host("tiny", memory_mb=64)
        assert host.read("/sys/fs/cgroup/memory.max") == f"{64 << 20}\n"
        fill = "head -c $1 /dev/zero | tail -c $1 | wc -c"
        assert host.script(fill, str(16 << 20)).stdout.strip() == str(16 << 20)
        assert host.script(fill, str(100 << 20), check=False).stdout.strip() != str(100 << 20)
        assert "oom_kill 0\n" not in host.read("/sys/fs/cgroup/memory.events")
        lab.remove(host)

    def test_a_service_finds_a_control_group_to_divide(self, a: Host) -> None:
        a.script("""
            cd /sys/fs/cgroup/system.slice
            echo +cpu +memory > cgroup.subtree_control
            mkdir job.scope
            echo 0 > job.scope/cgroup.procs
            grep -q '^0::/system.slice/job.scope$' /proc/self/cgroup
            echo 0 > /sys/fs/cgroup/init.scope/cgroup.procs
            rmdir job.scope
        """)


class TestEnd:
    def test_power_off(self, lab: Lab, a: Host) -> None:
        host = lab.host("brief")
        lab.link(a, "to-brief", host, "eth0")
        child = host.spawn("sleep", "1000")
        listener = host.listen("127.0.0.1", 80)  # our own hold on its network
        pid = host.pid
        host.kill()
        assert "to-brief" not in a.run("ls", "/sys/class/net").stdout
        assert child.returncode == -signal.SIGKILL
        assert not host.alive
        with pytest.raises(HostDownError, match="host brief is off"):
            host.run("true")
        lab.remove(host)
        assert not Path(f"/proc/{pid}").exists()
        listener.close()
        assert lab.host("brief").alive
        lab.remove(lab.hosts["brief"])

    def test_a_host_whose_pid_1_died_is_known(self, lab: Lab) -> None:
        host = lab.host("dead")
        os.kill(host.pid, signal.SIGKILL)
        assert host.wait_for(lambda: not host.alive)
        with pytest.raises(HostDownError, match="host dead is off"):
            host.run("true")
        lab.remove(host)

    def test_files_of_a_lab_with_a_state_directory_go_with_it(self) -> None:
        # Not in tmp_path: that may be an overlay, which cannot be the upper layer of another.
        with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
            state = Path(directory) / "state"
            with Lab(state=state) as lab:
                lab.host("x").write("/var/lib/big", "x")
                assert list(state.rglob("big"))
            assert not state.exists()

    @pytest.mark.parametrize("victims", [("lab",), ("keeper",), ("keeper", "lab")])
    def test_nothing_stays_after_sigkill(self, victims: tuple[str, ...], tmp_path: Path) -> None:
        before = world()
        program = tmp_path / "victim.py"
        program.write_text(VICTIM)
        process = subprocess.Popen(
            [sys.executable, program],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "TMPDIR": str(tmp_path)},
        )
        assert process.stdout is not None
        try:
            pids = [int(word) for word in process.stdout.readline().split()]
            keeper, _, b, worker = pids
            assert world() != before  # it is seen while it is there
            for victim in victims:
                os.kill({"lab": process.pid, "keeper": keeper}[victim], signal.SIGKILL)
            # With the keeper the hosts die. (What is left of a's pid 1 waits in the kernel until
            # the lab has reaped the worker it started.)
            wait_for(lambda: not any(alive(pid) for pid in (keeper, b, worker)))
        finally:
            process.kill()
            process.wait(timeout=30)
            process.stdout.close()
        wait_for(lambda: not any(alive(pid) for pid in pids))
        if "keeper" in victims:  # whoever was to clean up was killed too: the next lab does it
            Lab().close()
        with suppress(CommandTimeoutError):
            wait_for(lambda: world() == before)
        assert world() == before  # pytest shows the difference
        assert [file.name for file in tmp_path.iterdir()] == ["victim.py"]


VICTIM = """
import time
from pathlib import Path
from lab.hosts import Lab
lab = Lab()
a, b = lab.host("a"), lab.host("b")
lab.link(a, "eth0", b, "eth0")
a.write("/var/lib/file", "x")
worker = a.spawn("sh", "-c", "while :; do sleep 1; done")
print(lab.keeper_pid, a.pid, b.pid, worker.pid, flush=True)
time.sleep(1000)
"""


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie that init has not reaped yet does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def world() -> dict[str, set[str]]:
    """What a lab could leave behind on the machine: namespaces, mounts, groups, devices, files."""
    namespaces = set()
    for process in Path("/proc").glob("[0-9]*"):
        if not alive(int(process.name)):
            continue
        for kind in ("net", "mnt", "pid", "cgroup"):
            with suppress(OSError):
                namespaces.add(str((process / "ns" / kind).readlink()))
    return {
        "namespaces": namespaces,
        "mounts": set(Path("/proc/self/mounts").read_text().splitlines()),
        "groups": {str(path) for path in Path("/sys/fs/cgroup").rglob("dvn-lab-*")},
        "links": {path.name for path in Path("/sys/class/net").iterdir()},
        "files": {str(p) for d in ("/run", "/mnt", "/dev/shm") for p in Path(d).glob("*")},
    }
