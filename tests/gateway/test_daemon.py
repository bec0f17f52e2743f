"""The daemon in a made-up world: a burst from beginning to end, services that fall silent, and
SIGKILL at any moment."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from burst.model import LeaseState
from gateway import sitefile
from gateway.cli.client import ApiFailure, Client
from gateway.daemon import Daemon
from gateway.sitefile import SiteFile
from gateway.store import Store
from tests.gateway.fake_daemon import fake_parts, write_site
from tests.gateway.world import World

JOBS = 16


def wait_for(what: str, condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        threading.Event().wait(0.05)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path / "world.json")
    made.begin(local_nodes=2, jobs=JOBS, seconds=0.6)
    return made


@pytest.fixture
def site(tmp_path: Path) -> SiteFile:
    return write_site(tmp_path)


@contextmanager
def running(site: SiteFile, world: World) -> Iterator[Daemon]:
    daemon = Daemon(site, fake_parts(world))
    thread = threading.Thread(target=daemon.run)
    thread.start()
    try:
        yield daemon
    finally:
        daemon.stop()
        thread.join(30)
        assert not thread.is_alive()


def set_fault(world: World, name: str, value: bool) -> None:
    with world.state() as s:
        s["faults"][name] = value


def all_done(world: World) -> bool:
    with world.state() as s:
        return all(job["ended"] for job in s["jobs"].values())


def finished(site: SiteFile, world: World) -> bool:
    if not all_done(world):
        return False
    with Store.open(site.gateway.state) as store:
        return not store.leases()


def assert_nothing_left(world: World) -> None:
    with world.state() as s:
        assert [name for name, m in s["machines"].items() if m["state"] != "terminated"] == []
        assert sorted(s["nodes"]) == ["wn1", "wn2"]
        assert s["tunnels"] == []
        assert s["lost_jobs"] == []
        assert {job["runs"] for job in s["jobs"].values()} == {1}


def service(daemon: Daemon, name: str) -> Any:
    return next(found for found in daemon.view.status().services if found.name == name)


def test_a_burst_from_beginning_to_end(site: SiteFile, world: World) -> None:
    with running(site, world) as daemon:
        wait_for("the end", lambda: finished(site, world))
        wait_for("the last tunnel to go", lambda: not daemon.network.view.links)
        leases = daemon.view.leases(ended=True)
        status = daemon.view.status()
    assert_nothing_left(world)
    with world.state() as s:
        remote = [job for job in s["jobs"].values() if job["node"].startswith("cms-aws")]
    assert len(remote) >= JOBS / 2
    assert leases
    assert {lease.state for lease in leases} == {"gone"}
    assert [loop.bugs for loop in status.loops] == [0, 0]
    assert status.budgets[0].reserved == 0
    assert status.budgets[0].spent == sum(lease.cost for lease in leases) > 0
    order = [state.value for state in LeaseState]
    for lease in leases:  # the timeline is in order, from the first intention to the last trace
        told = [order.index(e.state) for e in _events(site, lease.id) if e.kind == "state"]
        assert told == sorted(set(told))
        assert (order[told[0]], order[told[-1]]) == ("wanted", "gone")


def _events(site: SiteFile, lease: str) -> Any:
    with Store.open(site.gateway.state) as store:
        return store.events(lease)


@pytest.mark.parametrize("name", ["lrms", "aws", "network"])
def test_a_silent_service_is_waited_for_with_backoff(
    site: SiteFile, world: World, name: str
) -> None:
    fault = {"aws": "provider", "network": "agent"}.get(name, name)
    world.begin(local_nodes=2, jobs=48, seconds=0.6)
    set_fault(world, fault, True)
    with running(site, world) as daemon:
        wait_for("three failures", lambda: service(daemon, name).failures >= 3)
        silent = service(daemon, name)
        assert not silent.ok
        assert silent.error
        assert silent.retry_at is not None
        with world.state() as s:
            asked = s["asked"][{"network": "agent"}.get(name, name)]
            assert s["launches"] == 0, "nothing is rented blindly"
        rounds = daemon.view.status().loops[1].rounds
        assert asked < rounds, "it is not asked in every round"
        set_fault(world, fault, False)
        wait_for("it to answer", lambda: service(daemon, name).ok)
        wait_for("the end", lambda: finished(site, world))
        wait_for("the tunnels to go", lambda: _no_tunnels(world))
        assert [loop.bugs for loop in daemon.view.status().loops] == [0, 0]
    with world.state() as s:
        assert s["launches"] > 0
    assert_nothing_left(world)


@pytest.mark.parametrize("fault", ["lrms", "provider", "agent"])
def test_an_outage_in_the_middle_loses_nothing(site: SiteFile, world: World, fault: str) -> None:
    with running(site, world) as daemon:
        wait_for("a machine", daemon.view.leases)
        set_fault(world, fault, True)
        wait_for(
            "the outage to be noticed",
            lambda: not all(found.ok for found in daemon.view.status().services),
        )
        wait_for("all jobs done or running", lambda: _no_new_work(world))
        set_fault(world, fault, False)
        wait_for("the end", lambda: finished(site, world))
        wait_for("the last tunnel to go", lambda: not daemon.network.view.links)
    assert_nothing_left(world)


def _no_new_work(world: World) -> bool:
    with world.state() as s:
        return not any(
            not job["started"] and job["partitions"] != ["batch"] for job in s["jobs"].values()
        )


def test_throttling_is_said_and_outlived(site: SiteFile, world: World) -> None:
    set_fault(world, "throttle", True)
    with running(site, world) as daemon:
        wait_for("a launch to be refused", lambda: daemon.view.status().failed_actions)
        set_fault(world, "throttle", False)
        wait_for("the end", lambda: finished(site, world))
    with world.state() as s:
        assert s["launches"] > 0


def test_draining_all_returns_everything_and_holds(site: SiteFile, world: World) -> None:
    with running(site, world) as daemon:
        wait_for("a joined machine", lambda: daemon.view.status().leases.get("joined"))
        drained = daemon.view.drain_all("maintenance")
        assert drained.leases
        wait_for("all to be returned", lambda: not daemon.view.leases())
        with world.state() as s:
            launches = s["launches"]
        wait_for("the farm to do the rest", lambda: all_done(world))
        assert daemon.view.status().hold == "maintenance"
        with world.state() as s:
            assert s["launches"] == launches
        assert daemon.view.resume().hold == ""
    assert_nothing_left(world)


def test_a_stopped_daemon_leaves_machines_and_the_next_goes_on(
    site: SiteFile, world: World
) -> None:
    with running(site, world) as daemon:
        wait_for("a joined machine", lambda: daemon.view.status().leases.get("joined"))
    with world.state() as s:
        assert any(machine["state"] == "running" for machine in s["machines"].values())
        assert s["tunnels"]
    with running(site, world) as daemon:
        wait_for("the end", lambda: finished(site, world))
        wait_for("the last tunnel to go", lambda: not daemon.network.view.links)
    assert_nothing_left(world)


def test_drain_on_exit_returns_everything_first(site: SiteFile, world: World) -> None:
    daemon = Daemon(site, fake_parts(world))
    thread = threading.Thread(target=daemon.run)
    thread.start()
    wait_for("a joined machine", lambda: daemon.view.status().leases.get("joined"))
    daemon.stop(drain=True)
    thread.join(30)
    assert not thread.is_alive()
    with world.state() as s:
        assert s["lost_jobs"] == []
        left = {n: m for n, m in s["machines"].items() if m["state"] != "terminated"}
        assert left == {}
        assert sorted(s["nodes"]) == ["wn1", "wn2"]
        assert s["tunnels"] == []


def test_a_second_signal_does_not_wait_for_jobs(site: SiteFile, world: World) -> None:
    world.begin(local_nodes=1, jobs=9, seconds=3600)
    daemon = Daemon(site, fake_parts(world))
    thread = threading.Thread(target=daemon.run)
    thread.start()
    wait_for("a joined machine", lambda: daemon.view.status().leases.get("joined"))
    daemon.stop(drain=True)
    wait_for("the draining", lambda: daemon.view.status().hold)
    daemon.stop()
    thread.join(30)
    assert not thread.is_alive()
    with running(site, world) as again:
        assert again.view.status().hold == "", "the next start rents again"
        assert again.view.leases(), "and has the machines still"


@pytest.mark.parametrize("section", ["pools", "providers"])
def test_what_vanished_from_the_site_file_breaks_nothing(
    site: SiteFile, world: World, section: str
) -> None:
    """A pool renamed while it has machines: they are returned. A provider renamed: nobody can,
    which is said; the rest goes on."""
    with running(site, world) as daemon:
        wait_for("a joined machine", lambda: daemon.view.status().leases.get("joined"))
    text = site.path.read_text()
    if section == "pools":
        text = text.replace("    cms-aws:\n", "    cms-new:\n")
    else:
        text = text.replace("    aws:\n", "    aws2:\n").replace("provider: aws", "provider: aws2")
    site.path.write_text(text)
    changed = sitefile.load(site.path)
    with running(changed, world) as daemon:
        wait_for("the jobs' end", lambda: all_done(world))
        old = {lease.id for lease in daemon.view.leases() if lease.pool == "cms-aws"}
        if section == "pools":
            wait_for("the end", lambda: finished(changed, world))
            wait_for("the tunnels to go", lambda: _no_tunnels(world))
        assert [loop.last_bug for loop in daemon.view.status().loops] == ["", ""]
        assert old or section == "pools"
    if section == "pools":
        assert_nothing_left(world)


class Process:
    """The daemon as a process of its own."""

    def __init__(self, site: SiteFile, world_path: Path, log: Path) -> None:
        self.log = log
        with log.open("ab") as stream:
            self.popen = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.gateway.fake_daemon",
                    str(site.path),
                    str(world_path),
                ],
                stderr=stream,
                cwd=Path(__file__).parents[2],
            )

    def answers(self, site: SiteFile) -> bool:
        try:
            return bool(Client(site.gateway.socket).get("status")["pid"] == self.popen.pid)
        except ApiFailure:
            return False

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(30)

    def end(self) -> int:
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(30)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", range(3))
def test_sigkill_at_seeded_moments_loses_nothing(
    site: SiteFile, world: World, tmp_path: Path, seed: int
) -> None:
    """Each start lives for a random time; then the world must have gone on as if nothing was."""
    chance = random.Random(seed)
    world.begin(local_nodes=2, jobs=48, seconds=0.8)
    for _ in range(7):
        daemon = Process(site, tmp_path / "world.json", tmp_path / "log")
        threading.Event().wait(chance.uniform(0.3, 1.8))
        daemon.kill()
    daemon = Process(site, tmp_path / "world.json", tmp_path / "log")
    try:
        wait_for("the end", lambda: finished(site, world), 60)
        wait_for("the tunnels to go", lambda: _no_tunnels(world))
        wait_for("its API", lambda: daemon.answers(site))  # it may have had nothing left to do
    finally:
        status = daemon.end()
    log = (tmp_path / "log").read_text()
    assert status == 0, log[-3000:]
    assert "event=bug" not in log
    assert "Traceback" not in log
    assert_nothing_left(world)


def _no_tunnels(world: World) -> bool:
    with world.state() as s:
        return not s["tunnels"]


def test_two_daemons_on_one_state_are_refused(site: SiteFile, world: World, tmp_path: Path) -> None:
    first = Process(site, tmp_path / "world.json", tmp_path / "log1")
    try:
        wait_for("its lock", (tmp_path / "gateway.lock").exists)
        wait_for("its socket", (tmp_path / "gateway.sock").exists)
        second = Process(site, tmp_path / "world.json", tmp_path / "log2")
        assert second.popen.wait(30) == 1
        said = (tmp_path / "log2").read_text()
        assert f"another gateway (process {first.popen.pid})" in said
    finally:
        assert first.end() == 0
    assert not (tmp_path / "gateway.sock").exists()


def test_the_api_over_its_socket(site: SiteFile, world: World, tmp_path: Path) -> None:
    daemon = Process(site, tmp_path / "world.json", tmp_path / "log")
    client = Client(site.gateway.socket)
    try:
        wait_for("its socket", (tmp_path / "gateway.sock").exists)
        mode = Path(site.gateway.socket).stat().st_mode & 0o777
        assert mode == 0o660
        assert client.get("status")["site"] == "cnaf"  # waits while the API is loaded
        wait_for("a machine", lambda: client.get("leases"))
        lease = client.get("leases")[0]
        explained = client.get("explain", "lease", lease["id"][:8])
        assert explained["events"][0]["state"] == "wanted"
        assert client.get("explain", "pool", "cms-aws")["why"]["message"]
        jobs = client.get("jobs")
        assert len(jobs) == JOBS
        assert client.get("explain", "job", jobs[-1]["id"])["text"]
        assert client.get("plan")["ready"]
        assert client.get("budgets")[0]["tenant"] == "cms"
        with pytest.raises(ApiFailure, match="no lease 'nosuch'"):
            client.post("leases", "nosuch", "drain")
        with pytest.raises(ApiFailure, match="no pool 'x'; there is: cms-aws"):
            client.get("explain", "pool", "x")
        drained = client.post("leases", lease["node"], "drain", reason="reboot")
        assert drained["leases"] == [lease["id"]]
        wait_for(
            "it to go",
            lambda: next(
                found for found in client.get("leases", ended=True) if found["id"] == lease["id"]
            )["ended"],
        )
        json.dumps(client.get("events", lease=lease["id"]))
    finally:
        assert daemon.end() == 0
