"""What the lab's Slurm cluster writes and reads, without a cluster."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from lab.farm import config, jobcomp

LINE = (
    "JobId=14 UserId=alice(2001) GroupId=alice(2001) Name=a b=c JobState=COMPLETED "
    "Partition=burst-cms,batch TimeLimit=5 StartTime=2026-11-22T10:15:09 "
    "EndTime=2026-11-22T10:15:12 NodeList=c1 NodeCnt=1 ProcCnt=1 WorkDir=/home/alice "
    "ReservationName= Tres=cpu=1,mem=50M,node=1,billing=1 Account= QOS= WcKey= Cluster=unknown "
    "SubmitTime=2026-11-22T10:15:04 EligibleTime=2026-11-22T10:15:05 {array}"
    "DerivedExitCode=0:0 ExitCode=3:0 \n"
)


def test_a_line_of_the_completion_log() -> None:
    (job,) = jobcomp.parse(LINE.format(array=""))
    assert job == jobcomp.FinishedJob(
        id="14",
        user="alice",
        name="a b=c",
        state="COMPLETED",
        nodes="c1",
        submitted=datetime(2026, 11, 22, 10, 15, 4, tzinfo=UTC),
        started=datetime(2026, 11, 22, 10, 15, 9, tzinfo=UTC),
        ended=datetime(2026, 11, 22, 10, 15, 12, tzinfo=UTC),
        exit_code=3,
    )


def test_a_task_of_an_array_has_the_id_that_squeue_shows() -> None:
    (job,) = jobcomp.parse(LINE.format(array="ArrayJobId=9 ArrayTaskId=1 "))
    assert job.id == "9_1"


def test_a_line_that_is_still_being_written_waits() -> None:
    line = LINE.format(array="")
    assert len(jobcomp.parse(line + line[:100])) == 1


def test_a_job_that_never_ran() -> None:
    line = LINE.format(array="").replace("NodeList=c1", "NodeList=(null)")
    (job,) = jobcomp.parse(line.replace("StartTime=2026-11-22T10:15:09", "StartTime=Unknown"))
    assert (job.nodes, job.started) == ("", None)


def test_a_field_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="no JobState"):
        jobcomp.parse(LINE.format(array="").replace("JobState", "Jobstate"))


def test_every_burst_partition_takes_the_nodes_with_its_feature() -> None:
    text = config.slurm_conf(
        cluster="lab",
        head="head",
        head_address="10.9.0.10",
        workers=[config.Worker("wn1", "10.9.0.11", cores=2, memory_mb=700)],
        burst_partitions=["burst-cms", "burst-atlas"],
        timing=config.Timing(slurmd_timeout=7),
    )
    lines = text.splitlines()
    assert "SlurmctldHost=head(10.9.0.10)" in lines
    assert "SlurmdTimeout=7" in lines
    assert "NodeName=wn1 NodeAddr=10.9.0.11 CPUs=2 RealMemory=700" in lines
    for name in ("burst-cms", "burst-atlas"):
        assert f"NodeSet={name} Feature={name}" in lines
        assert any(line.startswith(f"PartitionName={name} Nodes={name} ") for line in lines)
    assert sum("Default=YES" in line for line in lines) == 1


def test_users_as_passwd_lines() -> None:
    alice = config.User("alice", 2001)
    assert alice.passwd == "alice:x:2001:2001:lab user:/home/alice:/bin/bash"
    assert alice.group == "alice:x:2001:"
