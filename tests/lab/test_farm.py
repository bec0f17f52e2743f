"""The lab's Slurm cluster, and the adapter of production against it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from burst.lrms.base import LrmsError
from burst.model import Farm, Job, JobState, Node, NodeState
from lab.farm import SlurmFarm, Timing, leave
from lab.hosts import Host, Lab

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(400)]

WHERE = "#!/bin/bash\necho ran on $(hostname) as $(id -un) > where-$SLURM_JOB_ID\n"
SLEEP = "#!/bin/bash\nsleep ${1:-300}\n"


def plug(lab: Lab, switch: Host, host: Host, address: str) -> None:
    """Cable a host to the switch (a bridge) and give it its address."""
    lab.link(host, "eth0", switch, host.name)
    switch.run("ip", "link", "set", host.name, "master", "switch0", "up")
    host.run("ip", "address", "add", f"{address}/24", "dev", "eth0")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        switch = lab.host("switch")
        switch.run("ip", "link", "add", "switch0", "type", "bridge")
        switch.run("ip", "link", "set", "switch0", "up")
        plug(lab, switch, lab.host("head"), "10.9.0.10")
        plug(lab, switch, lab.host("wn1", cores=1), "10.9.0.11")
        plug(lab, switch, lab.host("cloud1", cores=2), "10.9.0.101")
        plug(lab, switch, lab.host("cloud2", cores=2), "10.9.0.102")
        yield lab


@pytest.fixture(scope="module")
def farm(lab: Lab) -> Iterator[SlurmFarm]:
    with SlurmFarm(lab.hosts["head"], [lab.hosts["wn1"]], timing=Timing()) as farm:
        yield farm


def job(snapshot: Farm, job_id: str) -> Job:
    return next(job for job in snapshot.jobs if job.id == job_id)


def node(snapshot: Farm, name: str) -> Node:
    return next(node for node in snapshot.nodes if node.name == name)


def shared(farm: SlurmFarm, user: str, name: str) -> str:
    return farm.head.read(f"/home/{user}/{name}")


def test_a_job_runs_on_the_farms_own_worker(farm: SlurmFarm) -> None:
    job_id = farm.sbatch("bob", WHERE)
    (ended,) = farm.wait_finished([job_id], timeout=60)
    assert (ended.state, ended.nodes, ended.user) == ("COMPLETED", "wn1", "bob")
    assert shared(farm, "bob", f"where-{job_id}") == "ran on wn1 as bob\n"


def test_home_is_shared_and_private_to_its_owner(lab: Lab, farm: SlurmFarm) -> None:
    worker = lab.hosts["wn1"]
    assert re.search(r" /home nfs4 .*vers=4\.2", worker.read("/proc/1/mounts"))
    worker.run("sh", "-c", "echo from the worker > /home/alice/note", user="alice")
    assert shared(farm, "alice", "note") == "from the worker\n"
    refused = worker.run("touch", "/home/alice/root-was-here", check=False)
    assert refused.returncode != 0, "root of a client may write: the export squashes nobody"


def test_the_same_queued_job_runs_on_a_borrowed_node(lab: Lab, farm: SlurmFarm) -> None:
    """Join, route, run, drain, remove: the whole life of a borrowed node, by the adapter."""
    lrms = farm.lrms()
    blocker = farm.sbatch("alice", SLEEP)
    farm.head.wait_for(
        lambda: job(lrms.snapshot(), blocker).state is JobState.RUNNING, 60, what="the blocker"
    )
    queued = farm.sbatch("alice", WHERE)
    held = farm.sbatch("alice", WHERE, "--hold")
    waiting = job(lrms.snapshot(), queued)
    assert (waiting.state, waiting.partitions, waiting.user) == (
        JobState.PENDING, ("batch",), "alice",
    )  # fmt: skip

    farm.join(lab.hosts["cloud1"], name="cms-aws-1", features=["burst-cms"], cores=2)
    joined = node(lrms.snapshot(), "cms-aws-1")
    assert (joined.state, joined.cores, joined.address) == (NodeState.IDLE, 2, "10.9.0.101")
    assert joined.features == ("burst-cms",)
    assert joined.partitions == ("burst-cms",)

    assert lrms.route_many([(queued, "burst-cms"), (held, "burst-cms")]) == {}
    lrms.route(queued, "burst-cms")  # again: no error, whatever became of the job
    (ended,) = farm.wait_finished([queued], timeout=60)
    assert (ended.id, ended.state, ended.nodes) == (queued, "COMPLETED", "cms-aws-1")
    assert shared(farm, "alice", f"where-{queued}") == "ran on cms-aws-1 as alice\n"

    now = lrms.snapshot()
    done, still = job(now, queued), job(now, held)
    assert (done.state, done.node_names) == (JobState.DONE, ("cms-aws-1",))
    assert done.submitted == waiting.submitted
    assert (still.state, still.partitions) == (JobState.HELD, ("batch", "burst-cms"))
    lrms.unroute(held, "burst-cms")
    assert job(lrms.snapshot(), held).partitions == ("batch",)
    with pytest.raises(LrmsError, match="would leave none"):
        lrms.unroute(held, "batch")
    farm.head.run("scancel", held)
    lrms.route(held, "burst-cms")  # ended meanwhile: quiet
    lrms.route("999999", "burst-cms")

    busy = farm.sbatch("alice", SLEEP, "--partition=burst-cms")
    farm.head.wait_for(
        lambda: job(lrms.snapshot(), busy).state is JobState.RUNNING, 60, what="the long job"
    )
    with pytest.raises(LrmsError, match="busy"):
        lrms.remove("cms-aws-1")
    lrms.drain("cms-aws-1", "idle")
    assert node(lrms.snapshot(), "cms-aws-1").state is NodeState.DRAINING
    with pytest.raises(LrmsError, match="busy"):
        lrms.remove("cms-aws-1")
    lrms.admit(node(lrms.snapshot(), "cms-aws-1"))
    # Until the node has registered again, Slurm calls its state unknown.
    farm.head.wait_for(
        lambda: node(lrms.snapshot(), "cms-aws-1").state is NodeState.MIXED, 60, what="in use again"
    )
    lrms.drain("cms-aws-1", "idle")
    farm.head.run("scancel", busy)
    farm.head.wait_for(
        lambda: node(lrms.snapshot(), "cms-aws-1").state is NodeState.DRAINED, 60, what="drained"
    )
    assert node(lrms.snapshot(), "cms-aws-1").reason == "dvn: idle"
    lrms.remove("cms-aws-1")
    lrms.remove("cms-aws-1")  # unknown now: quiet
    assert [node.name for node in lrms.snapshot().nodes] == ["wn1"]
    leave(lab.hosts["cloud1"])
    farm.head.run("scancel", blocker)


def test_a_configured_node_is_never_deleted(farm: SlurmFarm) -> None:
    with pytest.raises(LrmsError, match=r"slurm\.conf"):
        farm.lrms().remove("wn1")
    assert node(farm.lrms().snapshot(), "wn1").name == "wn1"


def test_tasks_of_an_array_are_jobs(farm: SlurmFarm) -> None:
    array = farm.sbatch("alice", SLEEP, "--array=1-4%2", "--hold")
    lrms = farm.lrms()
    tasks = {j.id: j for j in lrms.snapshot().jobs if j.id.startswith(f"{array}_")}
    assert sorted(tasks) == [f"{array}_{n}" for n in (1, 2, 3, 4)]
    lrms.route(f"{array}_2", "burst-cms")
    lists = {j.id: j.partitions for j in lrms.snapshot().jobs if j.id.startswith(f"{array}_")}
    assert lists[f"{array}_2"] == ("batch", "burst-cms")
    assert lists[f"{array}_3"] == ("batch",)
    farm.head.run("scancel", array)


def test_a_lost_machine_is_down_its_job_waits_again_and_the_node_can_be_removed(
    lab: Lab, farm: SlurmFarm
) -> None:
    lrms = farm.lrms()
    farm.join(lab.hosts["cloud2"], name="cms-aws-2", features=["burst-cms"], cores=2)
    lost = farm.sbatch("alice", SLEEP, "--partition=burst-cms")
    farm.head.wait_for(
        lambda: job(lrms.snapshot(), lost).state is JobState.RUNNING, 60, what="the job"
    )
    lab.hosts["cloud2"].kill()
    farm.head.wait_for(
        lambda: node(lrms.snapshot(), "cms-aws-2").state is NodeState.DOWN, 120, what="node down"
    )
    farm.head.wait_for(
        lambda: job(lrms.snapshot(), lost).state is JobState.PENDING,
        60,
        what="the job queued again",
    )
    lrms.remove("cms-aws-2")
    assert "cms-aws-2" not in {node.name for node in lrms.snapshot().nodes}
    farm.head.run("scancel", lost)


def test_nothing_of_the_machine_was_touched(farm: SlurmFarm) -> None:
    assert not Path("/run/slurmctld.pid").exists()
    assert "/home nfs4" not in Path("/proc/mounts").read_text()
