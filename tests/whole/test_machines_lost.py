"""Machines that are taken back, that never come up, and that are cut off, in the real lab.

Each story has the site file that it needs, and leaves the lab as it found it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from lab.cloud.cloud import NOTICE
from lab.farm import FinishedJob
from lab.process import wait_for
from lab.scenarios.story import Story, worker_of
from tests.whole.conftest import TESTS_POLICY

pytestmark = [
    pytest.mark.whole,
    pytest.mark.long,
    pytest.mark.xdist_group("whole"),
    pytest.mark.timeout(1200),
]

JOBS = 8  # two run on the farm, four on two borrowed machines, and two more would like one
K = 2  # failures_to_pause of the tests' policy
POOL = "cms-aws"


@contextmanager
def site_of(story: Story, **changes: Any) -> Iterator[set[str]]:
    """The daemon with another site file, nothing held against the pool; the leases known so far."""
    story.write_site_file(**changes)
    try:
        story.start_daemon()
        story.dvn("burst", "resume")
        yield {lease["id"] for lease in story.leases()}
        story.dvn("burst", "resume")
    finally:
        story.kill_daemon()
        story.write_site_file()


def running(story: Story) -> dict[str, set[str]]:
    """The jobs that run now, by node, as Slurm says."""
    said = story.head.run("squeue", "-h", "-t", "R", "-o", "%N %i").stdout
    found: dict[str, set[str]] = {}
    for line in said.splitlines():
        node, job = line.split()
        found.setdefault(node, set()).add(job)
    return found


def busy_machine(story: Story, before: set[str]) -> tuple[dict[str, Any], set[str]]:
    """A new lease on whose machine jobs run, and these jobs."""

    def found() -> tuple[dict[str, Any], set[str]] | None:
        jobs = running(story)
        for lease in story.leases():
            if lease["id"] not in before and lease["state"] == "joined" and jobs.get(lease["node"]):
                return lease, jobs[lease["node"]]
        return None

    return wait_for(found, 300, what="a job on a borrowed machine", interval=0.5)


class Patient:
    """Jobs that run until they are told to end: so what happens does not hang on how fast the
    machine is. Each writes its end to a file of its own."""

    SCRIPT = """#!/bin/sh
