"""A flash from the quote to the bill, by the command line, against a daemon in a made-up world."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.cli.main import app
from gateway.sitefile import SiteFile
from tests.gateway.fake_daemon import write_site
from tests.gateway.test_daemon import running, wait_for
from tests.gateway.world import World


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteFile]:
    directory = tmp_path_factory.mktemp("flash")
    world = World(directory / "world.json")
    world.begin(local_nodes=2, jobs=0, seconds=1)
    site = write_site(Path(directory))
    with running(site, world) as daemon:
        wait_for("a first round", lambda: daemon.view.plan().ready)
        yield site


def dvn(site: SiteFile, *arguments: str) -> Any:
    where = ["--socket", site.gateway.socket]
    return CliRunner().invoke(app, ["burst", *arguments, *where], prog_name="dvn")


def told(site: SiteFile, *arguments: str) -> Any:
    done = dvn(site, *arguments, "-o", "json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


FLASH = ("flash", "--cores", "4", "--for", "30m", "--tenant", "cms")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cores", "4"), "a flash needs --cores, --for and --tenant"),
        (("--cores", "4", "--for", "2", "--tenant", "cms"), "'2' is not a duration"),
        (("--cores", "4", "--for", "2h", "--tenant", "cmd"), "there is no tenant 'cmd'"),
        ((*FLASH[1:], "--provider", "x"), "there is no provider 'x'; there is: aws"),
        ((*FLASH[1:], "--max-cost", "5 EUR"), "'5 EUR' is not an amount of money"),
        ((*FLASH[1:], "--max-cost", "0.01", "--yes"), "nothing could be had for this flash now"),
        (FLASH[1:], "this costs money: give --yes to ask for it"),
        (("--cancel", "nosuch"), "there is no flash 'nosuch'"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(
    site: SiteFile, arguments: tuple[str, ...], said: str
) -> None:
    done = dvn(site, "flash", *arguments)
    assert done.exit_code in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.output
    assert told(site, "flash") == []


def test_from_the_quote_to_the_bill(site: SiteFile) -> None:
    quoted = told(site, *FLASH, "--quote")
    assert quoted["flash"] is None
    assert (quoted["quote"]["got"], quoted["quote"]["parts"][0]["count"]) == (4, 2)
    assert told(site, "flash") == [], "a quote asks for nothing"

    done = dvn(site, *FLASH, "--yes")
    assert done.exit_code == 0, done.output
    assert "4 of 4 cores until" in done.stdout
    assert "4 of 4 cores joined, 0 coming" in done.stdout, "it showed the progress"
    (one,) = told(site, "flash")
    assert (one["joined"], one["state"], one["why"]["code"]) == (4, "active", "flash-served")
    assert Decimal(one["committed"]) >= Decimal(quoted["quote"]["cost"]["USD"])

    # Idle for far longer than `idle_release`, it is kept; cancelled, it is returned.
    plan = told(site, "plan")
    assert not [step for step in plan["steps"] if step["action"] == "drain"]
    assert "Flashes" not in dvn(site, "top").stderr
    shown = dvn(site, "top").stdout
    assert one["id"] in shown
    cancelled = told(site, "flash", "--cancel", one["id"][:4])
    assert cancelled["state"] == "cancelled"
    wait_for("the machines returned", lambda: not told(site, "leases"))

    past = told(site, "history")
    assert len(past) == 2
    assert all(item["ended"] and not item["outcome"] for item in past)
    bill = told(site, "cost", "--by", "provider")
    assert bill["total"]["USD"] == str(sum(Decimal(item["amount"]) for item in past))
    rows = list(csv.DictReader(io.StringIO(dvn(site, "cost", "--by", "day", "-o", "csv").stdout)))
    assert sum(Decimal(row["amount"]) for row in rows) == Decimal(bill["total"]["USD"])
    (nobody,) = told(site, "cost", "--by", "job")["costs"]
    assert nobody["key"] == "(no job)"


def test_a_window_that_cannot_be_meant_is_refused(site: SiteFile) -> None:
    done = dvn(site, "cost", "--since", "yesterday")
    assert done.exit_code == 1
    assert "write it like 2026-03-01 or 7d" in done.stderr
    done = dvn(site, "usage", "--since", "1d", "--before", "2d")
    assert "nothing lies between 1d and 2d" in done.stderr


def test_records_are_written_one_file_a_message(site: SiteFile, tmp_path: Path) -> None:
    done = dvn(site, "usage", "-o", "csv", "--to", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dvn-000001.csv"]
    assert dvn(site, "usage", "-o", "json", "--to", str(tmp_path)).exit_code == 2
    assert dvn(site, "usage", "-o", "ur").stdout.startswith("<urf:UsageRecords")
