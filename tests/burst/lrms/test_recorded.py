"""What HTCondor, Grid Engine and OpenPBS really answered (tests/data), as values."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from burst.lrms import gridengine_parse, htcondor_parse, lsf_parse, pbs_parse
from burst.lrms.base import LrmsError
from burst.model import Job, JobState, Node, NodeState

DATA = Path(__file__).parents[2] / "data"
NOW = datetime.fromtimestamp(1795334960, UTC)
CONDORS = ("htcondor-23.9.6", "htcondor-25.14.1")


def recorded(system: str, name: str) -> str:
    return (DATA / system / f"{name}.txt").read_text()


def by_id(jobs: tuple[Job, ...]) -> dict[str, Job]:
    assert len({job.id for job in jobs}) == len(jobs), "a job is listed twice"
    return {job.id: job for job in jobs}


def by_name(nodes: tuple[Node, ...]) -> dict[str, Node]:
    return {node.name: node for node in nodes}


# HTCondor


def condor_jobs(version: str, name: str) -> dict[str, Job]:
    ads = htcondor_parse.ads("condor_q", recorded(version, name))
    return by_id(htcondor_parse.jobs(ads, {"node1.lab": "node1.lab", "cloud1.lab": "cloud1"}))


def condor_nodes(version: str, name: str) -> dict[str, Node]:
    ads = htcondor_parse.ads("condor_status", recorded(version, name))
    return by_name(htcondor_parse.nodes(ads, NOW))


@pytest.mark.parametrize("version", CONDORS)
def test_condor_jobs(version: str) -> None:
    jobs = condor_jobs(version, "q-json-attributes")
    running, queued, held, wide = jobs["1.0"], jobs["3.0"], jobs["5.0"], jobs["6.0"]
    assert (running.state, running.node_names) == (JobState.RUNNING, ("node1.lab",))
    assert running.time_limit == timedelta(minutes=15)
    assert (queued.state, queued.cores, queued.memory_mb) == (JobState.PENDING, 2, 512)
    assert queued.partitions == ("vanilla",)
    assert queued.reason == "no match found"
    assert queued.node_names == ()
    assert (held.state, held.reason) == (JobState.HELD, "submitted on hold at user's request")
    assert (wide.partitions, wide.nodes, wide.cores) == (("parallel",), 2, 2)
    assert {"8.0", "8.1", "8.2"} <= set(jobs)


@pytest.mark.parametrize("version", CONDORS)
def test_condor_says_nothing_at_all_when_its_queue_is_empty(version: str) -> None:
    assert recorded(version, "status-empty-queue") == ""
    assert condor_jobs(version, "status-empty-queue") == {}


@pytest.mark.parametrize("version", CONDORS)
def test_a_routed_condor_job_is_in_its_universe_and_at_its_target(version: str) -> None:
    (job,) = condor_jobs(version, "q-remote-running-json").values()
    assert (job.id, job.state, job.node_names) == ("4.0", JobState.RUNNING, ("cloud1",))
    assert job.partitions == ("vanilla", "cloud1")


@pytest.mark.parametrize("version", CONDORS)
def test_condor_nodes(version: str) -> None:
    (idle,) = condor_nodes(version, "status-idle-node-json").values()
    assert (idle.state, idle.cores, idle.allocated_cores) == (NodeState.IDLE, 2, 0)
    assert (idle.memory_mb, idle.address) == (2000, "10.77.0.11")
    (busy,) = condor_nodes(version, "status-busy-json").values()
    assert (busy.state, busy.cores, busy.allocated_cores) == (NodeState.ALLOCATED, 2, 2)


@pytest.mark.parametrize("version", CONDORS)
def test_a_draining_condor_node_keeps_its_cores(version: str) -> None:
    """Its partitionable slot says Cpus 0."""
    (node,) = condor_nodes(version, "status-draining-json").values()
    assert (node.name, node.state, node.reason) == ("cloud1", NodeState.DRAINING, "burst end")
    assert (node.cores, node.allocated_cores) == (2, 2)


def test_expressions_are_not_taken_for_numbers_or_words() -> None:
    text = (
        '[{"ClusterId": 1, "ProcId": 0, "JobStatus": 1, "JobUniverse": 5, "QDate": 1795334750,'
        ' "RequestMemory": "\\/Expr(ifthenelse(MemoryUsage > 0,MemoryUsage,1))\\/",'
        ' "JobBatchName": "\\/Expr(strcat(1))\\/"}]'
    )
    (job,) = htcondor_parse.jobs(htcondor_parse.ads("condor_q", text), {})
    assert (job.memory_mb, job.name, job.user) == (0, "", "")


def test_the_ad_of_a_dead_machine_is_not_believed_for_a_quarter_of_an_hour() -> None:
    ads = [
        {
            "Machine": "cloud1", "State": "Unclaimed", "PartitionableSlot": True,
            "TotalSlotCpus": 2, "BurstPool": "burst", "BurstHeartbeat": 30,
            "LastHeardFrom": int(NOW.timestamp()) - age,
        }
        for age in (119, 121)
    ]  # fmt: skip
    assert [htcondor_parse.nodes([ad], NOW)[0].state for ad in ads] == [
        NodeState.IDLE, NodeState.DOWN,
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["nonsense", "{}", "[1]"])
def test_what_condor_never_says_is_an_error(text: str) -> None:
    with pytest.raises(LrmsError, match="condor_q"):
        htcondor_parse.ads("condor_q", text)


# Grid Engine

GE = "gridengine-8.1.9"


def ge_jobs(name: str) -> dict[str, Job]:
    return by_id(gridengine_parse.queue(recorded(GE, name), ("all.q", "burst.q")).jobs)


def ge_nodes(name: str) -> dict[str, Node]:
    return by_name(gridengine_parse.nodes(recorded(GE, name)))


def test_grid_engine_jobs() -> None:
    jobs = ge_jobs("qstat-s-p-r-xml")
    queued, wide = jobs["3"], jobs["5"]
    assert (queued.state, queued.partitions, queued.user) == (JobState.PENDING, ("all.q",), "alice")
    assert queued.time_limit == timedelta(minutes=5)
    assert queued.submitted == datetime(2026, 11, 22, 8, 4, 40, tzinfo=UTC)
    assert (wide.cores, wide.nodes) == (4, 1)
    assert {"7.1", "7.2", "7.3"} <= set(jobs)
    assert jobs["6"].state is JobState.HELD
    assert (jobs["10"].state, jobs["10"].reason) == (JobState.PENDING, "Dependency")
    assert jobs["11"].reason.startswith("BeginTime")  # submitted with qsub -a
    assert jobs["13"].features == ("arch=nosuch",)


def test_a_grid_engine_job_without_a_queue_list_may_start_anywhere() -> None:
    listed = ge_jobs("qstat-array-running-xml")  # asked without -r: no lists
    assert listed["3"].partitions == ("all.q", "burst.q")


def test_a_running_grid_engine_job_and_task() -> None:
    job = ge_jobs("qstat-remote-running-xml")["4"]
    assert (job.state, job.node_names, job.partitions) == (
        JobState.RUNNING, ("cloud1",), ("burst.q",),
    )  # fmt: skip
    tasks = ge_jobs("qstat-array-running-xml")
    assert (tasks["7.1"].state, tasks["7.1"].node_names) == (JobState.RUNNING, ("cloud1",))


def test_a_parallel_job_repeats_in_qhost_and_counts_once() -> None:
    text = recorded(GE, "qhost-cloud-busy-xml")
    assert text.count("<job name='4'>") == 3
    nodes = by_name(gridengine_parse.nodes(text))
    assert (nodes["cloud1"].cores, nodes["cloud1"].allocated_cores) == (2, 2)
    assert nodes["cloud1"].state is NodeState.ALLOCATED
    assert "global" not in nodes
    spread = ge_nodes("qhost-multihost-xml")
    assert [spread[name].allocated_cores for name in ("cloud1", "node1")] == [2, 2]


def test_a_lost_or_disabled_grid_engine_node() -> None:
    lost, closed = ge_nodes("qhost-down-xml")["cloud1"], ge_nodes("qhost-draining-xml")["cloud1"]
    assert (lost.state, closed.state) == (NodeState.DOWN, NodeState.DRAINING)
    assert closed.features == ("burst.q",)


def test_an_empty_grid_engine_queue() -> None:
    assert ge_jobs("qstat-empty-xml") == {}


@pytest.mark.parametrize("text", ["", "<a/>", "error: no"])
def test_what_qstat_never_says_is_an_error(text: str) -> None:
    with pytest.raises(LrmsError, match="qstat"):
        gridengine_parse.queue(text, ())


@pytest.mark.parametrize(
    ("text", "mib"), [("23.5G", 24064), ("512M", 512), ("1g", 954), ("-", 0), ("INFINITY", 0)]
)
def test_grid_engine_sizes(text: str, mib: int) -> None:
    assert gridengine_parse.size_mb(text) == mib


# OpenPBS

PBS = "openpbs-23.06.06"


def pbs_jobs(name: str) -> dict[str, Job]:
    listed = pbs_parse.json_objects("qstat", recorded(PBS, name), "Jobs")
    return by_id(pbs_parse.jobs(listed))


def pbs_nodes(name: str) -> dict[str, Node]:
    listed = pbs_parse.json_objects("pbsnodes", recorded(PBS, name), "nodes")
    return by_name(pbs_parse.openpbs_nodes(listed, ["workq"]))


def test_openpbs_jobs() -> None:
    jobs = pbs_jobs("qstat-ft-json")
    running, queued, wide = jobs["0.head"], jobs["2.head"], jobs["4.head"]
    assert (running.state, running.node_names, running.home) == (JobState.RUNNING, ("node1",), "")
    assert (queued.state, queued.cores, queued.memory_mb) == (JobState.PENDING, 2, 200)
    assert queued.estimated_start == datetime(2026, 11, 22, 8, 44, 49, tzinfo=UTC)
    assert queued.time_limit == timedelta(minutes=5)
    assert (wide.nodes, wide.cores) == (2, 4)
    assert jobs["5.head"].state is JobState.HELD
    assert (jobs["9.head"].state, jobs["9.head"].reason) == (JobState.PENDING, "Dependency")
    assert jobs["8.head"].reason.startswith("BeginTime")
    assert "6[].head" not in jobs
    assert {"6[1].head", "6[2].head", "6[3].head"} <= set(jobs)


def test_a_moved_openpbs_job_knows_where_it_came_from() -> None:
    (job,) = pbs_jobs("qstat-remote-running-json").values()
    assert (job.id, job.partitions, job.home) == ("3.head", ("burst",), "workq")
    assert job.node_names == ("cloud1",)


def test_tasks_of_a_begun_openpbs_array_are_marked() -> None:
    jobs = pbs_jobs("qstat-array-running-json")
    assert jobs["13[1].head"].state is JobState.RUNNING
    assert jobs["13[3].head"].reason == "JobArrayBegun"


def test_an_empty_openpbs_list_has_no_jobs_key() -> None:
    assert "Jobs" not in recorded(PBS, "qstat-empty-json")
    assert pbs_jobs("qstat-empty-json") == {}


def test_openpbs_nodes() -> None:
    draining = pbs_nodes("pbsnodes-draining-json")["cloud1"]
    assert (draining.state, draining.reason) == (NodeState.DRAINING, "burst end")
    assert (draining.features, draining.cores, draining.allocated_cores) == (("burst",), 2, 2)
    assert pbs_nodes("pbsnodes-drained-json")["cloud1"].state is NodeState.DRAINED
    down = pbs_nodes("pbsnodes-down-json")
    assert (down["cloud1"].state, down["node1"].state) == (NodeState.DOWN, NodeState.ALLOCATED)
    assert down["node1"].memory_mb == 2048


@pytest.mark.parametrize(
    ("text", "names"),
    [("cloud1/0*2", ("cloud1",)), ("a/0+a/1+b/0-3", ("a", "b")), ("", ())],
)
def test_exec_host(text: str, names: tuple[str, ...]) -> None:
    assert pbs_parse.hosts(text) == names


# LSF, as documented


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("May 28 12:45", datetime(2026, 5, 28, 12, 45, tzinfo=UTC)),
        ("Dec 28 19:56 L", datetime(2026, 12, 28, 19, 56, tzinfo=UTC)),
        ("Jun 30 10:00", datetime(2026, 6, 30, 10, 0, tzinfo=UTC)),
        ("Feb 29 10:00", datetime(2024, 2, 29, 10, 0, tzinfo=UTC)),
        ("Nov  1 10:00:30 2025", datetime(2025, 11, 1, 10, 0, 30, tzinfo=UTC)),
    ],
)
def test_lsf_times_have_no_year(text: str, when: datetime) -> None:
    assert lsf_parse.time(text, NOW) == when


def test_lsf_values_are_strings_and_may_be_unset() -> None:
    text = (
        '{"COMMAND":"bjobs","JOBS":1,"RECORDS":[{"JOBID":"806290","JOBINDEX":"5","STAT":"RUN",'
        '"USER":"alice","QUEUE":"burst","SUBMIT_TIME":"Nov 22 08:00","NREQ_SLOT":"3",'
        '"START_TIME":"Nov 22 08:01","EXEC_HOST":"2*h1:h2","RUNTIMELIMIT":"1440.0",'
        '"MEMLIMIT":"-","FINISH_TIME":"","ESSTART_TIME":"-"}]}'
    )
    (job,) = lsf_parse.jobs(lsf_parse.records("bjobs", text), NOW, {"burst": "normal"})
    assert (job.id, job.state, job.cores) == ("806290[5]", JobState.RUNNING, 3)
    assert job.node_names == ("h1", "h2")
    assert (job.time_limit, job.memory_mb, job.home) == (timedelta(days=1), 0, "normal")


def test_what_an_lsf_job_asks_for_by_name_is_a_feature() -> None:
    record = {
        "JOBID": "1", "STAT": "PEND", "SUBMIT_TIME": "Nov 22 08:00", "QUEUE": "normal",
        "COMBINED_RESREQ": "select[type == local && gpu && mem > 100] order[r15s]",
    }  # fmt: skip
    (job,) = lsf_parse.jobs((record,), NOW, {})
    assert job.features == ("gpu",)
