"""What every LRMS must do, as one test-suite: the same stories against stand-ins and real daemons.

A `Ground` is a batch system with one node of the site's own (2 cores) on which the stories are
played. Subclass `LrmsContract`, name the class Test..., and give it a fixture `ground`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pytest

from burst.lrms.base import Announces, Lrms, LrmsError, LrmsUnavailable, Requeues
from burst.model import Farm, Job, JobState, Node, NodeState

CLOSED = (NodeState.DRAINING, NodeState.DRAINED)
DEAD = (NodeState.DOWN, NodeState.UNKNOWN)
WAITING = (JobState.PENDING, JobState.HELD)
ENDED = (JobState.DONE, JobState.FAILED)
BUSY = "Resource temporarily unavailable"


class Ground(Protocol):
    """A batch system to try an adapter on; real, or a stand-in."""

    lrms: Lrms
    local: str  # the partition or queue of the site's own node
    burst: str  # that of borrowed machines
    keeps_drain_reason: bool  # whether it can tell our drains from an operator's after a restart

    def submit(self, *, cores: int = 1, held: bool = False, tasks: int = 0) -> list[str]:
        """As user alice, to the local queue; ids of the job, or of each task of an array."""

    def start_daemon(self, node: str, cores: int) -> None:
        """Bring a borrowed machine's daemon up; announced already where that is needed."""

    def until(self, seen: Callable[[Farm], bool], what: str) -> Farm:
        """The first snapshot of which `seen` is true; fails after a limit."""

    def end(self, job_id: str) -> None:
        """Have a running job end with success."""

    def power_off(self, node: str) -> None:
        """Pull the plug."""

    def give_up_lost(self) -> None:
        """Let so much time pass that a lost node is given up."""

    def server(self, *, up: bool) -> None:
        """Stop or start the server; nothing of what it knows is lost."""

    def operator_drain(self, node: str) -> None:
        """Somebody else closes the node, with a reason of their own where there is one."""


def job(farm: Farm, job_id: str) -> Job | None:
    return next((one for one in farm.jobs if one.id == job_id), None)


def node(farm: Farm, name: str) -> Node | None:
    return next((one for one in farm.nodes if one.name == name), None)


def join(ground: Ground, name: str = "cloud1", cores: int = 2) -> Farm:
    """What the join of a borrowed machine does, as far as the LRMS sees it."""
    if isinstance(ground.lrms, Announces):
        ground.lrms.announce(name, address="10.77.0.21", cores=cores, partition=ground.burst)
        ground.lrms.announce(name, address="10.77.0.21", cores=cores, partition=ground.burst)
    ground.start_daemon(name, cores)
    return ground.until(lambda farm: is_open(farm, name), f"{name} takes jobs")


def is_open(farm: Farm, name: str) -> bool:
    found = node(farm, name)
    return found is not None and found.state not in (*CLOSED, *DEAD)


def state(farm: Farm, job_id: str) -> JobState | None:
    found = job(farm, job_id)
    return None if found is None else found.state


def runs_on(farm: Farm, job_id: str, name: str) -> bool:
    found = job(farm, job_id)
    return found is not None and found.state is JobState.RUNNING and found.node_names == (name,)


def route(ground: Ground, job_id: str) -> None:
    """Under load a Slurm controller may be busy for a moment: the daemon asks again later, too."""

    def moved() -> bool:
        try:
            ground.lrms.route(job_id, ground.burst)
        except LrmsError as error:
            if BUSY not in str(error):
                raise
            return False
        return True

    if not moved():
        ground.until(lambda _: moved(), f"{job_id} to be moved")


def fill(ground: Ground) -> str:
    """A job on the site's own node that leaves no core free."""
    (blocker,) = ground.submit(cores=2)
    ground.until(lambda farm: state(farm, blocker) is JobState.RUNNING, f"{blocker} runs")
    return blocker


def over(farm: Farm, job_id: str) -> bool:
    found = job(farm, job_id)
    return found is None or found.state in ENDED


