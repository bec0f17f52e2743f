"""The commands themselves, as processes: slow to start where the machine is, so only if asked for.

What they do is tested without them in test_change_kernel.py."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.host import wait_for
from lab.hosts import Lab
from tests.dvn.change_place import ChangePlace

ALL = (
    "nft -s list table inet dvn-cnaf; nft -s list table bridge dvn-cnaf;"
    "ip -o address; ls /sys/class/net /sys/class/net/b-*/brif; cat /sys/class/net/*/mtu"
)
pytestmark = [pytest.mark.kernel, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def place() -> Iterator[ChangePlace]:
    with Lab() as lab:
        yield ChangePlace(lab)


@pytest.fixture
def good(place: ChangePlace) -> ChangePlace:
    place.dvn("apply", "/etc/good.yaml", "--no-probe")
    return place


def everything(place: ChangePlace) -> list[str]:
    """Without the order of set elements, which is that of a hash."""
    return sorted(re.split(r"[\s,]+", place.gw.script(ALL).stdout))


def processes(place: ChangePlace) -> list[int]:
    """Those of `dvn try` in the gateway: the command and its guard."""
    found = place.gw.run("pgrep", "-f", "gateway try", check=False).stdout.split()
    return [int(pid) for pid in found]


def test_a_change_that_silences_a_machine_is_undone(good: ChangePlace) -> None:
    """What counts is that it answered before: m1 does, and its new MAC filter would stop it."""
    before = everything(good)
    told = good.dvn("apply", "/etc/silences.yaml", check=False)
    assert told.returncode == 1
    assert "silenced 10.9.0.3 on b-cms-farm (via tap3); what was done is undone" in told.stderr
    assert everything(good) == before
    assert "it silenced 10.9.0.3" in good.last().result
    # The controls: the same change counts as good where nobody looks, and where it was silent.
    good.dvn("apply", "/etc/silences.yaml", "--no-probe")
    assert not good.reached("m1", "10.9.0.1")
    assert good.dvn_json("apply", "/etc/silences.yaml")["ok"]
    good.dvn("apply", "/etc/good.yaml")
    assert good.dvn_json("apply", "/etc/service.yaml")["heard"] == 2


def test_a_trial_is_kept_when_it_is_confirmed(good: ChangePlace, tmp_path: Path) -> None:
    trial = good.begin("try", "/etc/service.yaml", log=tmp_path / "log")
    wait_for(lambda: b"tried" in (tmp_path / "log").read_bytes(), 120, what="it is tried")
    assert "waits to be confirmed" in good.dvn("apply", "/etc/good.yaml", check=False).stderr
    kept = good.dvn_json("confirm", "cnaf")
    assert kept["ok"]
    assert trial.wait(120) == 0
    assert "nothing to do" in good.dvn("plan", "/etc/service.yaml").stdout
    assert good.last().number == kept["revision"]
    wait_for(lambda: not processes(good), 60, what="the guard ends")
    # And back to what was before it, by its number.
    good.dvn("rollback", str(kept["revision"] - 1))
    assert "nothing to do" in good.dvn("plan", "/etc/good.yaml").stdout


@pytest.mark.parametrize("kill", ["nobody", "the command", "the command and its guard"])
def test_who_is_cut_off_comes_back(good: ChangePlace, tmp_path: Path, kill: str) -> None:
    timeout = "60" if kill == "the command and its guard" else "600"
    trial = good.begin("try", "/etc/cuts.yaml", "--timeout", timeout, log=tmp_path / "log")
    wait_for(lambda: "op0" in good.ports(), 120, what="it is tried")
    assert not good.reached()  # the control: it does cut off
    if kill == "the command":
        trial.kill()
    elif kill == "the command and its guard":
        for pid in processes(good):
            good.gw.run("kill", "-KILL", str(pid), check=False)
        assert processes(good) == []
        good.dvn("plan", "/etc/good.yaml")  # undoes it, or starts another guard that will
    good.settled()
    assert good.reached()
    assert good.ports() == ["tap3"]
    reason = "nobody confirmed" if timeout == "60" else "the operator at 192.0.2.9 answers no more"
    assert reason in good.last().result
    assert trial.wait(120) == (1 if kill == "nobody" else -signal.SIGKILL)
    assert "nothing to do" in good.dvn("plan", "/etc/good.yaml").stdout
