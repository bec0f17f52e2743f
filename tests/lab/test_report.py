"""The demo's verdict must be able to say no: each complaint is provoked once."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from xml.etree import ElementTree

import pytest

from lab.scenarios import pictures, report, work

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def job(number: int, where: report.Where) -> report.JobRow:
    return report.JobRow(
        str(number), at(0), at(5), at(15), "wn1" if where == "local" else "cms-1", where,
        "COMPLETED", result_ok=True,
    )  # fmt: skip


LEASE = report.LeaseRow(
    "ab" * 16, "aws", "i-1", "cms-1", "gone", at(1), at(2), at(3), at(4), at(20), at(25),
    Decimal("0.01"),
)  # fmt: skip
GOOD = report.Report(
    jobs=(job(1, "local"), job(2, "remote")),
    leases=(LEASE,),
    gre=report.Traffic(10, 1000),
    other_traffic={"TLS": report.Traffic(5, 500)},
    makespan_s=report.Makespan(15, 30),
    leftovers=report.Leftovers(0, 0, 0, 0, 0),
    cost=Decimal("0.01"),
    currency="USD",
    phases_s={"burst": 15.0},
)


def test_a_good_story_is_ok_and_says_so() -> None:
    assert GOOD.complaints == ()
    assert "All jobs right, nothing left behind." in report.text(GOOD)
    assert json.loads(GOOD.to_json())["ok"] is True


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"jobs": ()}, "no job was seen"),
        ({"jobs": (replace(job(1, "remote"), state="FAILED"),)}, "job 1 ended FAILED"),
        (
            {"jobs": (replace(job(1, "remote"), result_ok=False, problem="says 3"),)},
            "job 1: says 3",
        ),
        ({"jobs": (job(1, "local"), job(2, "local"))}, "only 0 of 2 jobs ran remote"),
        ({"gre": report.Traffic(0, 0)}, "no GRE packet"),
        ({"makespan_s": report.Makespan(30, 30)}, "bursting took 30 s"),
        ({"leftovers": report.Leftovers(1, 0, 0, 0, 0)}, "left behind: 1 instances"),
        ({"leftovers": report.Leftovers(0, 0, 0, 2, 0)}, "left behind: 2 nft tables"),
    ],
)
def test_each_fault_is_a_complaint(change: dict[str, object], complaint: str) -> None:
    bad = replace(GOOD, **change)  # type: ignore[arg-type]
    assert not bad.ok
    assert any(complaint in said for said in bad.complaints), bad.complaints
    assert "NOT OK" in report.text(bad)


def test_the_json_has_what_readers_rely_on() -> None:
    content = json.loads(GOOD.to_json())
    assert content["jobs"][1].keys() >= {
        "id", "submitted", "started", "ended", "node", "where", "state", "result_ok",
    }  # fmt: skip
    assert content["leases"][0].keys() >= {
        "id", "provider", "machine", "requested", "booted", "tunnelled", "joined", "left",
        "terminated", "cost",
    }  # fmt: skip
    assert content["gre"].keys() == {"packets", "bytes"}
    assert content["makespan_s"] == {"burst": 15, "local_only": 30}
    assert content["leftovers"].keys() == {"instances", "nodes", "links", "nft_tables", "leases"}


def test_pictures_are_well_formed_svg() -> None:
    boxes = (pictures.Box("gw1", "gateway", 0, 0), pictures.Box("i-1", "<borrowed>", 1, 0))
    wires = (pictures.Wire("gw1", "i-1", "wan"), pictures.Wire("gw1", "i-1", tunnel=True))
    for svg in (pictures.timeline(GOOD), pictures.topology(boxes, wires)):
        assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "job 2 COMPLETED on cms-1" in pictures.timeline(GOOD)
    assert "nothing happened" in pictures.timeline(replace(GOOD, jobs=(), leases=()))


def test_a_wrong_or_missing_result_is_noticed() -> None:
    tasks = work.flash(2, size=100, first=100)
    right = work.expected(tasks)
    assert right == {0: 21, 1: 16}  # primes in [100, 200) and [200, 300)
    assert work.judge(tasks[0], "21\n7 wn1\n", 21) == (True, "")
    for text in (None, "", "20\n7 wn1\n", "garbage\n"):
        assert not work.judge(tasks[0], text, 21)[0]