#SBATCH --ntasks=1 --cpus-per-task=1 --time=60 --output=/dev/null
until [ -e "$HOME/go" ]; do sleep 1; done
hostname >> "$HOME/ran-$SLURM_JOB_ID"
"""

    def __init__(self, story: Story, count: int, user: str = "alice") -> None:
        self._story, self._home = story, f"/home/{user}"
        story.head.run("rm", "-f", f"{self._home}/go")
        self.ids = story.farm.sbatch_many(user, self.SCRIPT, [()] * count)

    def release(self) -> None:
        self._story.head.write(f"{self._home}/go", "")

    def wait_completed(self) -> list[FinishedJob]:
        """Their last records; a job that was queued again has earlier ones, which do not count."""
        story = self._story

        def done() -> bool:
            last = story.finished()
            return all(job in last and last[job].state == "COMPLETED" for job in self.ids)

        wait_for(done, 400, what=f"jobs {' '.join(self.ids)} completed", interval=1.0)
        for job in self.ids:
            ran = story.head.read(f"{self._home}/ran-{job}").splitlines()
            assert len(ran) == 1, f"job {job} ran to its end {len(ran)} times: {ran}"
        last = story.finished()
        return [last[job] for job in self.ids]


def replacement(story: Story, known: set[str]) -> dict[str, Any]:
    """The next machine that joins."""

    def joined() -> dict[str, Any] | None:
        new = (lease for lease in story.leases() if lease["id"] not in known)
        return next((lease for lease in new if lease["joined"]), None)

    return wait_for(joined, 300, what="a replacement that joins", interval=1.0)


def lease_of(story: Story, lease_id: str) -> dict[str, Any]:
    return next(lease for lease in story.leases() if lease["id"] == lease_id)


def assert_nothing_left(story: Story) -> None:
    story.wait_returned(240)
    left = story.leftovers()
    assert (left.instances, left.nodes, left.leases) == (0, 0, 0)


def test_a_spot_machine_is_gone_before_it_is_taken_back_and_replaced_elsewhere(
    story: Story,
) -> None:
    """EC2 tells the machine two minutes before, by its metadata, and nobody else."""
    types = ("c5.large", "m5.large")
    with site_of(story, types=types, spot="only") as before:
        work = Patient(story, JOBS)
        lease, jobs = busy_machine(story, before)
        known = {one["id"] for one in story.leases()}
        machine = lease["machine"]
        deadline = datetime.now(UTC) + NOTICE
        story.cloud.interrupt(machine)

        wait_for(
            lambda: story.cloud.backend.states()[machine] == "terminated",
            NOTICE.total_seconds() + 30,
            what=f"the end of {machine}",
            interval=0.5,
        )
        (charge,) = (c for c in story.cloud.backend.ledger.charges if c.instance == machine)
        assert charge.ended is not None
        assert charge.ended < deadline, "it was returned before EC2 took it"
        assert lease_of(story, lease["id"])["failure"]["kind"] == "interrupted"

        other = replacement(story, known)
        assert (other["provider"], other["type"]) != (lease["provider"], lease["type"])

        work.release()
        work.wait_completed()
        records = [record for record in story.farm.finished() if record.id in jobs]
        assert "NODE_FAIL" not in {record.state for record in records}, (
            "the jobs that were on it were queued again, none was lost with its node"
        )
        assert_nothing_left(story)


def test_a_bootstrap_that_never_works_pauses_the_pool_and_the_jobs_run_here(story: Story) -> None:
    """User data fails in every machine: K of them are paid for, and the reason is told."""
    ever = set(story.cloud.backend.states())
    story.cloud.faults.user_data_fails = True
    with site_of(story, policy={**TESTS_POLICY, "boot_timeout": "20s"}) as before:
        work = Patient(story, JOBS)

        def paused() -> str:
            told = str(story.ask("burst", "explain", POOL))
            return told if "pauses until" in told else ""

        pool = wait_for(paused, 300, what="the pool's pause", interval=1.0)
        assert f"after {K} failures in a row" in pool
        assert "bootstrap" in pool
        assert "console" in pool, "the answer says where to look"

        # The control: the queue still wants machines, and is told why there is none.
        def told() -> bool:
            job = str(story.ask("burst", "explain", work.ids[-1]))
            return "pauses until" in job and "bootstrap" in job

        wait_for(told, 60, what="the reason in the answer about a waiting job", interval=1.0)

        work.release()
        ended = work.wait_completed()
        assert {worker_of(record.nodes) for record in ended} == {True}
        assert len(set(story.cloud.backend.states()) - ever) == K, "not one more was launched"
        new = [lease for lease in story.leases() if lease["id"] not in before]
        assert [lease["failure"]["kind"] for lease in new] == ["bootstrap"] * K
        assert_nothing_left(story)


@contextmanager
def cut_off(story: Story, address: str) -> Iterator[None]:
    """The internet drops all packets of this address, and the EC2 API answers nobody: the gateway
    can neither hear its machine nor end it."""
    rules = f"""table ip lab_cut {{
      chain forward {{
        type filter hook forward priority -300; policy accept;
        ip saddr {address} drop
        ip daddr {address} drop
      }}
    }}
    """
    story.internet.run("nft", "-f", "-", input=rules)
    story.cloud.faults.api_down = True
    try:
        yield
    finally:
        story.cloud.faults.api_down = False
        story.internet.run("nft", "delete", "table", "ip", "lab_cut")


def test_a_machine_that_is_cut_off_powers_itself_off_and_is_replaced(story: Story) -> None:
    watchdog = 150.0  # also how long a machine may take to enrol, on a slow emulated processor
    with site_of(story, watchdog=f"{watchdog:.0f}s") as before:
        work = Patient(story, JOBS)
        lease, _ = busy_machine(story, before)
        known = {one["id"] for one in story.leases()}
        machine = lease["machine"]
        with cut_off(story, lease["underlay"]):
            began = time.monotonic()
            # It asks every 5 to 8 s, waits 10 s for an answer, and lets `watchdog` pass.
            wait_for(
                lambda: story.cloud.backend.states()[machine] == "terminated",
                watchdog + 60,
                what=f"{machine} off by itself",
                interval=0.5,
            )
            took = time.monotonic() - began
        assert took > watchdog / 2, "control: it did not end for another reason"
        (reservation,) = story.cloud.client().describe_instances(InstanceIds=[machine])[
            "Reservations"
        ]
        (instance,) = reservation["Instances"]
        assert instance["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"

        replacement(story, known)
        assert lease_of(story, lease["id"])["failure"]["kind"] == "lost"
        work.release()
        work.wait_completed()
        assert_nothing_left(story)
