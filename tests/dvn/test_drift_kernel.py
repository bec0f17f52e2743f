"""The agent keeps what was applied: drift is repaired or named within a second of the event."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dvn import located
from dvn.spec import parse_site
from lab.host import wait_for
from lab.hosts import Lab
from tests.dvn.change_place import GOOD, WITH_A_SERVICE, ChangePlace

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

SOCKET = "/run/dvn/agent.sock"
LIMIT_S = 1.0
# The lab's machines share a few slow cores; what is promised is a second of the gateway's own time.
SLOW = 10.0


class Kept:
    """The place, with an agent in its gateway."""

    def __init__(self, place: ChangePlace) -> None:
        self.place = place
        argv = [sys.executable, "-m", "dvn.agent", "--socket", SOCKET]
        self.agent = place.gw.spawn(*argv, env=place.env)
        wait_for(lambda: self.drift()["watching"], 60, what="the agent watches")

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        def talk() -> dict[str, Any]:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(30)
                sock.connect(SOCKET)
                sock.sendall(json.dumps(request).encode() + b"\n")
                with sock.makefile("rb") as answer:
                    found: dict[str, Any] = json.loads(answer.readline())
                    return found

        try:
            return self.place.gw.inside(talk)
        except OSError:
            return {}

    def drift(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask({"op": "drift"}).get("drift", {"watching": False})
        return found

    def apply(self, text: str) -> dict[str, Any]:
        site = parse_site(located.loads(text)).model_dump(mode="json")
        answer = self.ask({"op": "apply", "site": site})
        assert answer["ok"], answer
        return answer

    def clean(self) -> bool:
        return bool(self.ask({"op": "plan", "site": self.site()})["steps"] == [])

    def site(self) -> Any:
        return parse_site(located.loads(GOOD)).model_dump(mode="json")

    def seconds_until(self, done: Callable[[], bool]) -> float:
        start = time.monotonic()
        wait_for(done, 30, what="it is repaired or named", interval=0.02)
        return time.monotonic() - start


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    with Lab() as lab:
        yield Kept(ChangePlace(lab))


@pytest.fixture
def quiet(kept: Kept) -> Kept:
    kept.apply(GOOD)
    assert kept.clean()
    return kept


DAMAGES = [
    ("nft flush ruleset", "nft (process "),
    ("nft delete table bridge dvn-cnaf", "nft (process "),
    ("ip link delete b-cms-farm", ""),
    ("ip link set b-cms-farm mtu 1300", ""),
    ("ip link set tap3 nomaster", ""),
    ("ip address delete 10.9.0.1/24 dev b-cms-farm", ""),
    ("echo 0 > /proc/sys/net/ipv4/conf/b-cms-farm/forwarding", ""),
]


@pytest.mark.parametrize(("damage", "who"), DAMAGES)
def test_drift_is_repaired_at_once(quiet: Kept, damage: str, who: str) -> None:
    before = len(quiet.drift()["repairs"])
    quiet.place.gw.script(damage)
    took = quiet.seconds_until(lambda: len(quiet.drift()["repairs"]) > before)
    report = quiet.drift()["repairs"][-1]
    assert report["action"] == "repaired"
    assert report["steps"]
    assert who in report["who"]
    assert quiet.clean()
    assert took < LIMIT_S * SLOW


DROPS = """nft -f - <<'END'
table inet theirs {
  chain f { type filter hook forward priority 5; policy accept; drop comment "theirs"; }
}
END
"""


def test_a_foreign_drop_is_named_and_left_alone(quiet: Kept) -> None:
    assert quiet.drift()["foreign"] == []
    quiet.place.gw.script(DROPS)
    took = quiet.seconds_until(lambda: quiet.drift()["foreign"] != [])
    (named,) = quiet.drift()["foreign"]
    assert "nft chain inet theirs f, hook forward, would drop packets of our networks" in named
    assert "(theirs)" in named
    assert took < LIMIT_S * SLOW
    assert "drop" in quiet.place.gw.script("nft list table inet theirs").stdout
    quiet.place.gw.script("nft delete table inet theirs")
    quiet.seconds_until(lambda: quiet.drift()["foreign"] == [])


def test_who_undoes_us_again_and_again_is_held_and_named(quiet: Kept) -> None:
    def held() -> bool:
        quiet.place.gw.script("nft delete table bridge dvn-cnaf || true")
        return bool(quiet.drift()["held"])

    quiet.seconds_until(held)
    (words,) = quiet.drift()["held"].values()
    assert "nft (process" in words
    assert "undoes what is repaired" in words


def test_what_is_done_by_hand_stands_until_the_daemon_has_another_file(quiet: Kept) -> None:
    quiet.place.dvn("apply", "/etc/service.yaml")
    note = quiet.apply(GOOD)["applied"]["notes"]  # the daemon asks again, as every minute
    assert "stands: restart the daemon" in note[0]
    assert "nothing to do" in quiet.place.dvn("plan", "/etc/service.yaml").stdout
    quiet.place.gw.script("nft flush ruleset")
    quiet.seconds_until(lambda: quiet.place.dvn_json("plan", "/etc/service.yaml")["steps"] == [])
    assert quiet.apply(WITH_A_SERVICE)["applied"]["notes"] == []
    assert quiet.apply(GOOD)["applied"]["notes"] == []
    assert "nothing to do" in quiet.place.dvn("plan", "/etc/good.yaml").stdout


def test_what_waits_to_be_confirmed_is_not_undone_as_drift(quiet: Kept, tmp_path: Path) -> None:
    log = tmp_path / "log"
    quiet.place.begin("try", "/etc/service.yaml", "--timeout", "600", log=log)
    wait_for(lambda: b"tried" in log.read_bytes(), 60, what="it is tried")
    assert "tries a change" in quiet.apply(GOOD)["applied"]["notes"][0]
    assert "nothing to do" in quiet.place.dvn("plan", "/etc/service.yaml").stdout
    quiet.place.dvn("confirm", "--undo", check=False)
    quiet.place.settled()
    assert quiet.clean()
