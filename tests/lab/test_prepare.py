"""What the lab needs from a mirror is made by name, before it runs where there is none."""

from __future__ import annotations

from functools import partial

import pytest

from lab import prepare
from lab.host import LabError
from lab.scenarios.farms import KINDS


def test_every_batch_system_of_the_demo_can_be_prepared() -> None:
    assert set(KINDS) < set(prepare.MAKERS)


def _made(made: list[str], name: str, _: prepare.Say) -> None:
    made.append(name)


def test_each_is_made_in_turn() -> None:
    made: list[str] = []
    makers = {name: partial(_made, made, name) for name in ("a", "b", "c")}
    assert prepare.main(["c", "a"], makers) == 0
    assert made == ["c", "a"]


def test_a_name_that_is_none_is_refused_before_anything_is_made(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made: list[prepare.Say] = []
    assert prepare.main(["a", "condor"], {"a": made.append, "htcondor": made.append}) == 2
    assert capsys.readouterr().err == "nothing to prepare for condor: a, htcondor\n"
    assert made == []


def test_why_one_could_not_be_made_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(_: prepare.Say) -> None:
        raise LabError("no mirror in reach")

    made: list[prepare.Say] = []
    assert prepare.main(["a", "b"], {"a": fails, "b": made.append}) == 1
    assert capsys.readouterr().err == "no mirror in reach\n"
    assert made == []
