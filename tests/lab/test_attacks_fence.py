"""The attack suite knows when the kernel is done with its frames, however slow it is."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from lab.attacks import wire
from lab.attacks.bench import rounds
from lab.attacks.case import Case, Phase, Role, Shot, marker
from lab.attacks.fence import HOPS, Fence, StuckError, dropped, one_cpu
from lab.attacks.wire import Sightings, Wires

PATIENCE_S = 60.0


@contextmanager
def cable(passes: Callable[[int], bool]) -> Iterator[Fence]:
    """A fence along a cable that loses the frames it is told to, by their number."""
    near, relay_in = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    relay_out, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def carry() -> None:
        number = 0
        while frame := relay_in.recv(2048):
            number += 1
            if passes(number):
                relay_out.send(frame)

    relay = threading.Thread(target=carry)
    relay.start()
    fence = Fence(near, far, limit_s=PATIENCE_S, again_s=0.05)
    try:
        yield fence
    finally:
        near.send(b"")
        relay.join()
        fence.close()
        relay_in.close()
        relay_out.close()


def test_a_fence_passes_once_for_each_hop() -> None:
    with cable(lambda number: True) as fence:
        fence.wait()
        assert fence.number == HOPS
        assert not select.select([fence.receiver], [], [], 0)[0]


def test_a_lost_frame_is_sent_again() -> None:
    with cable(lambda number: number not in (1, 7)) as fence:
        fence.wait()
        assert fence.number == HOPS


def test_a_kernel_that_does_not_get_on_is_an_error() -> None:
    with cable(lambda number: False) as fence:
        fence.limit_s = 0.2
        with pytest.raises(StuckError, match="along a cable"):
            fence.wait()


def test_a_run_stays_on_one_cpu_and_gives_it_back() -> None:
    before = os.sched_getaffinity(0)
    with one_cpu():
        assert len(os.sched_getaffinity(0)) == 1
        assert dropped() >= 0
    assert os.sched_getaffinity(0) == before


def test_frames_that_a_full_queue_may_have_lost_are_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = iter([0, 3, 3, 3])  # three were lost while the first try was on its way
    monkeypatch.setattr(wire, "dropped", lambda: next(counts))
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    far.setblocking(False)
    with cable(lambda number: True) as fence:
        wires = Wires({("r1", "eth0"): near}, [("r2", far)], fence)
        seen = Sightings()
        wires.inject([Shot(Phase.ATTACK, "r1", "eth0", marker(7, Role.ATTACK))], seen)
    assert len(seen.places(7, Role.ATTACK)["r2"]) == wires.sent == 2
    near.close()
    far.close()


def test_a_case_keeps_the_order_of_its_frames() -> None:
    def case(number: int, *frames: bytes) -> Case:
        shots = tuple(Shot(Phase.SETUP, "r1", "eth0", frame) for frame in frames)
        return Case(number, "a", "", "", "", 4, "r1", shots, frozenset(), frozenset(), "")

    found = rounds([case(0, b"a1", b"a2", b"a3"), case(1), case(2, b"b1")], Phase.SETUP)
    assert [[shot.frame for shot in shots] for shots in found] == [[b"a1", b"b1"], [b"a2"], [b"a3"]]
    assert rounds([case(0, b"a1")], Phase.AFTER) == []
