"""The mixed benchmark: its figures become a table and a plot, and its weights reach the kernel."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench.mixed import report
from bench.mixed.measure import PHASES
from bench.mixed.work import cpu
from burst.lrms.command import Result
from burst.mixed.weights import RETRY, Balance, Weights, commands, write

SHARES = {"alone": 1.0, "together": 0.3, "slices": 0.5, "weights": 0.8}


def figures() -> dict[str, Any]:
    rows = [
        {"load": load, "phase": phase, "run": run, "rate": 100.0, "share": SHARES[phase]}
        for load in ("cpu", "disk")
        for phase in PHASES
        for run in range(3)
    ]
    return {
        "rows": rows,
        "weights": {"batch": 400, "machines": 100},
        "cores": 4,
        "machines_per_job": 2,
        "machines": "x",
        "notes": [],
    }


def test_the_table_has_a_line_for_each_load(capsys: pytest.CaptureFixture[str]) -> None:
    report.show(figures())
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        "cpu             1.00        0.30        0.50        0.80",
        "disk            1.00        0.30        0.50        0.80",
    ]


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    report.plot(figures(), tmp_path / "mixed.svg")
    assert "400:100" in (tmp_path / "mixed.svg").read_text()


def test_the_work_is_counted() -> None:
    assert cpu(0.01) > 0


WEIGHTS = Weights(400, 50)


def hierarchy(root: Path, *files: str) -> None:
    for side in ("system.slice", "machine.slice"):
        (root / side).mkdir()
        for name in files:
            (root / side / name).write_text("")


def test_weights_are_written_for_both_sides(tmp_path: Path) -> None:
    hierarchy(tmp_path, "cpu.weight", "io.weight", "io.bfq.weight")
    assert write(WEIGHTS, tmp_path) == []
    found = {
        file.relative_to(tmp_path).as_posix(): file.read_text() for file in tmp_path.glob("*/*")
    }
    assert found == {
        "system.slice/cpu.weight": "400",
        "system.slice/io.weight": "default 400",
        "system.slice/io.bfq.weight": "400",
        "machine.slice/cpu.weight": "50",
        "machine.slice/io.weight": "default 50",
        "machine.slice/io.bfq.weight": "50",
    }


def test_one_of_the_disks_files_is_enough_and_no_file_is_made(tmp_path: Path) -> None:
    hierarchy(tmp_path, "cpu.weight", "io.bfq.weight")
    assert write(WEIGHTS, tmp_path) == []
    assert not (tmp_path / "machine.slice/io.weight").exists()


def test_a_missing_controller_is_told(tmp_path: Path) -> None:
    hierarchy(tmp_path, "cpu.weight")
    assert [text.partition(": ")[0] for text in write(WEIGHTS, tmp_path)] == [
        str(tmp_path / "system.slice/io.weight"),
        str(tmp_path / "machine.slice/io.weight"),
    ]


@pytest.mark.parametrize("weight", [0, 10_001])
def test_weights_have_bounds(weight: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 10000"):
        Weights(batch=weight)


def test_a_unit_is_never_an_option_or_a_path() -> None:
    for name in ("-rf.slice", "../x.slice", "system", "a b.slice"):
        with pytest.raises(ValueError, match="no unit"):
            Weights(batch_slice=name)


def test_on_a_partners_host_they_are_set_over_ssh() -> None:
    ours, theirs = commands(WEIGHTS, "qemu+ssh://dvn@hv2:2222/system?no_tty=1")
    assert ours[:8] == ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-p", "2222", "--"]
    assert ours[8:] == [
        *("dvn@hv2", "systemctl", "set-property", "--runtime"),
        *("system.slice", "CPUWeight=400", "IOWeight=400"),
    ]
    assert theirs[-3:] == ["machine.slice", "CPUWeight=50", "IOWeight=50"]
    assert commands(WEIGHTS, "qemu:///system")[0][0] == "systemctl"


def test_weights_go_the_way_that_libvirt_goes() -> None:
    """A key that the URI names must be used for both, or only one of them gets through."""
    uri = "qemu+ssh://dvn@hv2:2222/system?keyfile=/etc/dvn/key&no_verify=1"
    argv = commands(WEIGHTS, uri)[0]
    before = argv[: argv.index("systemctl")]
    assert before[-2:] == ["--", "dvn@hv2"]
    assert ("-i", "/etc/dvn/key") in pairwise(before)
    assert ("-p", "2222") in pairwise(before)
    assert "StrictHostKeyChecking=no" in before
    assert "StrictHostKeyChecking=no" not in commands(WEIGHTS, "qemu+ssh://dvn@hv2/system")[0]


def test_weights_are_set_once_and_taken_back_when_mixed_mode_ends() -> None:
    told: list[str] = []
    status, now = 1, 0.0

    def run(argv: Any, given: str, timeout: Any) -> Result:
        told.append(" ".join(argv[-3:]))
        return Result(status, "", "no systemd")

    balance = Balance(WEIGHTS, "qemu:///system", run, lambda: now)
    assert "no systemd" in balance.set(True)
    assert balance.set(True) == "", "said once"
    assert len(told) == 1, "not asked with every look: it may be a login by ssh"
    status, now = 0, RETRY.total_seconds()
    assert [balance.set(True), balance.set(True), balance.set(False)] == ["", "", ""]
    assert told[1:] == [
        "system.slice CPUWeight=400 IOWeight=400",
        "machine.slice CPUWeight=50 IOWeight=50",
        "system.slice CPUWeight=100 IOWeight=100",
        "machine.slice CPUWeight=100 IOWeight=100",
    ]
