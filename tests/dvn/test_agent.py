"""The agent as a process and its client: answers, restarts, and the death of the parent."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dvn import agent as agent_module
from dvn.agent_client import AgentClient, AgentError, AgentUnavailable
from dvn.engine import Engine
from dvn.kernel.fake import FakeKernel
from dvn.problems import SpecError
from dvn.spec import Site
from tests.dvn.sites import a_kernel, full_site

LIMIT_S = 20.0


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "did not happen"
        threading.Event().wait(0.01)


def answers(client: AgentClient) -> bool:
    try:
        return "pid" in client.ping()
    except AgentUnavailable:
        return False


class Serving:
    """An agent in a thread, on a fake kernel."""

    def __init__(self, path: Path, kernel: FakeKernel) -> None:
        self._stop, self._stopper = socket.socketpair()
        engine = Engine(kernel, lenient=True)
        self._thread = threading.Thread(
            target=agent_module.serve,
            args=(path, engine),
            kwargs={"stop": self._stop, "mode": 0o660},
        )
        self._thread.start()

    def end(self) -> None:
        self._stopper.send(b"x")
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


@pytest.fixture
def client(path: Path) -> Iterator[AgentClient]:
    serving = Serving(path, a_kernel())
    client = AgentClient(path)
    wait_for(lambda: answers(client))
    yield client
    client.close()
    serving.end()


def test_apply_plan_show_destroy(client: AgentClient, path: Path) -> None:
    site = full_site()
    assert client.plan(site)
    applied = client.apply(site)
    assert applied.verified
    assert applied.netlink_writes
    again = client.apply(site)
    assert (again.steps, again.netlink_writes, again.nft_writes) == ((), 0, 0)
    assert len(client.show("cnaf")["links"]) == 10
    assert client.tunnels() == {}  # the fake counts nothing
    assert client.destroy("cnaf").steps
    assert client.show()["links"] == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_what_is_refused_comes_back_as_what_it_is(client: AgentClient) -> None:
    bad = Site.model_validate(
        {"site": "cnaf", "underlay": {"interface": "w9", "address": "1.2.3.4"}}
    )
    with pytest.raises(SpecError, match="interface w9 is not on this host"):
        client.apply(bad)
    with pytest.raises(AgentError, match="bad request"):
        client.probe("nowhere", "cms/farm")
    probe = client.probe("10.9.0.101", "cms/farm", timeout=0.05)
    assert probe.rtt_ms is None
    assert "b-cms-farm" in probe.detail


def test_many_clients_at_once(path: Path) -> None:
    kernel = a_kernel()
    serving = Serving(path, kernel)
    wait_for(path.exists)
    failures: list[BaseException] = []

    def work() -> None:
        own = AgentClient(path)
        try:
            for _ in range(5):
                own.apply(full_site())
        except Exception as error:  # noqa: BLE001 - kept and asserted on below
            failures.append(error)
        own.close()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    serving.end()
    assert failures == []
    assert len(kernel.links) == 10


def test_no_agent_and_an_agent_that_comes_back(path: Path) -> None:
    client = AgentClient(path, timeout=5)
    with pytest.raises(AgentUnavailable, match="no agent answers on"):
        client.ping()
    kernel = a_kernel()
    for _ in range(2):
        serving = Serving(path, kernel)
        wait_for(lambda: answers(client))
        client.apply(full_site())
        serving.end()
    client.close()


def test_a_silent_agent_is_unavailable(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        client = AgentClient(path, timeout=0.1)
        with pytest.raises(AgentUnavailable, match="timed out"):
            client.ping()


def start(path: Path, *arguments: str, stderr: int | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "dvn.agent", "--socket", str(path), *arguments],
        stderr=stderr,
    )


def test_it_dies_with_its_parent(path: Path) -> None:
    """The parent is killed with SIGKILL; the pipe it held is all the agent knows of it."""
    source = (
        "import subprocess, sys, time; "
        f"p = subprocess.Popen([sys.executable, '-m', 'dvn.agent', '--socket', {str(path)!r}, "
        "'--parent-fd', '0'], stdin=subprocess.PIPE); print(p.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        client = AgentClient(path)
        wait_for(lambda: answers(client))
        assert client.ping()["pid"] == pid
        parent.kill()
        wait_for(lambda: not answers(client))
        wait_for(lambda: not path.exists())


def test_the_next_agent_waits_for_the_one_before(path: Path) -> None:
    """It neither loses its socket to the old one's farewell, nor works beside it."""
    first = Serving(path, a_kernel())
    client = AgentClient(path)
    wait_for(lambda: answers(client))
    second = Serving(path, a_kernel())
    assert client.apply(full_site()).steps
    assert AgentClient(path).apply(full_site()).steps == ()  # the first answers still
    first.end()
    client.close()
    wait_for(lambda: answers(client))
    assert client.apply(full_site()).steps  # the second has a kernel of its own here
    second.end()
    client.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_on_a_signal(path: Path, number: signal.Signals) -> None:
    with start(path, "--mode", "0600", "--owner", str(os.getuid())) as process:
        client = AgentClient(path)
        wait_for(lambda: answers(client))
        process.send_signal(number)
        assert process.wait(LIMIT_S) == 0
    assert not path.exists()


def test_without_privilege_the_message_says_so() -> None:
    code = (
        # Imported before: the checkout may be where only root may read.
        "import os; import dvn.kernel.linux; from dvn.kernel.driver import KernelError\n"
        "from dvn.engine import Engine; os.getuid() or os.setuid(65534)\n"
        "try: Engine().show()\n"
        "except KernelError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    assert done.stdout == "reading nftables needs root (CAP_NET_ADMIN): use sudo\n"
    assert done.stderr == ""


def test_wrong_arguments(path: Path) -> None:
    process = start(path, "--owner", "no-such-user-here", stderr=subprocess.PIPE)
    _out, error = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2
    assert b"no user or group" in error
    process = start(Path("/proc/none/agent.sock"), stderr=subprocess.PIPE)
    _out, error = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert b"dvn-agent: /proc/none/agent.sock:" in error
