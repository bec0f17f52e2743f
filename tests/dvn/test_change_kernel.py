"""Trials, verification and undoing on a real kernel, with packets and with kills."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dvn.change import guard
from dvn.change.changes import BrokeError, Changes
from dvn.engine import Engine
from dvn.kernel.linux import LinuxKernel
from dvn.kernel.steps import Step, Writes
from lab.host import wait_for
from lab.hosts import Lab
from tests.dvn.change_place import (
    CUTS_OFF,
    GOOD,
    OPERATOR,
    SILENCES,
    STATE,
    WITH_A_SERVICE,
    ChangePlace,
    wish,
)

ALL = (
    "nft -s list table inet dvn-cnaf; nft -s list table bridge dvn-cnaf;"
    "ip -o address; ls /sys/class/net /sys/class/net/b-*/brif; cat /sys/class/net/*/mtu"
)
pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def place() -> Iterator[ChangePlace]:
    with Lab() as lab:
        yield ChangePlace(lab)


@pytest.fixture
def good(place: ChangePlace) -> ChangePlace:
    place.apply(GOOD)
    return place


def everything(place: ChangePlace) -> list[str]:
    """Without the order of set elements, which is that of a hash."""
    return sorted(re.split(r"[\s,]+", place.gw.script(ALL).stdout))


def test_a_change_that_silences_a_machine_is_undone(good: ChangePlace) -> None:
    """What counts is that it answered before: m1 does, and its new MAC filter would stop it."""
    before = everything(good)
    with pytest.raises(BrokeError, match=r"silenced 10\.9\.0\.3 on b-cms-farm \(via tap3\)") as e:
        good.apply(SILENCES)
    assert e.value.undone
    assert everything(good) == before
    assert "it silenced 10.9.0.3" in good.last().result
    # The controls: the same change counts as good where nobody looks, and where it was silent.
    changes = good.gw.inside(lambda: Changes(Engine(), Path(STATE)))
    good.gw.inside(lambda: changes.apply(wish(SILENCES)))
    assert not good.reached("m1", "10.9.0.1")
    assert good.apply(SILENCES.replace("prefix", "access: closed, prefix", 1)).applied.steps == ()
    good.apply(GOOD)
    assert good.apply(WITH_A_SERVICE).heard == 2


class Slow(LinuxKernel):
    """Stops for good in front of the step that cuts the operator off, or behind it."""

    def __init__(self, *, dies: bool) -> None:
        super().__init__()
        self._dies = dies

    def carry_out(self, steps: Sequence[Step]) -> Writes:
        writes = Writes()
        for step in steps:
            writes += super().carry_out([step])
            if self._dies and "port op0" in str(step):
                os.kill(os.getpid(), signal.SIGKILL)
        return writes


def trial(timeout: float, *, dies: bool) -> None:
    """What `dvn try` does in the process of the command; then it waits for a word."""
    changes = Changes(Engine(Slow(dies=dies)), Path(STATE))
    pending = changes.begin(wish(CUTS_OFF), timeout=timeout, watch=OPERATOR)
    guard.start(Path(STATE), "cnaf")
    changes.carry_out(pending)
    threading.Event().wait(600)


@pytest.mark.parametrize("kill", ["in the middle", "the command", "the command and its guard"])
def test_who_is_cut_off_comes_back(good: ChangePlace, kill: str) -> None:
    both = kill == "the command and its guard"
    before = everything(good)
    pid = good.child(lambda: trial(5 if both else 600, dies=kill == "in the middle"))
    wait_for(lambda: "op0" in good.ports(), 60, what="it is tried")
    guards = good.guards()
    assert len(guards) == 1
    if both:  # at once: the guard, too, will soon see that the operator is gone
        good.gw.run("kill", "-KILL", *map(str, guards))
        assert good.guards() == []
    assert not good.reached()  # the control: it does cut off
    if kill != "in the middle":
        os.kill(pid, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    if both:

        def next_command() -> object:
            return guard.finish_left(good.changes(), Path(STATE), restart=False)

        wait_for(lambda: good.gw.inside(next_command), 60, what="it is found and undone")
    good.settled()
    assert good.reached()
    assert everything(good) == before
    reason = "nobody confirmed" if both else f"the operator at {OPERATOR} answers no more"
    assert reason in good.last().result
    wait_for(lambda: not good.guards(), 30, what="the guard ends")
