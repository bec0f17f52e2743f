"""The bench of scale measures what it says: texts as Slurm's, and peers that may be missing."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench.scale import batch, command, parse, peers, spread
from burst.model import JobState, NodeState


@pytest.mark.parametrize("version", parse.VERSIONS)
def test_a_made_snapshot_reads_as_what_it_was_made_of(version: str) -> None:
    jobs, nodes = parse.read(parse.text_of_jobs(version, 40, 8), parse.text_of_nodes(version, 8))
    assert [node.name for node in nodes] == [f"wn{number:05}" for number in range(1, 9)]
    assert {node.state for node in nodes} <= {NodeState.MIXED, NodeState.ALLOCATED}
    assert [job.id for job in jobs] == [str(number) for number in range(1, 41)]
    assert all(job.state is JobState.RUNNING for job in jobs[:8])
    assert [job.node_names for job in jobs[:8]] == [(node.name,) for node in nodes]
    assert all(job.state is JobState.PENDING for job in jobs[8:])
    assert all(job.memory_mb == 2048 * job.cores for job in jobs)
    assert len({job.cores for job in jobs}) > 2, "the control: jobs differ"


@pytest.mark.parametrize("version", parse.VERSIONS)
def test_a_made_job_is_as_much_text_as_a_recorded_one(version: str) -> None:
    path = parse.RECORDED / f"slurm-{version}" / "squeue-json.txt"
    recorded = path.read_text(encoding="utf-8")
    each = len(recorded) / len(json.loads(recorded)["jobs"])
    assert len(parse.text_of_jobs(version, 200, 20)) / 200 == pytest.approx(each, rel=0.15)


def test_each_version_is_measured_by_the_clock_and_alone() -> None:
    found = parse.one("22.05.8", 40, 8)
    least, most = found["cpu_seconds_spread"]
    assert 0 < least <= found["cpu_seconds"] <= most
    assert spread.middle([3, 1, 2]) == 2
    assert spread.ends([3, 1, 2]) == [1, 3]


def test_a_flash_is_launched_to_its_last_machine() -> None:
    found = batch.one(250)
    assert (found["machines"], found["provider_calls"]) == (250, 2)


def test_the_report_has_the_peers_beside_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs: dict[str, Any] = {"parallelcluster": {"cpu_seconds": 1.5}, "tardis": {"error": "x"}}
    monkeypatch.setattr(batch, "measure", lambda: {"flash_calls": 5, "peers": theirs})
    file = tmp_path / "scale.json"
    assert command.run(argparse.Namespace(only="batch", json=file)) == 0
    figures = json.loads(file.read_text())
    assert (figures["flash_calls"], figures["peers"]) == (5, theirs)
    shown = capsys.readouterr().out
    assert "peer: parallelcluster" in shown
    assert "1.5" in shown


def test_peers_that_cannot_be_installed_are_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(command: list[str], seconds: int) -> str:
        raise subprocess.CalledProcessError(1, command, stderr="...\nERROR: no such host\n")

    monkeypatch.setattr(peers, "HOME", tmp_path / "peers")
    monkeypatch.setattr(peers, "_call", refused)
    monkeypatch.setattr("venv.create", lambda *_, **__: None)
    found = peers.measure(10, 10)
    problem = "its packages could not be installed: ERROR: no such host"
    assert found == {"parallelcluster": {"error": problem}, "tardis": {"error": problem}}
    assert not (tmp_path / "peers").exists()
