"""The Slurm adapter on a stand-in that answers as Slurm 22.05 was recorded to."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from burst.lrms import slurm
from burst.lrms.base import LrmsError, LrmsUnavailable
from burst.lrms.command import Result
from burst.lrms.slurm import Slurm, Tuning
from burst.model import JobState, Node, NodeState

DATA = Path(__file__).parent.parent / "data"
NOW = datetime.fromtimestamp(1795342510, UTC)


class Replay:
    """Answers of commands by the beginning of their text; the last match wins."""

    def __init__(self, version: str = "slurm-22.05.8") -> None:
        self.data = DATA / version
        self.calls: list[str] = []
        self.given: list[str] = []
        self.answers: dict[str, list[Result]] = {}
        self.say("squeue", self.recorded("squeue-json"))
        self.say("scontrol", "")

    def recorded(self, name: str) -> str:
        return (self.data / f"{name}.txt").read_text()

    def say(self, command: str, out: str = "", err: str = "", status: int = 0) -> None:
        """What a command says from now on; said twice: first this, then that."""
        self.answers.setdefault(command, []).append(Result(status, out, err))

    def refuse(self, command: str, err: str) -> None:
        self.answers.pop(command, None)
        self.say(command, err=err, status=1)

    def __call__(self, argv: Sequence[str], given: str, timeout: timedelta) -> Result:
        line = " ".join(argv)
        self.calls.append(line)
        self.given.append(given)
        matching = [key for key in self.answers if line.startswith(key)]
        answers = self.answers[max(matching, key=len)]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    @property
    def updates(self) -> list[str]:
        return [call for call in self.calls if call.startswith("scontrol update")]


def adapter(replay: Replay, now: Sequence[datetime] = (NOW,)) -> Slurm:
    times = list(now)
    return Slurm(
        runner=replay,
        clock=lambda: times.pop(0) if len(times) > 1 else times[0],
        wait=lambda seconds: replay.calls.append(f"wait {seconds}"),
        tuning=Tuning(attempts=3),
    )


def node(name: str, state: NodeState, reason: str = "") -> Node:
    return Node(name, state, cores=2, allocated_cores=0, memory_mb=500, reason=reason)


def test_a_snapshot_asks_for_jobs_before_nodes() -> None:
    replay = Replay()
    replay.say("sinfo", replay.recorded("sinfo-joined-json"))
    farm = adapter(replay).snapshot()
    assert replay.calls == ["squeue --all --states=all --json", "sinfo --all --json"]
    assert farm.taken == NOW
    assert {node.name for node in farm.nodes} == {"wn1", "wn2", "c1"}
    assert {job.id for job in farm.jobs} >= {"1", "9_1", "9_5", "13"}


@pytest.mark.parametrize("version", ["slurm-24.11.5", "slurm-26.05.5"])
def test_later_versions_give_nodes_by_scontrol(version: str) -> None:
    replay = Replay(version)
    replay.say("scontrol --all show nodes", replay.recorded("scontrol-show-nodes-busy-json"))
    farm = adapter(replay).snapshot()
    assert replay.calls[1] == "scontrol --all show nodes --json"
    assert farm.nodes[0].state is NodeState.ALLOCATED


def test_route_keeps_the_old_partitions_and_asks_only_when_needed() -> None:
    replay = Replay()
    lrms = adapter(replay)
    lrms.route("3", "burst-cms")
    lrms.route("3", "burst-cms")
    assert replay.updates == ["scontrol update jobid=3 partition=batch,burst-cms"]
    lrms.unroute("3", "burst-cms")
    assert replay.updates[-1] == "scontrol update jobid=3 partition=batch"
    assert len([c for c in replay.calls if c.startswith("squeue")]) == 1  # the reading is young


def test_an_old_reading_is_not_trusted() -> None:
    replay = Replay()
    lrms = adapter(replay, [NOW, NOW, NOW + timedelta(minutes=1)])
    lrms.route("3", "burst-cms")
    lrms.route("4", "burst-cms")
    assert len([c for c in replay.calls if c.startswith("squeue")]) == 2


@pytest.mark.parametrize("job_id", ["1", "4711", "9_77"])
def test_jobs_that_run_or_are_unknown_are_left_alone(job_id: str) -> None:
    replay = Replay()
    adapter(replay).route(job_id, "burst-cms")
    adapter(replay).unroute(job_id, "batch")
    assert replay.updates == []


@pytest.mark.parametrize(
    "said",
    [
        "Job is no longer pending execution for job 3",
        "Job has already finished for job 3",
        "Invalid job id specified for job 3",
    ],
)
def test_a_job_that_started_or_ended_meanwhile_is_no_error(said: str) -> None:
    replay = Replay()
    replay.refuse("scontrol update", said)
    adapter(replay).route("3", "burst-cms")
    assert len(replay.updates) == 1


def test_try_again_is_tried_again() -> None:
    replay = Replay()
    replay.refuse("scontrol update", "Resource temporarily unavailable for job 3")
    replay.say("scontrol update")
    adapter(replay).route("3", "burst-cms")
    assert len(replay.updates) == 2
    assert "wait 0.5" in replay.calls


def test_try_again_for_ever_is_an_error() -> None:
    replay = Replay()
    replay.refuse("scontrol update", "Resource temporarily unavailable for job 3")
    with pytest.raises(LrmsError, match=r"job 3 .*temporarily"):
        adapter(replay).route("3", "burst-cms")
    assert len(replay.updates) == 3


def test_a_wrong_partition_is_an_error() -> None:
    replay = Replay()
    replay.refuse("scontrol update", "Invalid partition name specified for job 3")
    with pytest.raises(LrmsError, match="Invalid partition"):
        adapter(replay).route("3", "nosuch")


def test_a_refusal_that_was_applied_all_the_same_is_a_success() -> None:
    """24.11, routing to a partition without nodes: status 1, and the list is changed."""
    replay = Replay()
    queue = json.loads(replay.recorded("squeue-json"))
    for job in queue["jobs"]:
        if job["job_id"] == 3:
            job["partition"] = "batch,burst-cms"
    replay.say("squeue", json.dumps(queue))
    replay.refuse("scontrol update", "Requested node configuration is not available for job 3")
    adapter(replay).route("3", "burst-cms")


def test_unroute_never_leaves_a_job_without_a_partition() -> None:
    with pytest.raises(LrmsError, match="would leave none"):
        adapter(Replay()).unroute("3", "batch")


def test_many_jobs_are_routed_by_one_command() -> None:
    replay = Replay()
    replay.refuse(
        "scontrol",
        "Invalid partition name specified for job 4\n"
        "9_2: Job has already finished\nJob is no longer pending execution for job 11\n",
    )
    problems = adapter(replay).route_many(
        [("3", "burst-cms"), ("4", "burst-cms"), ("9_2", "burst-cms"), ("11", "burst-cms")]
    )
    assert list(problems) == ["4"]
    assert replay.calls[1] == "scontrol"
    assert replay.given[1].splitlines() == [
        "update jobid=3 partition=batch,burst-cms",
        "update jobid=4 partition=batch,burst-cms",
        "update jobid=9_2 partition=batch,burst-cms",
        "update jobid=11 partition=batch,burst-cms",
    ]


def test_only_the_busy_ones_of_many_are_repeated() -> None:
    replay = Replay()
    replay.refuse(
        "scontrol",
        "Resource temporarily unavailable for job 3\nInvalid partition name specified for job 4\n",
    )
    replay.say("scontrol")
    problems = adapter(replay).route_many([("3", "burst-cms"), ("4", "burst-cms")])
    assert list(problems) == ["4"]
    assert replay.updates == ["scontrol update jobid=3 partition=batch,burst-cms"]


@pytest.mark.parametrize(
    "said",
    [
        "slurm_update error: Unable to contact slurm controller (connect failure)",
        "Unexpected message received for job 3",
        "slurm_update error: Socket timed out on send/recv operation",
        "scontrol: error: Munge encode failed: Failed to access munge.socket.2",
    ],
)
def test_slurmctld_not_there_is_unavailable(said: str) -> None:
    replay = Replay()
    replay.refuse("scontrol", said)
    lrms = adapter(replay)
    with pytest.raises(LrmsUnavailable):
        lrms.route("3", "burst-cms")
    with pytest.raises(LrmsUnavailable):
        lrms.drain("c1", "idle")
    with pytest.raises(LrmsUnavailable):
        lrms.remove("c1")


def test_a_snapshot_without_slurmctld_is_unavailable_not_empty() -> None:
    replay = Replay()
    replay.answers["squeue"] = [Result(0, replay.recorded("squeue-ctld-down-json"), "")]
    with pytest.raises(LrmsUnavailable):
        adapter(replay).snapshot()


def test_drain_says_whose_it_is() -> None:
    replay = Replay()
    adapter(replay).drain("c1", "idle\nsince 10:00")
    assert replay.updates == [
        "scontrol update nodename=c1 state=drain reason=dvn: idle since 10:00"
    ]


def test_drain_does_not_overwrite_the_reason_of_a_node_that_drains_already() -> None:
    replay = Replay()
    replay.say("sinfo", replay.recorded("sinfo-draining-json"))
    lrms = adapter(replay)
    lrms.snapshot()
    lrms.drain("c1", "idle")
    assert replay.updates == []


def test_draining_or_removing_an_unknown_node_is_no_error() -> None:
    replay = Replay()
    replay.refuse("scontrol update", "slurm_update error: Invalid node name specified")
    replay.say("scontrol show", replay.recorded("scontrol-show-node-nosuch"), status=1)
    lrms = adapter(replay)
    lrms.drain("nosuch", "idle")
    lrms.remove("nosuch")
    assert not any("delete" in call for call in replay.calls)


@pytest.mark.parametrize(
    ("state", "reason", "lifted"),
    [
        (NodeState.DRAINED, "dvn: idle", True),
        (NodeState.DRAINING, "dvn: idle", True),
        (NodeState.DRAINED, "disk is full", False),
        (NodeState.IDLE, "", False),
        (NodeState.DOWN, "Not responding", False),
    ],
)
def test_admit_lifts_our_own_drains_only(state: NodeState, reason: str, lifted: bool) -> None:
    replay = Replay()
    adapter(replay).admit(node("c1", state, reason))
    assert replay.updates == (["scontrol update nodename=c1 state=undrain"] if lifted else [])


@pytest.mark.parametrize("shown", ["scontrol-show-node-c1", "scontrol-show-node-c1-down"])
def test_remove_deletes_a_node_that_registered_itself(shown: str) -> None:
    replay = Replay()
    replay.say("scontrol show", replay.recorded(shown))
    adapter(replay).remove("c1")
    assert replay.calls == ["scontrol show node c1", "scontrol delete nodename=c1"]


def test_remove_is_refused_while_a_job_is_on_the_node() -> None:
    replay = Replay()
    replay.say("scontrol show", replay.recorded("scontrol-show-node-c1"))
    replay.refuse(
        "scontrol delete",
        "scontrol: error: failed to delete nodes c1\n"
        "delete_node nodename=c1: Requested nodes are busy",
    )
    with pytest.raises(LrmsError, match="busy"):
        adapter(replay).remove("c1")


def test_remove_is_done_when_somebody_else_was_faster() -> None:
    replay = Replay()
    replay.say("scontrol show", replay.recorded("scontrol-show-node-c1"))
    replay.refuse("scontrol delete", "delete_node nodename=c1: Invalid node name specified")
    adapter(replay).remove("c1")


def test_a_node_of_slurm_conf_is_never_deleted() -> None:
    replay = Replay()
    text = replay.recorded("scontrol-show-node-c1").replace("+DYNAMIC_NORM", "")
    replay.say("scontrol show", text)
    with pytest.raises(LrmsError, match=r"slurm\.conf"):
        adapter(replay).remove("c1")
    assert not any("delete" in call for call in replay.calls)


@pytest.mark.parametrize("name", ["", "c1 state=resume", "c1\nshutdown", "-x", "c1=ALL"])
def test_names_cannot_smuggle_options(name: str) -> None:
    lrms = adapter(Replay())
    with pytest.raises(LrmsError, match="not one Slurm"):
        lrms.remove(name)
    with pytest.raises(LrmsError, match="not one Slurm"):
        lrms.drain(name, "idle")
    with pytest.raises(LrmsError, match="not one Slurm"):
        lrms.route(name, "burst-cms")
    with pytest.raises(LrmsError, match="not one Slurm"):
        lrms.route("3", name)


def test_the_runner_limits_time_and_cleans_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    show = "import os; print(sorted(n for n in os.environ if n[0] == 'S'), input())"
    result = slurm.run([sys.executable, "-c", show], "given\n", timedelta(seconds=20))
    assert result.out == "['SLURM_BITSTR_LEN'] given\n"
    with pytest.raises(LrmsUnavailable, match="no answer in"):
        slurm.run([sys.executable, "-c", "input()"], "", timedelta(0))
    with pytest.raises(LrmsError, match="install slurm-client"):
        slurm.run(["no-such-squeue"], "", timedelta(seconds=5))


def test_held_jobs_may_be_unrouted() -> None:
    replay = Replay()
    lrms = adapter(replay)
    replay.say("sinfo", replay.recorded("sinfo-joined-json"))
    assert next(j for j in lrms.snapshot().jobs if j.id == "6").state is JobState.HELD
    lrms.route("6", "burst-cms")
    lrms.unroute("6", "burst-cms")
    assert replay.updates[-1] == "scontrol update jobid=6 partition=batch"
