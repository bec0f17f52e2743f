"""A clock that costs and time-outs may be taken from, whatever is done to the system's."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from gateway.steady import LastingClock, SteadyClock
from tests.gateway.leases import T0


class System:
    """A wall clock that can be set, and a monotonic one that cannot."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.off = 0.0
        self.clock = SteadyClock(
            lambda: T0 + timedelta(seconds=self.passed + self.off), lambda: self.passed
        )

    def after(self, seconds: float) -> float:
        self.passed += seconds
        return (self.clock() - T0).total_seconds()


def test_it_is_the_systems_clock_as_long_as_nobody_sets_that() -> None:
    system = System()
    assert [system.after(10) for _ in range(3)] == [10, 20, 30]
    assert system.clock.jumped is None


def test_set_back_it_goes_on_more_slowly_until_the_system_has_caught_up() -> None:
    system = System()
    system.after(100)
    system.off = -60
    assert system.after(10) == 109
    assert system.clock.jumped == T0 + timedelta(seconds=109)
    assert system.clock.ahead == timedelta(seconds=59)
    assert system.after(1000) == 1050  # 110 + 1000 - 60
    assert system.clock.ahead == timedelta(0)


def test_set_forward_it_follows_and_says_so() -> None:
    system = System()
    system.off = 60
    assert system.after(10) == 70
    assert system.clock.jumped == T0 + timedelta(seconds=70)


def test_after_a_restart_it_does_not_begin_before_what_is_known_to_have_passed() -> None:
    clock = SteadyClock(lambda: T0, lambda: 0.0, T0 + timedelta(hours=1))
    assert clock() == T0 + timedelta(hours=1)


@given(st.lists(st.tuples(st.floats(0, 1000), st.sampled_from([0, 0, 0, -600, -5, 1, 600, 86400]))))
def test_it_never_goes_back_and_never_lags_the_system(steps: list[tuple[float, int]]) -> None:
    system, last = System(), T0
    for seconds, jump in steps:
        system.off += jump
        system.after(seconds)
        now = system.clock()
        assert last <= now
        assert now - (T0 + timedelta(seconds=system.passed + system.off)) >= timedelta(0)
        last = now


class Machine:
    """One that the daemon is killed on, and that is started anew at times."""

    def __init__(self) -> None:
        self.passed = self.booted = self.off = 0.0
        self.boots = 1
        self.kept: dict[str, str] = {}

    def note(self, key: str, value: str) -> None:
        self.kept[key] = value

    def notes(self) -> dict[str, str]:
        return self.kept

    def daemon(self) -> LastingClock:
        return LastingClock(
            self,
            lambda: T0 + timedelta(seconds=self.passed + self.off),
            lambda: self.passed - self.booted,
            lambda: f"boot-{self.boots}",
        )


def test_set_back_while_the_daemon_was_away_it_knows_how_long_that_was() -> None:
    machine = Machine()
    machine.passed = 100
    machine.daemon().keep()
    machine.passed, machine.off = 400, -600
    assert machine.daemon()() == T0 + timedelta(seconds=400)


def test_after_a_start_of_the_machine_it_begins_where_it_was_at_least() -> None:
    machine = Machine()
    machine.passed = 100
    machine.daemon().keep()
    machine.passed = machine.booted = 400
    machine.boots, machine.off = 2, -600
    assert machine.daemon()() == T0 + timedelta(seconds=100)
    machine.off = 0
    assert machine.daemon()() == T0 + timedelta(seconds=400)


@given(
    st.lists(
        st.tuples(st.floats(0, 300), st.sampled_from([0, 0, -600, -5, 1, 600]), st.booleans()),
        max_size=30,
    )
)
def test_whenever_it_is_killed_no_more_than_its_slow_steps_are_lost(
    steps: list[tuple[float, int, bool]],
) -> None:
    machine = Machine()
    clock = machine.daemon()
    clock.keep()
    last = clock()
    for seconds, jump, killed in steps:
        machine.passed += seconds
        machine.off += jump
        clock = machine.daemon() if killed else clock
        now = clock()
        # A tenth slower than time, and the minute between two notes more.
        assert (now - last).total_seconds() >= 0.9 * seconds - 6.001
        clock.keep()
        last = now


def test_notes_are_not_written_each_time() -> None:
    machine = Machine()
    clock = machine.daemon()
    clock.keep()
    first = dict(machine.kept)
    machine.passed = 59
    clock.keep()
    assert machine.kept == first
    machine.off = -100
    clock.keep()
    assert machine.kept != first, "the clock was set"
