"""The start as root and the end: privileges, the agent as a child, directories, refusals."""

from __future__ import annotations

import grp
import os
import pwd
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway import service, sitefile
from gateway.cli.client import ApiFailure, Client
from tests.gateway.test_daemon import wait_for

ROOT = Path(__file__).parents[2]
USER = "nobody"

SITE = """\
site: cnaf
underlay: {{interface: wan0, address: 198.51.100.1}}
tenants:
  cms:
    networks:
      farm: {{prefix: 10.9.0.0/24, access: open}}
gateway:
  state: sqlite:///{directory}/state/gateway.sqlite
  socket: {directory}/run/gateway.sock
  agent_socket: {directory}/run/agent.sock
  interval: 500ms
  user: {user}
"""
START = """\
ip link add wan0 type veth peer name wan1
ip addr add 198.51.100.1/24 dev wan0
ip link set wan0 up
ip link set wan1 up
mount --bind {root} /mnt
cd /mnt
exec {python} -m gateway gateway run {site}
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that another user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="dvn-") as made:
        path = Path(made)
        path.chmod(0o755)
        yield path


@pytest.fixture
def site(directory: Path) -> Path:
    return write(directory, USER)


def write(directory: Path, user: str) -> Path:
    path = directory / "site.yaml"
    path.write_text(SITE.format(directory=directory, user=user))
    return path


class Gateway:
    """`dvn gateway run` in a network namespace of its own."""

    def __init__(self, site: Path) -> None:
        self.client = Client(str(site.parent / "run" / "gateway.sock"))
        self.log = site.parent / "log"
        # Whom it becomes may not read a checkout that is in root's home; here it is seen elsewhere.
        python = Path(sys.executable)
        if python.is_relative_to(ROOT):
            python = Path("/mnt") / python.relative_to(ROOT)
        script = START.format(python=python, site=site, root=ROOT)
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                ["unshare", "--net", "--mount", "sh", "-euc", script], stderr=log, cwd=ROOT
            )

    def status(self) -> Any:
        try:
            return self.client.get("status")
        except ApiFailure:
            return None

    def network_answers(self) -> bool:
        status = self.status()
        return (
            status is not None
            and status["pid"] == self.popen.pid
            and all(found["ok"] for found in status["services"] if found["name"] == "network")
        )

    def agent(self) -> int | None:
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text()
        for pid in children.split():
            if b"dvn.agent" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
        return None


def fields(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}


@pytest.mark.kernel
def test_privileges_and_the_agent_over_a_whole_life(site: Path) -> None:
    """One story, because a start is slow in the lab's VM: it starts, is killed, starts again,
    loses its agent, and ends so that both are started anew."""
    gateway = Gateway(site)
    wait_for("the network", gateway.network_answers, 90)
    agent = gateway.agent()
    assert agent is not None
    holds_no_privilege(gateway.popen.pid, pwd.getpwnam(USER))
    assert set(fields(agent)["Uid"]) == {"0"}, "and it can: the agent is root"
    run, state = site.parent / "run", site.parent / "state"
    assert (run / "agent.sock").stat().st_mode & 0o777 == 0o600
    assert (run / "gateway.sock").stat().st_mode & 0o777 == 0o660
    assert state.stat().st_mode & 0o777 == 0o700
    assert [path for path in state.iterdir() if path.stat().st_mode & 0o077] == []

    gateway.popen.kill()
    gateway.popen.wait(30)
    wait_for("the agent's end", lambda: not Path(f"/proc/{agent}").exists())

    again = Gateway(site)
    wait_for("the network", again.network_answers, 90)
    agent = again.agent()
    assert agent is not None
    os.kill(agent, signal.SIGKILL)
    assert again.popen.wait(60) == 1
    assert "event=agent-ended" in again.log.read_text()


def holds_no_privilege(pid: int, account: pwd.struct_passwd) -> None:
    mine = fields(pid)
    assert set(mine["Uid"]) == {str(account.pw_uid)}
    assert set(mine["Gid"]) == {str(account.pw_gid)}
    assert "0" not in mine["Groups"]
    assert (mine["CapPrm"], mine["CapEff"]) == (["0" * 16], ["0" * 16])


def test_an_unknown_user_is_said_before_anything_is_made(directory: Path) -> None:
    file = sitefile.load(write(directory, "nosuchuser"))
    with pytest.raises(service.StartError, match="'nosuchuser' does not exist on this host"):
        service.run(file)
    assert not (directory / "state").exists()


def test_system_directories_are_not_given_away(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(
        SITE.format(directory=tmp_path, user=USER).replace(
            f"{tmp_path}/run/gateway", "/run/gateway"
        )
    )
    before = Path("/run").stat().st_uid
    if os.geteuid() != 0:
        pytest.skip("only root could give them away")
    with pytest.raises(service.StartError, match="/run belongs to the whole system"):
        service.prepare_directories(sitefile.load(path))
    assert Path("/run").stat().st_uid == before


def test_only_root_becomes_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(service.StartError, match="only root may become it"):
        service.drop_privileges(USER)


def test_whose_the_agents_socket_is() -> None:
    account = pwd.getpwnam(USER)
    group = grp.getgrgid(account.pw_gid).gr_name
    assert service.owner_of(USER) == f"{USER}:{group}"
    assert service.owner_of(None) is None
