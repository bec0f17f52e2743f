"""Where each batch system bites: one test for each trap that was met."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from burst.lrms.base import LrmsError
from burst.lrms.command import Result
from burst.lrms.gridengine import GridEngine
from burst.lrms.htcondor import HtCondor
from burst.lrms.lsf import Lsf
from burst.lrms.pbs import OpenPbs
from burst.lrms.slurm import Slurm
from burst.model import JobState, NodeState
from lab.farm.standin import (
    GridEngineStandIn,
    HtCondorStandIn,
    LsfStandIn,
    OpenPbsStandIn,
    SlurmStandIn,
)

DATA = Path(__file__).parents[2] / "data"


def said(system: str, name: str) -> str:
    return (DATA / system / f"{name}.txt").read_text().strip()


def ask(there: GridEngineStandIn | OpenPbsStandIn, *argv: str) -> Result:
    return there(argv, "", timedelta(seconds=1))


# Slurm


@pytest.mark.parametrize("version", [(22, 5), (24, 11), (26, 5)])
def test_slurm_busy_with_a_new_node_is_asked_again(version: tuple[int, int]) -> None:
    there = SlurmStandIn(version)
    there.register("cloud1", 2)
    jobs = [there.job_id(one) for one in there.submit(tasks=3)]
    lrms = Slurm(runner=there, clock=lambda: there.now, wait=lambda _: None)
    lrms.snapshot()
    there.busy_updates = 2  # of single tasks, too
    assert lrms.route_many([(job, "burst") for job in jobs]) == {}
    assert all(job.queues == ["batch", "burst"] for job in there.jobs)


@pytest.mark.parametrize("version", [(24, 11), (26, 5)])
def test_slurm_refuses_an_empty_partition_and_applies_it(version: tuple[int, int]) -> None:
    there = SlurmStandIn(version)
    (job,) = there.submit()
    lrms = Slurm(runner=there, clock=lambda: there.now, wait=lambda _: None)
    lrms.snapshot()
    lrms.route(there.job_id(job), "burst")  # no error: it is true
    assert job.queues == ["batch", "burst"]


def test_slurm_forgets_a_dead_node_though_jobs_wait_for_its_partition() -> None:
    there = SlurmStandIn()
    there.register("cloud1", 2)
    (job,) = there.submit()
    job.queues = ["burst"]
    there.power_off("cloud1")
    lrms = Slurm(runner=there, clock=lambda: there.now, wait=lambda _: None)
    lrms.remove("cloud1")
    assert [node.name for node in lrms.snapshot().nodes] == ["node1"]
    assert lrms.snapshot().jobs[0].state is JobState.PENDING


# HTCondor


def condor(there: HtCondorStandIn) -> HtCondor:
    return HtCondor(runner=there, clock=lambda: there.now)


def test_condor_draining_without_retirement_would_evict_and_is_refused() -> None:
    there = HtCondorStandIn(retirement=0)
    there.register("cloud1", 2)
    (job,) = there.submit()
    lrms = condor(there)
    lrms.snapshot()
    there.nodes["node1"].closed = "maintenance"
    lrms.route(there.job_id(job), "burst")
    there.schedule()
    assert job.node == "cloud1"
    with pytest.raises(LrmsError, match="MAXJOBRETIREMENTTIME"):
        lrms.drain("cloud1", "idle")
    assert job.running, "the drain evicted it"
    there.end(job)
    lrms.drain("cloud1", "idle")  # nobody to evict any more
    assert lrms.snapshot().nodes[1].state is NodeState.DRAINED


@pytest.mark.parametrize("version", [(23, 9), (25, 14)])
def test_condor_requirements_are_never_rebuilt(version: tuple[int, int]) -> None:
    """Their defaults differ between versions, so a route leaves them alone."""
    there = HtCondorStandIn(version)
    (job,) = there.submit()
    lrms = condor(there)
    lrms.snapshot()
    lrms.route(there.job_id(job), "burst")
    lrms.unroute(there.job_id(job), "burst")
    edits = [call for call in there.calls if call.startswith("condor_qedit")]
    assert len(edits) == 2
    assert not any("Requirements" in call for call in edits)


def test_condor_keeps_a_dead_machines_ad_and_remove_takes_it_away() -> None:
    there = HtCondorStandIn()
    there.register("cloud1", 2)
    there.power_off("cloud1")
    there.pass_time(timedelta(minutes=5))
    lrms = condor(there)
    assert [node.state for node in lrms.snapshot().nodes] == [NodeState.IDLE, NodeState.DOWN]
    lrms.remove("cloud1")
    assert [node.name for node in lrms.snapshot().nodes] == ["node1.lab"]


def test_condor_routes_many_jobs_with_one_edit() -> None:
    there = HtCondorStandIn()
    jobs = [there.job_id(one) for one in there.submit(tasks=5)]
    lrms = condor(there)
    lrms.snapshot()
    assert lrms.route_many([(job, "burst") for job in jobs]) == {}
    assert len([call for call in there.calls if call.startswith("condor_qedit")]) == 1


# Grid Engine


def grid_engine(there: GridEngineStandIn, *, machine: bool = True) -> GridEngine:
    lrms = GridEngine(["burst.q"], runner=there, clock=lambda: there.now)
    if machine:
        lrms.announce("cloud1", address="10.77.0.21", cores=2, partition="burst.q")
        there.register("cloud1", 2)
    return lrms


def test_grid_engine_has_no_queue_without_a_host() -> None:
    there = GridEngineStandIn()
    (job,) = there.submit()
    lrms = grid_engine(there, machine=False)
    lrms.snapshot()
    with pytest.raises(LrmsError, match=r'unknown queue "burst\.q"'):
        lrms.route("1", "burst.q")
    assert job.queues == ["all.q"]


def test_grid_engine_denies_the_route_of_a_task_so_its_array_is_routed() -> None:
    there = GridEngineStandIn()
    tasks = [there.job_id(one) for one in there.submit(tasks=3)]
    refused = ask(there, "qalter", "-q", "all.q", "1.2")
    assert (refused.status, refused.said) == (4, said("gridengine-8.1.9", "qalter-array-task"))
    lrms = grid_engine(there)
    lrms.snapshot()
    assert lrms.route_many([(task, "burst.q") for task in tasks]) == {}
    assert [call for call in there.calls if call.startswith("qalter -q all.q,")] == [
        "qalter -q all.q,burst.q 1"
    ]


def test_grid_engine_says_modified_of_a_running_job_so_it_is_not_asked() -> None:
    there = GridEngineStandIn()
    (job,) = there.submit()
    there.schedule()
    lrms = grid_engine(there)
    lied = ask(there, "qalter", "-q", "burst.q", "1")
    assert (lied.status, lied.said) == (0, said("gridengine-8.1.9", "qalter-running"))
    job.queues = ["all.q"]
    lrms.snapshot()
    lrms.route("1", "burst.q")
    assert job.queues == ["all.q"]


def test_grid_engine_is_left_in_the_only_order_that_works() -> None:
    there = GridEngineStandIn()
    lrms = grid_engine(there)
    early = ask(there, "qconf", "-de", "cloud1")
    assert (early.status, early.said) == (1, said("gridengine-8.1.9", "qconf-de-busy"))
    lrms.remove("cloud1")
    done = [call.split()[1] for call in there.calls if call.startswith("qconf")][-6:]
    assert [one for one in done if one != "-sq"] == ["-ke", "-purge", "-dattr", "-de", "-dh"]
    assert "cloud1" not in there.admin


def test_grid_engine_does_not_requeue_a_lost_hosts_job_by_itself() -> None:
    there = GridEngineStandIn()
    lrms = grid_engine(there)
    (job,) = there.submit()
    job.queues = ["burst.q"]
    there.schedule()
    there.power_off("cloud1")
    there.pass_time(timedelta(hours=1))
    assert lrms.snapshot().jobs[0].state is JobState.RUNNING
    with pytest.raises(LrmsError, match="busy"):
        lrms.remove("cloud1")
    lrms.requeue("1")
    assert lrms.snapshot().jobs[0].state is JobState.PENDING
    lrms.remove("cloud1")


def test_a_queue_instance_in_a_hard_list_is_kept_word_for_word() -> None:
    there = GridEngineStandIn()
    (job,) = there.submit()
    job.queues = ["all.q@node1"]
    lrms = grid_engine(there)
    lrms.snapshot()
    lrms.route("1", "burst.q")
    assert job.queues == ["all.q@node1", "burst.q"]
    lrms.unroute("1", "burst.q")
    assert job.queues == ["all.q@node1"]


# OpenPBS


def openpbs(there: OpenPbsStandIn) -> OpenPbs:
    return OpenPbs(["burst"], local=["workq"], runner=there, clock=lambda: there.now)


def test_openpbs_nodes_are_tied_by_resource_because_a_rejected_delete_unties_the_queue() -> None:
    there = OpenPbsStandIn()
    ask(there, "qmgr", "-c", "create node c9 queue=burst,resources_available.ncpus=1")
    there.register("c9", 1)
    (job,) = there.submit()
    job.queues = ["burst"]
    there.schedule()
    refused = ask(there, "qmgr", "-c", "delete node c9")
    assert refused.status == 179
    assert said("openpbs-23.06.06", "qmgr-delete-busy-node").replace("cloud1", "c9") == refused.said
    (stray,) = there.submit()
    stray.queues = ["burst"]
    there.schedule()
    assert stray.node == "node1", "the stand-in shows what happens to jobs of such a queue"
    lrms = openpbs(OpenPbsStandIn())
    lrms.announce("cloud1", address="10.77.0.21", cores=2, partition="burst")
    assert isinstance(lrms, OpenPbs)
    calls = " ".join(_calls(lrms))
    assert "Qlist=burst" in calls
    assert "queue=" not in calls


def _calls(lrms: OpenPbs) -> list[str]:
    there = lrms._command._run
    assert isinstance(there, OpenPbsStandIn)
    return there.calls


def test_openpbs_is_never_asked_to_delete_a_busy_node() -> None:
    there = OpenPbsStandIn()
    lrms = openpbs(there)
    lrms.announce("cloud1", address="10.77.0.21", cores=2, partition="burst")
    there.register("cloud1", 2)
    (job,) = there.submit()
    job.queues = ["burst"]
    there.schedule()
    with pytest.raises(LrmsError, match=r"busy with 1\.head"):
        lrms.remove("cloud1")
    assert not any("delete" in call for call in there.calls)


def test_a_begun_openpbs_array_stays_where_it_is() -> None:
    there = OpenPbsStandIn()
    tasks = [there.job_id(one) for one in there.submit(tasks=4)]
    there.schedule()  # two of four run
    refused = ask(there, "qmove", "burst", "1[].head")
    assert refused.status == 168
    recorded = said("openpbs-23.06.06", "qmove-running").replace("1.head", "1[].head")
    assert refused.said == recorded
    lrms = openpbs(there)
    before = len(there.calls)
    lrms.snapshot()
    assert lrms.route_many([(task, "burst") for task in tasks]) == {}
    assert not any(call.startswith("qmove") for call in there.calls[before:])


def test_an_openpbs_array_that_waits_moves_once_and_whole() -> None:
    there = OpenPbsStandIn()
    tasks = [there.job_id(one) for one in there.submit(tasks=3)]
    lrms = openpbs(there)
    lrms.snapshot()
    assert lrms.route_many([(task, "burst") for task in tasks]) == {}
    assert [call for call in there.calls if call.startswith("qmove")] == ["qmove burst 1[].head"]
    assert {job.queues[0] for job in there.jobs} == {"burst"}


@pytest.mark.parametrize(
    ("name", "status", "argv"),
    [
        ("qmove-nosuch", 153, ("burst", "999.head")),
        ("qmove-nosuchqueue", 170, ("nosuch", "2.head")),
    ],
)
def test_the_stand_in_refuses_as_openpbs_does(
    name: str, status: int, argv: tuple[str, str]
) -> None:
    there = OpenPbsStandIn()
    there.submit()
    there.submit()
    refused = ask(there, "qmove", *argv)
    assert (refused.status, refused.said) == (status, said("openpbs-23.06.06", name))


def test_one_bad_job_of_many_is_named_alone() -> None:
    there = OpenPbsStandIn()
    first, second = there.submit(), there.submit()
    lrms = openpbs(there)
    lrms.snapshot()
    problems = lrms.route_many([("1.head", "nosuch"), ("2.head", "burst")])
    assert list(problems) == ["1.head"]
    assert "Unknown queue" in problems["1.head"]
    assert (first[0].queues, second[0].queues) == (["workq"], ["burst"])


# LSF


def test_lsf_would_switch_a_running_job_so_it_is_not_asked() -> None:
    there = LsfStandIn()
    there.submit()
    there.schedule()
    lrms = Lsf({"burst": "normal"}, runner=there, clock=lambda: there.now)
    lrms.snapshot()
    lrms.route("1", "burst")
    assert not any(call.startswith("bswitch") for call in there.calls)


def test_lsf_without_a_job_is_an_empty_farm_and_no_error() -> None:
    there = LsfStandIn()
    lrms = Lsf({"burst": "normal"}, runner=there, clock=lambda: there.now)
    assert lrms.snapshot().jobs == ()


def test_a_queue_name_that_is_no_resource_name_is_made_one() -> None:
    there = LsfStandIn()
    there.burst = "burst-cms"
    there.register("cloud1", 2)
    there.nodes["cloud1"].queues = ("burst_cms",)
    lrms = Lsf({"burst-cms": "normal"}, runner=there, clock=lambda: there.now)
    borrowed = next(node for node in lrms.snapshot().nodes if node.name == "cloud1")
    assert borrowed.partitions == ("burst-cms",)
    assert "burst-cms" in borrowed.features