class LrmsContract:
    """Each test has the ground to itself: no job waits or runs, no borrowed node is known."""

    def test_a_snapshot_has_what_a_decision_needs(self, ground: Ground) -> None:
        blocker = fill(ground)
        (queued,) = ground.submit(cores=2)
        (held,) = ground.submit(held=True)
        farm = ground.until(lambda farm: job(farm, held) is not None, "the held job is listed")
        waiting, running, on_hold = (job(farm, one) for one in (queued, blocker, held))
        assert waiting is not None
        assert running is not None
        assert on_hold is not None
        assert (waiting.state, waiting.user, waiting.cores) == (JobState.PENDING, "alice", 2)
        assert ground.local in waiting.partitions
        assert waiting.node_names == ()
        assert waiting.started is None
        assert waiting.time_limit is not None
        assert waiting.time_limit.total_seconds() == 1200
        assert on_hold.state is JobState.HELD
        (own,) = farm.nodes
        assert running.node_names == (own.name,)
        assert running.started is not None
        assert (own.cores, own.allocated_cores, own.state) == (2, 2, NodeState.ALLOCATED)
        assert ground.local in own.partitions
        assert own.memory_mb > 0

    def test_nobody_uses_a_borrowed_node_unless_routed_there(self, ground: Ground) -> None:
        fill(ground)
        (queued,) = ground.submit()
        farm = join(ground)
        borrowed = node(farm, "cloud1")
        assert borrowed is not None
        assert (borrowed.state, borrowed.cores) == (NodeState.IDLE, 2)
        assert ground.burst in borrowed.features
        assert borrowed.partitions == (ground.burst,)
        for _ in range(3):
            farm = ground.until(lambda farm: job(farm, queued) is not None, "the job is listed")
        assert state(farm, queued) is JobState.PENDING, "it ran where nobody sent it"

    def test_the_same_job_runs_where_it_is_routed(self, ground: Ground) -> None:
        fill(ground)
        (queued,) = ground.submit()
        before = job(join(ground), queued)
        route(ground, queued)
        route(ground, queued)
        farm = ground.until(lambda farm: runs_on(farm, queued, "cloud1"), f"{queued} on cloud1")
        after = job(farm, queued)
        assert before is not None
        assert after is not None
        assert (after.id, after.user, after.name) == (before.id, before.user, before.name)
        ground.end(queued)
        ground.until(lambda farm: over(farm, queued), f"{queued} has ended")
        route(ground, queued)  # ended: quiet

    def test_a_route_can_be_taken_back(self, ground: Ground) -> None:
        """The borrowed node is closed meanwhile: Grid Engine and Slurm 24.11 refuse to route where
        there is no node at all."""
        fill(ground)
        (queued,) = ground.submit(cores=2)
        join(ground)
        ground.lrms.drain("cloud1", "for a moment")
        ours = node(ground.until(lambda farm: drained(farm, "cloud1"), "drained"), "cloud1")
        assert ours is not None
        route(ground, queued)
        routed = job(ground.lrms.snapshot(), queued)
        assert routed is not None
        assert ground.burst in routed.partitions
        ground.lrms.unroute(queued, ground.burst)
        ground.lrms.unroute(queued, ground.burst)
        back = job(ground.lrms.snapshot(), queued)
        assert back is not None
        assert (back.partitions, back.home) == ((ground.local,), "")
        ground.lrms.admit(ours)
        ground.until(lambda farm: is_open(farm, "cloud1"), "open again")
        assert state(ground.lrms.snapshot(), queued) is JobState.PENDING

    def test_a_job_never_loses_its_last_queue(self, ground: Ground) -> None:
        fill(ground)
        (queued,) = ground.submit()
        found = job(ground.lrms.snapshot(), queued)
        assert found is not None
        with_home = found.home != ""
        if with_home or found.partitions != (ground.local,):
            pytest.fail(f"a job just submitted has {found.partitions} and the home {found.home!r}")
        with pytest.raises(LrmsError, match="only"):
            ground.lrms.unroute(queued, ground.local)
        still = job(ground.lrms.snapshot(), queued)
        assert still is not None
        assert still.partitions == (ground.local,)

    def test_running_and_unknown_jobs_are_left_alone(self, ground: Ground) -> None:
        blocker = fill(ground)
        before = job(ground.lrms.snapshot(), blocker)
        route(ground, blocker)
        ground.lrms.unroute(blocker, ground.local)
        after = job(ground.lrms.snapshot(), blocker)
        assert before is not None
        assert after is not None
        assert after.partitions == before.partitions
        assert after.node_names == before.node_names
        nobody = blocker.replace(blocker.partition(".")[0].partition("[")[0], "987654", 1)
        route(ground, nobody)

    def test_a_held_job_does_not_start(self, ground: Ground) -> None:
        (held,) = ground.submit(held=True)
        join(ground)
        route(ground, held)
        assert state(ground.lrms.snapshot(), held) is JobState.HELD

    def test_tasks_of_an_array_keep_their_ids(self, ground: Ground) -> None:
        fill(ground)
        tasks = ground.submit(tasks=2)
        farm = ground.until(lambda farm: job(farm, tasks[1]) is not None, "the tasks are listed")
        assert all(state(farm, task) is JobState.PENDING for task in tasks)
        join(ground)
        for task in tasks:
            route(ground, task)
        ground.until(
            lambda farm: all(runs_on(farm, task, "cloud1") for task in tasks), "both on cloud1"
        )

    def test_a_drained_node_takes_nothing_and_loses_nothing(self, ground: Ground) -> None:
        fill(ground)
        first, second = (ground.submit()[0] for _ in range(2))
        join(ground)
        route(ground, first)
        ground.until(lambda farm: runs_on(farm, first, "cloud1"), f"{first} on cloud1")
        ground.lrms.drain("cloud1", "idle for\n5 min")
        farm = ground.until(lambda farm: closed(farm, "cloud1"), "cloud1 drains")
        draining = node(farm, "cloud1")
        assert draining is not None
        assert draining.state is NodeState.DRAINING
        if ground.keeps_drain_reason:
            assert draining.reason == "dvn: idle for 5 min"
        ground.lrms.drain("cloud1", "again")
        route(ground, second)
        farm = ground.until(lambda farm: job(farm, second) is not None, "the job is listed")
        assert state(farm, second) is JobState.PENDING, "a draining node took a job"
        assert runs_on(farm, first, "cloud1"), "draining cost a running job"
        ground.end(first)
        ground.until(lambda farm: drained(farm, "cloud1"), "cloud1 is drained")
        ground.lrms.drain("nosuch", "nobody is there")

    def test_our_own_drain_is_lifted_nobody_elses(self, ground: Ground) -> None:
        ours = node(join(ground), "cloud1")
        assert ours is not None
        ground.lrms.admit(ours)  # open: nothing to do
        ground.lrms.drain("cloud1", "idle")
        ours = node(ground.until(lambda farm: drained(farm, "cloud1"), "drained"), "cloud1")
        assert ours is not None
        ground.lrms.admit(ours)
        ground.until(lambda farm: is_open(farm, "cloud1"), "open again")
        ground.operator_drain("cloud1")
        theirs = node(ground.until(lambda farm: drained(farm, "cloud1"), "drained"), "cloud1")
        assert theirs is not None
        ground.lrms.admit(theirs)
        theirs = node(ground.lrms.snapshot(), "cloud1")
        assert theirs is not None
        assert theirs.state is NodeState.DRAINED

    def test_only_an_empty_borrowed_node_is_removed(self, ground: Ground) -> None:
        fill(ground)
        (queued,) = ground.submit()
        own = join(ground).nodes
        route(ground, queued)
        ground.until(lambda farm: runs_on(farm, queued, "cloud1"), f"{queued} on cloud1")
        with pytest.raises(LrmsError, match="busy"):
            ground.lrms.remove("cloud1")
        assert runs_on(ground.lrms.snapshot(), queued, "cloud1")
        ground.end(queued)
        ground.lrms.drain("cloud1", "leaves")
        ground.until(lambda farm: drained(farm, "cloud1"), "cloud1 is drained")
        ground.lrms.remove("cloud1")
        ground.until(lambda farm: node(farm, "cloud1") is None, "cloud1 is forgotten")
        ground.lrms.remove("cloud1")
        ground.lrms.remove("nosuch")
        site = next(one.name for one in own if one.name != "cloud1")
        with pytest.raises(LrmsError):
            ground.lrms.remove(site)
        assert node(ground.lrms.snapshot(), site) is not None

    def test_a_running_job_can_be_queued_again(self, ground: Ground) -> None:
        lrms = ground.lrms
        assert isinstance(lrms, Requeues)
        fill(ground)
        (queued,) = ground.submit()
        join(ground)
        lrms.route(queued, ground.burst)
        ground.until(lambda farm: runs_on(farm, queued, "cloud1"), f"{queued} on cloud1")
        ground.lrms.drain("cloud1", "the provider takes it back")
        ground.until(lambda farm: closed(farm, "cloud1"), "cloud1 drains")
        lrms.requeue(queued)
        farm = ground.until(lambda farm: state(farm, queued) in WAITING, f"{queued} waits")
        again = job(farm, queued)
        assert again is not None
        assert again.node_names == ()
        lrms.requeue(queued)  # it waits: nothing to do

    def test_power_lost_is_seen_and_no_job_is_lost(self, ground: Ground) -> None:
        fill(ground)
        (queued,) = ground.submit()
        join(ground)
        route(ground, queued)
        ground.until(lambda farm: runs_on(farm, queued, "cloud1"), f"{queued} on cloud1")
        ground.power_off("cloud1")
        ground.give_up_lost()
        ground.until(lambda farm: dead(farm, "cloud1"), "cloud1 is known to be dead")
        lrms = ground.lrms
        if state(lrms.snapshot(), queued) is JobState.RUNNING:
            assert isinstance(lrms, Requeues)
            lrms.requeue(queued)
        ground.until(lambda farm: state(farm, queued) in WAITING, f"{queued} waits again")
        ground.lrms.remove("cloud1")
        farm = ground.until(lambda farm: node(farm, "cloud1") is None, "cloud1 is forgotten")
        assert state(farm, queued) in WAITING

    def test_a_server_that_is_away_is_said_to_be(self, ground: Ground) -> None:
        blocker = fill(ground)
        (queued,) = ground.submit()
        before = ground.until(lambda farm: job(farm, queued) is not None, "the job is listed")
        ground.server(up=False)
        try:
            with pytest.raises(LrmsUnavailable):
                ground.lrms.snapshot()
            with pytest.raises(LrmsUnavailable):
                ground.lrms.drain("cloud1", "idle")
            with pytest.raises(LrmsUnavailable):
                ground.lrms.remove("cloud1")
        finally:
            ground.server(up=True)
        after = ground.until(lambda farm: state(farm, blocker) is JobState.RUNNING, "it is back")
        assert {one.id for one in after.jobs} >= {blocker, queued}
        assert job(after, queued) == job(before, queued) or state(after, queued) in WAITING

    @pytest.mark.parametrize("name", ["", "c1 state=resume", "c1\nshutdown", "-x", "c1;id", "@a"])
    def test_names_cannot_smuggle_options(self, ground: Ground, name: str) -> None:
        with pytest.raises(LrmsError, match="not one"):
            ground.lrms.remove(name)
        with pytest.raises(LrmsError, match="not one"):
            ground.lrms.drain(name, "idle")
        with pytest.raises(LrmsError, match="not one"):
            route(ground, name)


def closed(farm: Farm, name: str) -> bool:
    found = node(farm, name)
    return found is not None and found.state in CLOSED


def drained(farm: Farm, name: str) -> bool:
    found = node(farm, name)
    return found is not None and found.state is NodeState.DRAINED


def dead(farm: Farm, name: str) -> bool:
    found = node(farm, name)
    return found is not None and found.state in DEAD
