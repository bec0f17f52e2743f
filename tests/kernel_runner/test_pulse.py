"""When a machine is asked whether it lives, and when it is given up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lab.kernel.pulse import Pulse


def test_asked_when_due_and_once() -> None:
    pulse = Pulse(100.0, every=10, patience=60)
    assert not pulse.ask(109.9)
    assert pulse.ask(110.0)
    assert not pulse.ask(130.0)  # the question is out
    pulse.answered(131.0)
    assert not pulse.ask(140.9)
    assert pulse.ask(141.0)


def test_given_up_only_when_a_question_was_not_answered() -> None:
    pulse = Pulse(0.0, every=10, patience=60)
    assert not pulse.stopped(1000.0)  # we slept, not the machine: it was not asked
    assert pulse.ask(1000.0)
    assert not pulse.stopped(1059.9)
    assert pulse.stopped(1060.0)
    pulse.answered(1060.0)
    assert not pulse.stopped(1061.0)


@given(st.lists(st.floats(0, 40), max_size=30), st.floats(1, 30), st.floats(1, 30))
def test_whoever_answers_in_time_is_never_given_up(
    steps: list[float], every: float, patience: float
) -> None:
    now = 0.0
    pulse = Pulse(now, every=every, patience=patience)
    for step in steps:
        now += min(step, pulse.wait(now) + patience / 2)
        if pulse.ask(now):
            now += patience * 0.9
        assert not pulse.stopped(now)
        pulse.answered(now)


@given(st.floats(0, 1000), st.floats(1, 30), st.floats(1, 30))
def test_the_wait_ends_when_there_is_something_to_do(
    start: float, every: float, patience: float
) -> None:
    pulse = Pulse(start, every=every, patience=patience)
    now = start + pulse.wait(start) + 1e-6
    assert pulse.ask(now)
    assert not pulse.stopped(now)
    assert pulse.stopped(now + pulse.wait(now) + 1e-6)
