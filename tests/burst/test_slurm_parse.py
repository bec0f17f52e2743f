"""The Slurm parser on recorded answers of three versions, and on broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burst.lrms import slurm_parse
from burst.lrms.base import LrmsError, LrmsUnavailable
from burst.lrms.slurm_records import JobRecord
from burst.model import Job, JobState, Node, NodeState

DATA = Path(__file__).parent.parent / "data"
VERSIONS = ("slurm-22.05.8", "slurm-24.11.5", "slurm-26.05.5")
NOW = datetime.fromtimestamp(1795336130, UTC)  # just after the recordings of 24.11 and 26.05
EARLY = datetime.fromtimestamp(1795342510, UTC)  # and of 22.05


def recorded(version: str, name: str) -> str:
    return (DATA / version / f"{name}.txt").read_text()


def jobs(version: str, name: str = "squeue-json") -> dict[str, Job]:
    taken = EARLY if version == "slurm-22.05.8" else NOW
    reply = slurm_parse.answer("squeue", recorded(version, name), "jobs")
    return {job.id: job for job in slurm_parse.jobs(reply, taken)}


def nodes(version: str, name: str) -> dict[str, Node]:
    reply = slurm_parse.answer("nodes", recorded(version, name), "nodes")
    return {node.name: node for node in slurm_parse.nodes(reply)}


def complaint(read: Callable[[], object]) -> str:
    """What an LrmsError said; nothing else may come out of a parser."""
    try:
        read()
    except LrmsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("version", VERSIONS)
def test_the_same_queue_reads_the_same_in_every_version(version: str) -> None:
    found = jobs(version)
    states = {number: found[str(number)].state for number in (1, 2, 3, 4, 5, 6, 7, 8)}
    assert states == {
        1: JobState.RUNNING,
        2: JobState.RUNNING,
        3: JobState.PENDING,
        4: JobState.PENDING,
        5: JobState.PENDING,
        6: JobState.HELD,
        7: JobState.PENDING,
        8: JobState.PENDING,
    }
    three = found["3"]
    assert (three.cores, three.nodes, three.memory_mb) == (2, 1, 200)
    assert three.time_limit == timedelta(minutes=5)
    assert three.partitions == ("batch",)
    assert three.user == "alice"
    assert (three.reason, found["7"].reason) == ("Resources", "Dependency")
    assert three.estimated_start is not None
    assert three.started is None
    assert (found["5"].nodes, found["5"].cores) == (2, 4)
    running = found["1"]
    assert running.started is not None
    assert running.estimated_start is None
    assert running.ended is None  # end_time of a running job is when its limit is reached
    assert running.reason == ""


@pytest.mark.parametrize(("version", "array"), [(v, "9" if "22" in v else "10") for v in VERSIONS])
def test_pending_tasks_of_an_array_are_jobs_and_its_limit_shows(version: str, array: str) -> None:
    tasks = [job for key, job in jobs(version).items() if key.startswith(f"{array}_")]
    assert [task.id for task in tasks] == [f"{array}_{n}" for n in (1, 2, 3, 4, 5)]
    limited = [task.id for task in tasks if task.reason == slurm_parse.TASK_LIMIT]
    assert limited == [f"{array}_{n}" for n in (3, 4, 5)]  # --array=1-5%2
    assert tasks[0].estimated_start is not None
    assert array not in jobs(version)


def test_running_tasks_count_against_the_limit_of_their_array() -> None:
    found = jobs("slurm-24.11.5", "squeue-array-running-json")
    states = {key: job.state for key, job in found.items() if key.startswith("10_")}
    assert states["10_1"] is states["10_3"] is JobState.RUNNING
    assert {k for k, job in found.items() if job.reason == slurm_parse.TASK_LIMIT} == {
        "10_2", "10_4", "10_5",
    }  # fmt: skip
    assert found["10_3"].node_names == ("cloud1",)


def test_routed_done_and_requeued_jobs_of_22_05() -> None:
    routed = jobs("slurm-22.05.8", "squeue-routed-json")
    assert routed["12"].partitions == ("batch", "burst-cms")
    assert (routed["4"].partitions, routed["4"].node_names) == (("burst-cms",), ("c1",))
    assert routed["4"].comment == "a c"
    later = jobs("slurm-22.05.8", "squeue-after-down-json")
    assert later["4"].state is JobState.DONE
    assert later["4"].ended is not None
    # Its node died: it waits again, and squeue still names the dead node.
    assert later["9_4"].state is JobState.PENDING
    assert later["9_4"].node_names == ()
    assert later["9_4"].partitions == ("burst-cms", "batch")


@pytest.mark.parametrize("version", VERSIONS)
def test_an_empty_queue(version: str) -> None:
    assert jobs(version, "squeue-empty-json") == {}


@pytest.mark.parametrize(
    ("version", "prefix", "node"),
    [
        ("slurm-22.05.8", "sinfo", "c1"),
        ("slurm-24.11.5", "scontrol-show-nodes", "cloud1"),
        ("slurm-26.05.5", "scontrol-show-nodes", "cloud1"),
    ],
)
def test_a_borrowed_node_draining_and_down(version: str, prefix: str, node: str) -> None:
    draining = nodes(version, f"{prefix}-draining-json")[node]
    assert draining.state is NodeState.DRAINING
    assert (draining.cores, draining.allocated_cores) == (2, 2)
    assert draining.reason in ("burst end", "dvn: idle")
    assert draining.features == draining.partitions
    assert draining.address.startswith("10.")
    assert nodes(version, f"{prefix}-down-json")[node].state is NodeState.DOWN


def test_other_node_states_of_22_05() -> None:
    joined = nodes("slurm-22.05.8", "sinfo-joined-json")
    assert (joined["c1"].state, joined["wn1"].state) == (NodeState.IDLE, NodeState.ALLOCATED)
    assert joined["wn2"].state is NodeState.UNKNOWN
    assert nodes("slurm-22.05.8", "sinfo-drained-json")["c1"].state is NodeState.DRAINED


@pytest.mark.parametrize(
    ("words", "allocated", "state"),
    [
        (["IDLE", "NOT_RESPONDING"], 0, NodeState.UNKNOWN),
        (["IDLE", "COMPLETING"], 0, NodeState.MIXED),
        (["IDLE", "DRAIN", "COMPLETING"], 0, NodeState.DRAINING),
        (["IDLE", "DRAIN", "NOT_RESPONDING"], 0, NodeState.DRAINED),
        (["DOWN", "DRAIN"], 0, NodeState.DOWN),
        (["IDLE", "INVALID_REG"], 0, NodeState.DOWN),
        (["IDLE", "PLANNED", "DYNAMIC_NORM"], 0, NodeState.IDLE),
        (["MIXED", "A_FLAG_OF_2030"], 1, NodeState.MIXED),
        (["FUTURE"], 0, NodeState.UNKNOWN),
    ],
)
def test_node_states(words: list[str], allocated: int, state: NodeState) -> None:
    item = json.loads(recorded("slurm-24.11.5", "scontrol-show-nodes-down-json"))["nodes"][0]
    item |= {"state": words, "alloc_cpus": allocated}
    (node,) = slurm_parse.nodes(slurm_parse.Answer("x", (24, 11), (item,)))
    assert node.state is state


@pytest.mark.parametrize(
    ("words", "state"),
    [
        ("COMPLETING", JobState.COMPLETING),
        (["COMPLETED", "COMPLETING"], JobState.COMPLETING),
        (["PENDING", "REQUEUE_HOLD"], JobState.HELD),
        (["RUNNING", "CONFIGURING"], JobState.RUNNING),
        (["A_NEW_FLAG", "TIMEOUT"], JobState.FAILED),
        ("OUT_OF_MEMORY", JobState.FAILED),
    ],
)
def test_job_states(words: str | list[str], state: JobState) -> None:
    item = json.loads(recorded("slurm-22.05.8", "squeue-json"))["jobs"][0] | {"job_state": words}
    (job,) = slurm_parse.jobs(slurm_parse.Answer("x", (22, 5), (item,)), NOW)
    assert job.state is state


@pytest.mark.parametrize("name", ["squeue-ctld-down-json", "sinfo-ctld-down-json"])
def test_an_error_inside_an_answer_is_not_an_empty_farm(name: str) -> None:
    """22.05 with slurmctld down: exit status 0 and an empty list."""
    key = "jobs" if name.startswith("squeue") else "nodes"
    with pytest.raises(LrmsUnavailable, match="slurmctld"):
        slurm_parse.answer("squeue", recorded("slurm-22.05.8", name), key)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"jobs": 5}', '{"jobs": [5]}', "null"])
def test_not_an_answer(text: str) -> None:
    with pytest.raises(LrmsError, match="squeue"):
        slurm_parse.answer("squeue", text, "jobs")


_JOB_ITEMS = [
    item
    for version in VERSIONS
    for item in json.loads(recorded(version, "squeue-json"))["jobs"][:8:3]
]
_NODE_ITEMS = [
    json.loads(recorded("slurm-22.05.8", "sinfo-draining-json"))["nodes"][2],
    json.loads(recorded("slurm-26.05.5", "scontrol-show-nodes-draining-json"))["nodes"][2],
]
_ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1-5%2", "a[1-", "wn[2-1]", "x[99999999999-0]", "...", "cpu=1,mem=1.2.3G"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["set", "infinite", "number"]), inner, max_size=3)
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("key", ["job_id", "job_state", "partition", "cpus", "submit_time", "name"])
def test_a_missing_field_of_a_job_is_named(key: str) -> None:
    item = {k: v for k, v in _JOB_ITEMS[0].items() if k != key}
    with pytest.raises(LrmsError, match=f"'{key}' is missing"):
        slurm_parse.jobs(slurm_parse.Answer("squeue", (22, 5), (item,)), NOW)


def test_a_time_limit_beyond_all_time_is_named() -> None:
    item = _JOB_ITEMS[0] | {"time_limit": 10**15}
    with pytest.raises(LrmsError, match="'time_limit' has the value 1000000000000000"):
        slurm_parse.jobs(slurm_parse.Answer("squeue", (22, 5), (item,)), NOW)
    text = json.dumps({"jobs": [item]})
    with pytest.raises(LrmsError, match="'time_limit' has the value 1000000000000000"):
        slurm_parse.jobs(slurm_parse.answer("squeue", text, "jobs"), NOW)


@given(item=st.sampled_from(_JOB_ITEMS), data=st.data())
def test_whatever_a_field_of_a_job_holds_it_is_read_or_named(
    item: dict[str, Any], data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from(sorted(item)))
    changed = {k: v for k, v in item.items() if k != key}
    if data.draw(st.booleans()):
        changed[key] = data.draw(_ODD)
    said = complaint(
        lambda: slurm_parse.jobs(slurm_parse.Answer("squeue", (0, 0), (changed,)), NOW)
    )
    assert not said or "squeue" in said or "host list" in said


@given(item=st.sampled_from(_NODE_ITEMS), data=st.data())
def test_whatever_a_field_of_a_node_holds_it_is_read_or_named(
    item: dict[str, Any], data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from(sorted(item)))
    changed = {k: v for k, v in item.items() if k != key}
    if data.draw(st.booleans()):
        changed[key] = data.draw(_ODD)
    said = complaint(lambda: slurm_parse.nodes(slurm_parse.Answer("sinfo", (0, 0), (changed,))))
    assert not said or key in said


@given(st.text(alphabet='{}[]":,jobsnde0123456789errorsnull ', max_size=60))
def test_any_text_is_an_answer_or_an_lrms_error(text: str) -> None:
    said = complaint(lambda: slurm_parse.answer("squeue", text, "jobs"))
    assert not said or "squeue" in said


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("wn1", ("wn1",)),
        ("wn[1-3]", ("wn1", "wn2", "wn3")),
        ("wn[01-02,09],head", ("wn01", "wn02", "wn09", "head")),
        ("a,b[7],c", ("a", "b7", "c")),
        ("r[1-2]n[3-4]", ("r1n3", "r1n4", "r2n3", "r2n4")),
        ("cms-aws-[1-2]x", ("cms-aws-1x", "cms-aws-2x")),
    ],
)
def test_host_lists(text: str, names: tuple[str, ...]) -> None:
    assert slurm_parse.expand_hosts(text) == names


@given(st.lists(st.integers(0, 500), min_size=1, max_size=20, unique=True))
def test_a_host_list_comes_back(numbers: list[int]) -> None:
    names = tuple(f"n{number}" for number in numbers)
    assert slurm_parse.expand_hosts(f"n[{','.join(map(str, numbers))}]") == names


@pytest.mark.parametrize(
    ("text", "tasks"),
    [
        ("1-5%2", ((1, 2, 3, 4, 5), 2)),
        ("1-9:4", ((1, 5, 9), None)),
        ("7", ((7,), None)),
        ("1,3,...", ((1, 3), None)),
        ("0-99999999", (tuple(range(10)), None)),
    ],
)
def test_task_lists(text: str, tasks: tuple[tuple[int, ...], int | None]) -> None:
    assert slurm_parse.expand_tasks(text, 10) == tasks


@pytest.mark.parametrize("version", VERSIONS)
def test_the_quick_reading_is_the_careful_one(version: str) -> None:
    """Of a whole answer, and of the same answer as objects with all their fields."""
    text = recorded(version, "squeue-json")
    quick = slurm_parse.answer("squeue", text, "jobs")
    assert all(isinstance(item, JobRecord) for item in quick.items)
    careful = slurm_parse.Answer("squeue", quick.version, tuple(json.loads(text)["jobs"]))
    assert slurm_parse.jobs(quick, NOW) == slurm_parse.jobs(careful, NOW)


@given(item=st.sampled_from(_JOB_ITEMS), data=st.data())
def test_whatever_a_field_holds_both_readings_say_the_same(
    item: dict[str, Any], data: st.DataObject
) -> None:
    changed = dict(item)
    for key in data.draw(st.lists(st.sampled_from(sorted(item)), max_size=2)):
        changed[key] = data.draw(_ODD | st.sampled_from([other.get(key) for other in _JOB_ITEMS]))
    text = json.dumps({"jobs": [changed]})

    def read(reply: slurm_parse.Answer) -> Any:
        said = complaint(lambda: slurm_parse.jobs(reply, NOW))
        # What is no number may have been spelt out with all that a number has.
        return said.partition(" has the value")[0] or slurm_parse.jobs(reply, NOW)

    careful = slurm_parse.Answer("squeue", (0, 0), (json.loads(text)["jobs"][0],))
    assert read(slurm_parse.answer("squeue", text, "jobs")) == read(careful)


@pytest.mark.parametrize("field", ["cpus", "node_count", "time_limit", "job_id", "submit_time"])
def test_what_counts_less_than_nothing_is_read_by_the_careful_reader(field: str) -> None:
    text = json.dumps({"jobs": [_JOB_ITEMS[0] | {field: -1}]})
    careful = slurm_parse.Answer("squeue", (0, 0), tuple(json.loads(text)["jobs"]))

    def read(reply: slurm_parse.Answer) -> Any:
        return complaint(lambda: slurm_parse.jobs(reply, NOW)) or slurm_parse.jobs(reply, NOW)

    assert read(slurm_parse.answer("squeue", text, "jobs")) == read(careful)


def test_not_a_number_is_read_by_the_careful_reader() -> None:
    """22.05 writes NaN at times, which JSON has not."""
    item = json.dumps(_JOB_ITEMS[0])[:-1] + ', "billable_tres": NaN}'
    reply = slurm_parse.answer("squeue", f'{{"jobs": [{item}]}}', "jobs")
    assert len(slurm_parse.jobs(reply, NOW)) == 1
