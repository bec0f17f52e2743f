"""The gateway's sections of a site file: each wrong file and what a person reads about it.

`wrong/NAME.yaml` must give exactly `wrong/NAME.txt`, by every command that reads a site file.
"""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError
from typer.testing import CliRunner

from burst.model import Policy
from dvn import located
from dvn.located import SpecError
from gateway import sitefile
from gateway.sections import BudgetConfig
from gateway.units import parse_duration

HERE = Path(__file__).parent
WRONG = HERE / "wrong"
FILES = sorted(WRONG.glob("*.yaml"))
RIGHT = (HERE / "right.yaml").read_text()


def test_there_are_many() -> None:
    assert len(FILES) >= 20


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_message(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(WRONG)
    with pytest.raises(SpecError) as caught:
        sitefile.load(Path(file.name))
    said = "".join(f"{problem}\n" for problem in caught.value.problems)
    assert said == file.with_suffix(".txt").read_text()


@pytest.mark.parametrize("command", [("validate",), ("gateway", "run")], ids=" ".join)
def test_every_command_that_reads_a_site_file_says_so(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway.cli.main import app

    monkeypatch.chdir(WRONG)
    result = CliRunner().invoke(app, [*command, "pools-share-partition.yaml"])
    assert result.exit_code == 2
    assert result.stderr == (WRONG / "pools-share-partition.txt").read_text()
    assert result.stdout == ""


def test_the_right_file() -> None:
    file = sitefile.parse(located.loads(RIGHT), Path("right.yaml"))
    (pool,) = file.pools
    assert (pool.name, pool.from_partitions, pool.types) == ("cms-aws", ("batch",), ("c5.large",))
    assert (len(pool.addresses), pool.addresses[0]) == (50, "10.9.0.101")
    assert file.policy == Policy(idle_release=timedelta(seconds=10))
    assert file.gateway.state_directory == Path("/var/lib/dvn")
    assert file.burst is not None
    assert file.burst.budgets["cms"].limit == Decimal("5.0")


def test_a_site_without_bursting_is_a_site() -> None:
    file = sitefile.parse(located.loads("site: cnaf\n"), Path("x"))
    assert (file.burst, file.pools, file.policy) == (None, (), Policy())


def test_every_number_of_the_policy_can_be_set() -> None:
    lines = []
    for field in fields(Policy):
        kinds = {timedelta: "7m", bool: "true"}
        value = kinds.get(type(field.default), 7)
        lines.append(f"    {field.name}: {value}\n")
    text = RIGHT[: RIGHT.index("  policy:")] + "  policy:\n" + "".join(lines)
    policy = sitefile.parse(located.loads(text), Path("x")).policy
    for field in fields(Policy):
        assert getattr(policy, field.name) in (timedelta(minutes=7), 7, True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2s", 2), ("5m", 300), ("1h30m", 5400), ("1d", 86400), ("500ms", 0.5), ("1.5h", 5400)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@given(st.text(max_size=12))
def test_what_is_no_duration_is_refused_in_words(text: str) -> None:
    try:
        duration = parse_duration(text)
    except PydanticCustomError as error:
        said = str(error.context)
    else:
        said = f"write: {duration}"
    assert "write" in said


@given(st.datetimes(timezones=st.just(UTC), min_value=datetime(2000, 1, 1)))  # noqa: DTZ001
def test_a_period_began_before_now_and_stays_the_same_until_it_ends(now: datetime) -> None:
    for period in ("day", "week", "month", "year", "ever"):
        budget = BudgetConfig.model_validate({"limit": 1, "period": period})
        since = budget.since(now)
        assert since <= now
        assert budget.since(since) == since
    week = BudgetConfig.model_validate({"limit": 1, "period": "week"}).since(now)
    assert week.weekday() == 0
