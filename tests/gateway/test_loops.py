"""The parts of the loops by themselves: patience, silence, and when a tunnel is up."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burst.actions import Reason
from burst.join.userdata import inner_mac
from burst.model import LeaseState
from dvn import located, spec
from dvn.tunnels.health import PROBES_TO_DOWN, TIME_TO_DOWN
from gateway.loops.answers import KEEP, Answers
from gateway.loops.backoff import Backoff
from gateway.loops.links import Counters, Watch
from gateway.loops.loop import Loop
from gateway.loops.network import NetworkLoop, tunnel_name, wanted_tunnels
from gateway.loops.source import Source
from tests.gateway.leases import T0, lease
from tests.gateway.test_daemon import wait_for

SECOND = timedelta(seconds=1)


@dataclass
class Clock:
    now: datetime = T0

    def __call__(self) -> datetime:
        return self.now


class TestBackoff:
    def test_it_doubles_up_to_its_limit_and_a_success_resets_it(self) -> None:
        backoff = Backoff(SECOND, 60 * SECOND, random.Random(1))
        waits = [backoff.failure() for _ in range(12)]
        for number, wait in enumerate(waits):
            whole = min(SECOND * 2**number, 60 * SECOND)
            assert whole / 2 <= wait <= whole
        backoff.success()
        assert backoff.failure() <= SECOND

    @given(st.integers(1, 10_000))
    def test_it_never_overflows(self, failures: int) -> None:
        backoff = Backoff(SECOND, 60 * SECOND, random.Random(1), failures=failures)
        assert backoff.failure() <= 60 * SECOND


class Refused(Exception):  # noqa: N818
    pass


@dataclass
class Service:
    """Answers, refuses or hangs, as told."""

    refuses: bool = False
    broken: bool = False
    free: threading.Event = field(default_factory=threading.Event)
    asked: int = 0

    def __call__(self) -> int:
        self.asked += 1
        self.free.wait(30)
        if self.refuses:
            raise Refused("come back\n later")
        if self.broken:
            raise ZeroDivisionError
        return self.asked


class TestSource:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def service(self) -> Service:
        service = Service()
        service.free.set()
        return service

    @pytest.fixture
    def source(self, clock: Clock, service: Service) -> Source[int]:
        patience = Backoff(10 * SECOND, 60 * SECOND, random.Random(1))
        return Source("it", service, expected=(Refused,), backoff=patience, clock=clock)

    def test_an_answer_is_taken_once(self, source: Source[int]) -> None:
        source.ask()
        assert source.answer(5) == 1
        assert source.answer(5) is None
        assert source.status.ok

    def test_a_refusal_is_said_in_one_line_and_waited_out(
        self, source: Source[int], service: Service, clock: Clock
    ) -> None:
        service.refuses = True
        source.ask()
        assert source.answer(5) is None
        assert (source.status.ok, source.error) == (False, "come back later")
        assert source.status.retry_at is not None
        source.ask()
        assert service.asked == 1, "too early"
        clock.now = source.status.retry_at
        service.refuses = False
        source.ask()
        assert source.answer(5) == 2
        assert (source.status.ok, source.error, source.status.failures) == (True, "", 0)

    def test_who_hangs_costs_only_the_waiting_and_is_not_asked_twice(
        self, source: Source[int], service: Service
    ) -> None:
        service.free.clear()
        source.ask()
        assert source.answer(0.05) is None
        assert source.error == "no answer after 0 s"
        source.ask()
        service.free.set()
        wait_for("the late answer", lambda: source.status.ok, 5)
        assert source.answer(5) == 1
        assert service.asked == 1

    def test_a_defect_is_like_silence_and_in_the_log(
        self, source: Source[int], service: Service, caplog: pytest.LogCaptureFixture
    ) -> None:
        service.broken = True
        source.ask()
        assert source.answer(5) is None
        assert source.error.startswith("internal error: ZeroDivisionError")
        assert "Traceback" in caplog.text

    @pytest.mark.parametrize(("seconds", "counts"), [(5, False), (31, True)])
    def test_only_a_long_outage_counts_as_one(
        self,
        source: Source[int],
        service: Service,
        clock: Clock,
        seconds: int,
        counts: bool,
    ) -> None:
        service.refuses = True
        source.ask()
        source.answer(5)
        service.refuses = False
        assert source.status.retry_at is not None
        clock.now = max(T0 + seconds * SECOND, source.status.retry_at)
        source.ask()
        assert source.answer(5) == 2
        assert (source.status.recovered == clock.now) is counts


class TestWatch:
    def test_up_with_the_first_answer(self) -> None:
        watch = Watch.begin(T0).unanswered(T0 + SECOND, "lost").answered(T0 + 2 * SECOND, 3.0)
        assert watch.health.up
        assert watch.health.since == T0 + 2 * SECOND
        assert watch.health.rtt_ms == 3.0

    def test_packets_that_come_in_by_themselves_do_not_make_it_up(self) -> None:
        watch = Watch.begin(T0).counted(T0, Counters(5, 5))
        assert not watch.health.up
        assert watch.needs_probe

    def test_traffic_makes_probes_needless_and_keeps_it_up(self) -> None:
        watch = Watch.begin(T0).answered(T0, 3.0).counted(T0 + SECOND, Counters(5, 5))
        assert not watch.needs_probe
        quiet = watch.counted(T0 + 2 * SECOND, Counters(5, 6))
        assert quiet.needs_probe
        assert quiet.health.up

    def test_one_lost_packet_moves_nobody(self) -> None:
        watch = Watch.begin(T0).answered(T0, 3.0).unanswered(T0 + 60 * SECOND, "lost")
        assert watch.health.up

    @given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
    def test_down_needs_probes_in_a_row_and_time(self, answers: list[bool], pace: int) -> None:
        watch, now = Watch.begin(T0), T0
        row, alive = 0, None
        for answered in answers:
            now += pace * SECOND
            before = watch
            if answered:
                watch, row, alive = watch.answered(now, 1.0), 0, now
            else:
                watch, row = watch.unanswered(now, "lost"), row + 1
            if before.health.up and not watch.health.up:
                assert row >= PROBES_TO_DOWN
                assert alive is not None
                assert now - alive >= TIME_TO_DOWN
                assert watch.health.since == now
            if before.health.up == watch.health.up:
                assert before.health.since == watch.health.since


class TestAnswers:
    def test_since_moves_only_with_the_code(self) -> None:
        answers = Answers()
        answers.hear([Reason("job", "1", "too-young", "2 s of 60 s")], T0)
        answers.hear([Reason("job", "1", "too-young", "32 s of 60 s")], T0 + 30 * SECOND)
        found = answers.why("job", "1")
        assert found is not None
        assert (found.since, found.reason.message) == (T0, "32 s of 60 s")
        answers.hear([Reason("job", "1", "routed", "to burst-cms")], T0 + 60 * SECOND)
        assert answers.all_of("job")["1"].since == T0 + 60 * SECOND

    def test_what_nobody_speaks_of_is_forgotten(self) -> None:
        answers = Answers()
        answers.hear([Reason("job", "1", "routed", "x")], T0)
        answers.hear([], T0 + KEEP)
        assert answers.why("job", "1") is not None
        answers.hear([], T0 + KEEP + SECOND)
        assert answers.why("job", "1") is None


class TestLoop:
    def test_a_defect_is_seen_and_the_loop_goes_on(self, caplog: pytest.LogCaptureFixture) -> None:
        rounds: list[int] = []

        def round_() -> None:
            rounds.append(1)
            if len(rounds) == 2:
                raise ZeroDivisionError

        loop = make_loop(round_, timedelta(milliseconds=5))
        loop.start()
        wait_for("more rounds", lambda: len(rounds) > 4, 10)
        assert loop.stop(10)
        assert (loop.status.bugs, loop.status.last_bug) == (1, "ZeroDivisionError: ")
        assert "Traceback" in caplog.text

    def test_waking_does_not_wait_for_the_interval(self) -> None:
        rounds: list[int] = []
        loop = make_loop(lambda: rounds.append(1), timedelta(hours=1))
        loop.start()
        wait_for("the first round", lambda: rounds, 10)
        loop.wake()
        wait_for("the second", lambda: len(rounds) == 2, 10)
        assert loop.stop(10)


def make_loop(round_: Callable[[], None], interval: timedelta) -> Loop:
    return Loop("it", round_, interval=interval, clock=Clock())


@pytest.mark.parametrize("state", LeaseState)
def test_which_leases_have_a_tunnel(state: LeaseState) -> None:
    without = {LeaseState.WANTED, LeaseState.REQUESTED, LeaseState.TERMINATING}
    without |= {LeaseState.GONE, LeaseState.FAILED}
    enrolled = lease(1, state=state, underlay="203.0.113.7", enrolled=T0)
    assert bool(wanted_tunnels([enrolled])) == (state not in without)
    assert wanted_tunnels([replace(enrolled, underlay="")]) == ()
    # A machine that has not shown its token may be anybody's.
    assert wanted_tunnels([replace(enrolled, enrolled=None)]) == ()


def test_a_tunnel_is_pinned_to_its_leases_address_and_mac() -> None:
    one = lease(1, state=LeaseState.JOINED, underlay="203.0.113.7", enrolled=T0)
    (tunnel,) = wanted_tunnels([one])
    assert [str(address) for address in tunnel.addresses] == [one.address]
    assert tunnel.macs == (inner_mac(one.address),)
    assert wanted_tunnels([replace(one, address="no address")]) == ()


def test_an_odd_underlay_address_is_left_out() -> None:
    good = lease(1, state=LeaseState.JOINED, underlay="203.0.113.7", enrolled=T0)
    bad = lease(2, state=LeaseState.JOINED, underlay="ip-10-0-0-1.internal", enrolled=T0)
    assert [tunnel.name for tunnel in wanted_tunnels([good, bad])] == [tunnel_name(good)]


def test_a_tunnel_that_cannot_be_does_not_keep_out_the_others() -> None:
    site = spec.parse_site(
        located.loads(
            "site: cnaf\nunderlay: {interface: wan0, address: 198.51.100.1}\n"
            "tenants: {cms: {networks: {farm: {prefix: 10.9.0.0/24}}}}\n"
        )
    )
    good = lease(1, state=LeaseState.JOINED, underlay="203.0.113.7", enrolled=T0)
    bad = lease(2, state=LeaseState.JOINED, underlay="203.0.113.8", enrolled=T0, network="nosuch")
    loop = NetworkLoop(
        site=site,
        agent=None,  # type: ignore[arg-type]
        leases=lambda: (),
        clock=Clock(),
        reconcile=SECOND,
    )
    assert len(loop.with_tunnels(wanted_tunnels([bad, good])).tunnels()) == 1
