"""A tunnel's health: down late, up at once, degraded and back with hysteresis."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dvn.tunnels.health import STEADY, WINDOW, Health

START = datetime(2026, 1, 1, tzinfo=UTC)


def run(events: str, health: Health | None = None, step_s: float = 2.0) -> list[Health]:
    """`.` an answer after 10 ms, `s` a slow one after 100 ms, `x` none; one each step."""
    found = [health or Health.begin(START)]
    for number, event in enumerate(events, 1):
        now = (found[0].alive or START) + timedelta(seconds=step_s * number)
        last = found[-1]
        if event == "x":
            found.append(last.unanswered(now, "no answer"))
        else:
            found.append(last.answered(now, 100.0 if event == "s" else 10.0))
    return found


def states(events: str) -> list[str]:
    return [health.state for health in run(events)]


def test_up_with_the_first_answer() -> None:
    assert states("x.") == ["down", "down", "up"]


def test_one_lost_packet_moves_nobody() -> None:
    assert set(states("." * WINDOW + "x" + "." * 5)[1:]) == {"up"}


def test_down_after_three_and_six_seconds() -> None:
    good = run("." * WINDOW)[-1]
    quick = run("xxxx", good, step_s=0.5)
    assert quick[-1].state != "down"  # too soon
    slow = [health.state for health in run("xxx", good)]
    assert slow[-1] == "down"
    assert run("xxx", good)[-1].why == "no answer"


def test_loss_degrades_and_heals_late() -> None:
    lossy = run("....x....x....x")[-1]
    assert lossy.state == "degraded"
    assert "are lost" in lossy.why
    soon = run("." * (STEADY - 1), lossy)[-1]
    assert soon.state == "degraded"  # not yet
    assert run("." * WINDOW, lossy)[-1].state == "up"


def test_a_slow_path_degrades() -> None:
    slow = run("." * 5 + "s" * 15)[-1]
    assert slow.state == "degraded"
    assert slow.why == "round trip 100 ms, usually 10 ms"
    assert run("." * WINDOW, slow)[-1].state == "up"


def test_a_path_that_became_narrow_degrades() -> None:
    good = run("." * WINDOW)[-1]
    narrow = good.measured(START, 1400, 1458)
    assert narrow.state == "degraded"
    assert "above 1400 bytes" in narrow.why
    assert narrow.measured(START, 1458, 1458).answered(START, 10.0).state == "up"


def test_an_outage_leaves_no_shadow() -> None:
    """After it the tunnel is up, not degraded for what was lost meanwhile."""
    assert states("." * WINDOW + "x" * 10 + ".")[-2:] == ["down", "up"]


@given(st.text(alphabet=".xs", max_size=120))
def test_always(events: str) -> None:
    for before, after in pairwise(run(events)):
        assert 0.0 <= after.loss <= 1.0
        if after.state == before.state:
            assert after.since == before.since
        assert after.why or after.state == "up"
        assert len(after.window) <= WINDOW


@given(st.text(alphabet=".x", min_size=40, max_size=200))
def test_it_does_not_flap(events: str) -> None:
    """Between two changes to `up` from `degraded` lie at least STEADY probes."""
    found = states(events)
    ups = [
        n for n, (a, b) in enumerate(pairwise(found))
        if a == "degraded" and b == "up"
    ]  # fmt: skip
    assert all(later - earlier >= STEADY for earlier, later in pairwise(ups))
