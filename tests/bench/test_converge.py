"""The benchmark runs at all, on end states it has itself compared, and gives every figure."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.converge.content import make_site, with_another_nat, with_one_more
from bench.converge.journal import Journal
from bench.converge.script import script_of
from bench.converge.states import differences, reversed_by_nft
from dvn.compile import compile_site
from dvn.known import difference
from dvn.spec import check_site
from tests.dvn.sites import a_kernel


def test_the_sites_are_right_and_a_change_is_one_network() -> None:
    site = make_site(45)
    check_site(site)
    grown, moved = with_one_more(site, 45), with_another_nat(site, 1)
    check_site(grown)
    check_site(moved)
    found = difference(site, grown)
    assert (len(found.before), len(found.after)) == (0, 2)
    assert len(difference(site, moved).after) == 1


def test_the_script_has_what_the_engine_would_make() -> None:
    site = make_site(3)
    state = compile_site(site, a_kernel().look(site.site).host).state
    script = script_of(state)
    for link in state.links:
        assert f"link add {link.name} " in script.ip
    for address in state.addresses:
        assert f"address add {address.address} " in script.ip
    assert all(f"add table {table.family} {table.name}" in script.nft for table in state.tables)


def test_states_that_differ_are_told() -> None:
    same = {"links": ["a"], "nft": ["b"]}
    assert differences(same, same) == []
    assert differences(same, {"links": ["a"], "nft": ["c"]}) == ["only ours: b", "only theirs: c"]


def test_what_nft_itself_gets_wrong_is_counted_and_nothing_else_forgiven() -> None:
    def element(number: int, prefix: str = "10.5.24.0") -> str:
        value = {"concat": [number, {"prefix": {"addr": prefix, "len": 24}}]}
        return json.dumps({"element": value, "of": "bridge dvn-bench prefix4"}, sort_keys=True)

    def states(*theirs: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        return {"nft": [element(1), element(0x27FED4D2)]}, {"nft": [element(1), *theirs]}

    ours, theirs = states(element(0xD2D4FE27))
    assert reversed_by_nft(ours, theirs) == 1
    assert differences(ours, theirs) == []
    for wrong in (element(0xD2D4FE27, "10.5.25.0"), element(0xD2D4FE28)):
        ours, theirs = states(wrong)
        assert reversed_by_nft(ours, theirs) == 0
        assert len(differences(ours, theirs)) == 2


def test_a_measurement_that_is_stopped_has_said_what_it_saw(tmp_path: Path) -> None:
    file, lines, times = tmp_path / "figures.json", io.StringIO(), iter(range(100))
    journal = Journal(file, lambda: float(next(times)), lines)
    journal.keep({"sizes": [1, 2, 3]})
    journal.say("cold start of 2 networks", {"ours": 0.25})
    journal.keep({"cold_ratio_1000": 0.5})
    stopped = json.loads(file.read_text())
    assert stopped["cold_ratio_1000"] == 0.5
    assert stopped["sizes"] == [1, 2, 3]
    assert stopped["complete"] is False
    assert lines.getvalue().split() == [
        "2",
        "s",
        "cold",
        "start",
        "of",
        "2",
        "networks",
        "ours",
        "0.250",
        "s",
    ]
    journal.keep({}, complete=True)
    assert json.loads(file.read_text())["complete"] is True


@pytest.mark.kernel
@pytest.mark.long  # thousands of devices hold up every other test on the same kernel
@pytest.mark.timeout(300)
def test_it_runs_and_gives_its_figures(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    argv = [sys.executable, "-m", "bench", "converge", "--quick", "--only", "cold,restart,drift"]
    subprocess.run([*argv, "--json", file], check=True, timeout=280)
    figures = json.loads(file.read_text())
    assert figures["stand_in"] == {}
    for name in (
        "cold_ratio_1000",
        "noop_ratio_4000",
        "change_ms_4000",
        "restart_s_1000",
        "drift_s_1000",
    ):
        assert figures[name] > 0
    assert (figures["restart_writes"], figures["restart_packets_lost"]) == (0, 0)
    assert all(row["same_end_state"] for row in figures["by_size"].values())
