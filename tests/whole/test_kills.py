"""SIGKILL at seeded moments across bursts: no job lost or run twice, nothing left.

Half of the moments are told in time since the daemon's process began: they fall into its start.
The other half come a while after a lease was seen in a state that no kill has met yet: into the
launch, the boot, the join, the run and the return of machines. Before the queue runs dry the next
flash is submitted, so that every kill finds work going on.
"""

from __future__ import annotations

import random
import subprocess
from contextlib import suppress
from functools import partial

import pytest

from lab.process import CommandTimeoutError, wait_for
from lab.scenarios import work
from lab.scenarios.story import Story

pytestmark = [pytest.mark.whole, pytest.mark.xdist_group("whole"), pytest.mark.timeout(900)]

SEED = 2012
FLASH = 8
ENDED = {"gone", "failed"}


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.long)])
def test_killed_at_any_moment_every_job_runs_once_and_nothing_is_left(
    story: Story, kills: int
) -> None:
    moments = random.Random(SEED)
    flashes: list[tuple[int, list[str]]] = []
    tasks = work.flash(FLASH, size=120_000)
    right = work.expected(tasks)
    seen_states: set[str] = set()

    def submit() -> None:
        ids = story.submit(tasks)
        flashes.append((len(flashes), ids))

    def starts() -> int:
        return story.daemon_log().count("event=started")

    def begun(before: int) -> bool:
        return starts() > before

    def alive() -> set[str]:
        return {lease["state"] for lease in story.leases()} - ENDED

    def something_new() -> bool:
        return bool(alive() - seen_states)

    first_directory = story.directories
    submit()
    for kill in range(kills):
        seen = starts()
        story.start_daemon(wait=False)
        if kill % 2:
            limit = moments.uniform(0.1, 3)
        else:
            wait_for(partial(begun, seen), 90, what="the daemon's loops", interval=0.2)
            with suppress(CommandTimeoutError):  # all of them were met: then at any moment
                wait_for(something_new, 45, interval=0.2)
            limit = moments.uniform(0, 4)
        with pytest.raises(subprocess.TimeoutExpired):  # else it ended by itself: a defect
            story.daemon.wait(limit)
        seen_states |= alive()
        story.kill_daemon()
        ended = story.finished()
        if sum(job not in ended for job in flashes[-1][1]) <= FLASH // 2:
            submit()
    story.start_daemon()
    everything = [job for _, ids in flashes for job in ids]
    finished = story.farm.wait_finished(everything, 300)
    story.wait_returned(240)

    assert [job.id for job in finished] == everything
    assert {job.state for job in finished} == {"COMPLETED"}
    for number, ids in flashes:
        directory = first_directory + number + 1
        for job in ids:
            task = story.tasks[job]
            good, problem = work.judge(task, story.result(job, directory), right[task.index])
            assert good, problem
            assert story.runs(job, directory) == 1, (
                f"job {job} ran {story.runs(job, directory)} times"
            )
    left = story.leftovers()
    assert (left.instances, left.nodes, left.leases) == (0, 0, 0)
    # A lease is gone first, and then its tunnel: no other order keeps a machine from being unheard.
    wait_for(lambda: not story.tunnel_links(), 30, what="the last tunnel gone", interval=0.5)
    # Positive control: the kills fell into bursts, not into idleness.
    launched = [lease for lease in story.leases() if lease["machine"]]
    assert launched, "no machine was ever rented: the kills met nothing"
    assert len(seen_states) >= 2, f"the kills met only leases that were {seen_states}"
