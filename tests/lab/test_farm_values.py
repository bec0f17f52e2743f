"""What the lab's Slurm cluster writes and reads, without a cluster."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from lab.farm import condorsite, config, gridsite, jobcomp

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


ACCOUNTED = (
    "all.q:wn1:alice:alice:primes-003:7:sge:0:1795341600:1795341603:1795341663:{failed}:0:60:"
    "59.1:0.2\n"
)


def test_a_line_of_grid_engines_accounting() -> None:
    (job,) = gridsite.parse("# Version: 8.1.9\n" + ACCOUNTED.format(failed=0))
    assert (job.id, job.user, job.name, job.state) == ("7", "alice", "primes-003", "COMPLETED")
    assert job.nodes == "wn1"
    assert job.started is not None
    assert (job.started - job.submitted).total_seconds() == 3
    assert (job.ended - job.started).total_seconds() == 60


def test_grid_engines_milliseconds_are_the_same_instants() -> None:
    seconds = gridsite.parse(ACCOUNTED.format(failed=0))
    text = ACCOUNTED.format(failed=0)
    for instant in ("1795341600", "1795341603", "1795341663"):
        text = text.replace(instant, f"{instant}250")
    assert gridsite.parse(text) == seconds


def test_a_job_that_grid_engine_calls_failed_is_not_completed() -> None:
    (job,) = gridsite.parse(ACCOUNTED.format(failed=100))
    assert job.state == "FAILED 100:0"


def test_a_line_of_accounting_that_is_still_being_written_waits() -> None:
    line = ACCOUNTED.format(failed=0)
    assert len(gridsite.parse(line + line[:40])) == 1
    with pytest.raises(ValueError, match="only 3 fields"):
        gridsite.parse("all.q:wn1:alice\n")


def test_a_job_of_htcondors_history() -> None:
    ad = {
        "ClusterId": 3, "ProcId": 0, "Owner": "alice", "JobStatus": 4, "QDate": 1795341600,
        "LastRemoteHost": "slot1_1@cms-aws-1.lab", "JobCurrentStartDate": 1795341603,
        "CompletionDate": 1795341663, "ExitCode": 0, "Arguments": "/home/alice/r/003.sh 3.0",
    }  # fmt: skip
    job = condorsite.finished_job(ad)
    assert (job.id, job.nodes, job.state) == ("3.0", "cms-aws-1", "COMPLETED")
    assert condorsite.finished_job({**ad, "JobStatus": 3}).state == "REMOVED"


def test_a_system_user_keeps_its_groups_number() -> None:
    assert config.User("sgeadmin", 101, 103).passwd.startswith("sgeadmin:x:101:103:")
    assert config.User("sgeadmin", 101, 103).group == "sgeadmin:x:103:"
