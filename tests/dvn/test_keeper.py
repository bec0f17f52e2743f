"""The keeper without a kernel: no event is lost, whatever it is about when it comes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest

from dvn.change.drift import FIGHTS
from dvn.change.foreign import Dropper, ForeignRules, Ours
from dvn.change.keeper import Keeper
from dvn.change.watch import Event, Reader, Table, Watch
from dvn.kernel.driver import KernelError
from dvn.kernel.state import KernelState
from dvn.spec import Site
from dvn.status import Applied
from lab.process import wait_for
from tests.dvn.sites import full_site

LIMIT_S = 20.0  # for what takes a tenth of a second
LONG_S = 1000.0  # between slow looks: what is seen within the test was announced
OURS = Event("link", "link b-cms-farm", "b-cms-farm", ours=True)


MEND = ("~ link b-cms-farm: mtu 1300 => 1500",)


class Announced(Watch):
    """Events that a test announces."""

    def __init__(self) -> None:
        self.reader = Reader()
        self._ready, self._teller = socket.socketpair()
        self._ready.setblocking(False)
        self._sockets = [self._ready]
        self._events: list[Event] = []
        self._lock = threading.Lock()

    def announce(self, event: Event) -> None:
        with self._lock:
            self._events.append(event)
            self._teller.send(b"x")

    def read(self) -> Iterator[Event]:
        with self._lock:
            events, self._events = self._events, []
            if events:
                self._ready.recv(4096)
        yield from events

    def close(self) -> None:
        super().close()
        self._teller.close()


class NoRules(ForeignRules):
    """Nobody else has any."""

    def __init__(self) -> None:
        self.looked = threading.Event()

    def close(self) -> None:
        pass

    def look(self, _ours: Ours, _changed: frozenset[Table] | None = None) -> tuple[Dropper, ...]:
        self.looked.set()
        return ()


class Place:
    """A kernel that is either as it should be or not, and an agent that looks."""

    def __init__(self, *names: str) -> None:
        self.names = names or ("cnaf",)
        self.watch = Announced()
        self.rules = NoRules()
        self.broken: tuple[str, ...] = ()  # what is to be done about it
        self.undecided: frozenset[str] = frozenset()
        self.during: Callable[[int], None] = lambda _look: None  # called late in each look
        self.looks: list[str] = []
        self._looked = threading.Condition()

    def wanted(self) -> Mapping[str, Site]:
        site = full_site()
        return {name: site for name in self.names if name not in self.undecided}

    def waiting(self) -> frozenset[str]:
        return self.undecided

    def state(self) -> KernelState:
        return KernelState()

    def planned(self, _name: str) -> tuple[str, ...]:
        return self.broken

    def repair(self, name: str) -> Applied:
        steps, self.broken = self.broken, ()
        if steps:
            self.watch.announce(OURS)  # the kernel tells us of our own work, too
        try:
            self.during(len(self.looks) + 1)
        finally:
            with self._looked:
                self.looks.append(name)
                self._looked.notify_all()
        return Applied(steps, len(steps), 0, 0, verified=True)

    def damage(self, mend: tuple[str, ...] = MEND) -> None:
        self.broken = mend
        self.watch.announce(OURS)

    def wait_for_looks(self, count: int, name: str = "cnaf") -> bool:
        with self._looked:
            return self._looked.wait_for(lambda: self.looks.count(name) >= count, LIMIT_S)


@contextmanager
def kept(place: Place) -> Iterator[Keeper]:
    keeper = Keeper(place, resync=LONG_S, watch=lambda: place.watch, rules=lambda: place.rules)
    keeper.start()
    try:
        yield keeper
    finally:
        keeper.stop(LIMIT_S)


def test_what_somebody_does_while_we_look_is_looked_into() -> None:
    """The look has read the link already when it is changed."""
    place = Place()
    place.during = lambda look: place.damage() if look == 1 else None
    with kept(place) as keeper:
        assert place.wait_for_looks(3)  # the first, the one that repairs, and one after its writes
    assert [each["action"] for each in keeper.status()["repairs"]] == ["repaired"]


def test_what_somebody_does_while_we_repair_is_looked_into() -> None:
    """It comes among the announcements of our own writes, and looks like one of them."""
    place = Place()
    place.broken = MEND
    place.during = lambda look: place.damage() if look == 1 else None
    with kept(place) as keeper:
        assert place.wait_for_looks(3)
    assert [each["action"] for each in keeper.status()["repairs"]] == ["repaired"] * 2


def test_it_is_settled_when_all_that_was_announced_is_looked_into() -> None:
    place = Place()
    seen: list[bool] = []
    keepers: list[Keeper] = []
    place.during = lambda _look: seen.extend(each.status()["settled"] for each in keepers)
    with kept(place) as keeper:
        assert place.wait_for_looks(1)
        wait_for(lambda: keeper.status()["settled"], LIMIT_S, what="it is settled")
        keepers.append(keeper)
        place.watch.announce(OURS)
        assert place.wait_for_looks(2)
        wait_for(lambda: keeper.status()["settled"], LIMIT_S, what="it is settled again")
    assert seen == [False]


def test_our_own_writes_lead_to_one_look_more_and_no_further() -> None:
    place = Place()
    place.broken = MEND
    with kept(place):
        assert place.wait_for_looks(2)
        # What is announced now is looked into after any look that were due by then.
        place.rules.looked.clear()
        place.watch.announce(Event("nft", "", tables=frozenset({("inet", "theirs")})))
        assert place.rules.looked.wait(LIMIT_S)
    assert len(place.looks) == 2


def test_a_repair_that_failed_is_made_again_and_counts_from_the_first_event() -> None:
    def fails_once(look: int) -> None:
        if look == 2:
            place.broken = MEND  # still
            raise KernelError("it changed while it was read")

    place = Place()
    place.during = fails_once
    with kept(place) as keeper:
        assert place.wait_for_looks(1)
        place.damage()
        assert place.wait_for_looks(4)
    failed, repaired = keeper.status()["repairs"]
    assert (failed["action"], repaired["action"]) == ("failed", "repaired")
    assert repaired["seconds"] > failed["seconds"] > 0


def test_what_happened_during_a_trial_is_looked_into_when_it_is_decided() -> None:
    """Nothing is announced when a trial ends: its file goes."""
    place = Place("bari", "cnaf")
    with kept(place) as keeper:
        assert place.wait_for_looks(1)
        place.undecided = frozenset({"cnaf"})
        place.watch.announce(OURS)
        assert place.wait_for_looks(2, "bari")
        place.broken = MEND
        assert place.looks.count("cnaf") == 1
        place.undecided = frozenset()
        assert place.wait_for_looks(2)
    assert [each["action"] for each in keeper.status()["repairs"]] == ["repaired"]


@pytest.mark.parametrize("held_s", [0.0, 0.4])
def test_the_time_of_a_repair_is_from_the_event_and_never_too_short(held_s: float) -> None:
    """Also where the keeper is busy when the event comes and hears of it only later."""
    place = Place()
    slow = threading.Event()

    def look(number: int) -> None:
        if number == 1:
            place.damage()
            slow.wait(held_s)

    place.during = look
    with kept(place) as keeper:
        assert place.wait_for_looks(3)
    (report,) = keeper.status()["repairs"]
    assert held_s < report["seconds"] < LIMIT_S


def test_what_nothing_announced_has_no_time() -> None:
    place = Place()
    place.broken = MEND
    with kept(place) as keeper:
        assert place.wait_for_looks(2)
    (report,) = keeper.status()["repairs"]
    assert report["seconds"] is None


def test_while_one_repair_is_held_another_is_made_at_once() -> None:
    """Somebody undoes one thing again and again: that is no licence to break others."""
    other = ("+ table bridge dvn-cnaf",)
    place = Place()
    place.broken = MEND
    place.during = lambda look: place.damage() if look <= FIGHTS else None
    with kept(place) as keeper:
        wait_for(lambda: keeper.status()["held"], LIMIT_S, what="the fight is held")
        assert place.broken == MEND  # and stays so for now
        place.damage(other)
        wait_for(lambda: not place.broken, LIMIT_S, what="the other is repaired")
    repairs = [each["steps"] for each in keeper.status()["repairs"] if each["steps"]]
    assert repairs == [MEND] * FIGHTS + [other]
    assert keeper.status()["held"]
