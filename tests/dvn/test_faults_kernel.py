"""The fault matrix and kills on a real kernel; nothing slips through while rules change."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import cycle

import pytest

from dvn.engine import Engine
from dvn.kernel.linux import LinuxKernel
from dvn.kernel.nftcommands import DelTable, LoadTable
from dvn.kernel.state import NftTable, View
from dvn.kernel.steps import NftChange, Step, Writes
from dvn.spec import Site
from lab.host import wait_for
from lab.hosts import Lab
from tests.dvn.change_place import GOOD, TAP3, WITH_A_SERVICE, ChangePlace, site
from tests.dvn.faults import (
    KINDS,
    MOST_PASSES,
    Fault,
    FaultyNft,
    FaultySocket,
    Kind,
    passes_until,
    points,
)

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

EMPTY = Site.model_validate({"site": "cnaf"})
FOREIGN = """
ip link add br-foreign type bridge && ip address add 192.0.2.77/32 dev br-foreign
nft 'add table inet foreign; add chain inet foreign f { type filter hook forward priority 5; };
 add rule inet foreign f counter comment "theirs"; add table bridge foreign'
"""
THEIRS = (
    "ip -o address show br-foreign; ip -o address show op0; ip -o link show br-foreign;"
    "nft -s list table inet foreign; nft list table bridge foreign"
)


@pytest.fixture(scope="module")
def place() -> Iterator[ChangePlace]:
    with Lab() as lab:
        made = ChangePlace(lab)
        made.gw.script(FOREIGN)
        yield made


CHANGES = {
    "the first": (EMPTY, site(GOOD)),
    "a service more": (site(GOOD), site(WITH_A_SERVICE)),
    "the last": (site(GOOD), EMPTY),
}


class FaultyKernel(LinuxKernel):
    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self._open_socket = FaultySocket(fault)
        self._open_nft = FaultyNft(fault)


def apply_with(fault: Fault, first: Site, second: Site) -> int:
    """The passes it takes; runs in the gateway. Before and after, another engine with sockets of
    its own makes the first site, and looks at what there is."""
    with closing(LinuxKernel()) as sound, closing(FaultyKernel(fault)) as faulty:
        Engine(sound).apply(first)
        passes = passes_until(Engine(faulty), second)
        assert Engine(sound).plan(second).steps == ()
    return passes


def matrix(place: ChangePlace, kinds: tuple[Kind, ...], stride: int) -> Counter[int]:
    worst: Counter[int] = Counter()
    before = place.gw.script(THEIRS).stdout
    for first, second in CHANGES.values():
        counting = Fault(None, KINDS[0])
        assert place.gw.inside(partial(apply_with, counting, first, second)) == 1
        for kind in kinds:
            for at in points(counting.calls, stride):
                fault = Fault(at, kind)
                passes = place.gw.inside(partial(apply_with, fault, first, second))
                assert fault.consumed
                worst[passes] += 1
    assert place.gw.script(THEIRS).stdout == before
    assert max(worst) <= MOST_PASSES
    return worst


def test_calls_to_the_kernel_may_fail_once(
    place: ChangePlace, record_property: Callable[[str, object], None]
) -> None:
    worst = matrix(place, (KINDS[1], KINDS[6]), 11)
    record_property("fault_points", worst.total())
    record_property("worst_passes", max(worst))


@pytest.mark.long
@pytest.mark.timeout(3600)  # thousands of points on an emulated processor
def test_any_call_to_the_kernel_may_fail_once(
    place: ChangePlace, record_property: Callable[[str, object], None]
) -> None:
    worst = matrix(place, KINDS, 1)
    record_property("fault_points", worst.total())
    record_property("worst_passes", max(worst))


class Dies(LinuxKernel):
    """Is killed in front of a step."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self._left = left

    def carry_out(self, steps: Sequence[Step]) -> Writes:
        for number, step in enumerate(steps):
            if number == self._left:
                os.kill(os.getpid(), signal.SIGKILL)
            super().carry_out([step])
        return Writes()


def everything(engine: Engine) -> object:
    """Without the order in which it came to be."""
    state = engine.show("cnaf")
    tables = frozenset((t.family, frozenset(t.sets), frozenset(t.chains)) for t in state.tables)
    # A router's MAC address is the kernel's choice each time it is made.
    links = (replace(x, mac=None) if x.params.kind == "vrf" else x for x in state.links)
    parts = (links, state.ports, state.addresses, state.things)
    return (tables, *(frozenset(part) for part in parts))


@pytest.mark.parametrize(
    "stride", [pytest.param(5, id="some"), pytest.param(1, id="all", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("name", ["the first", "the last"])
def test_killed_between_two_steps_a_restart_finishes_it(
    place: ChangePlace, name: str, stride: int
) -> None:
    before = place.gw.script(THEIRS).stdout
    first, second = CHANGES[name]

    def prepare() -> tuple[int, object]:
        with closing(LinuxKernel()) as kernel:
            Engine(kernel).apply(first)
            steps = len(Engine(kernel).plan(second).steps)
            Engine(kernel).apply(second)
            wanted = everything(Engine(kernel))
            Engine(kernel).apply(first)
        return steps, wanted

    def restarted() -> object:
        with closing(LinuxKernel()) as kernel:
            Engine(kernel).apply(second)
            assert Engine(kernel).plan(second).steps == ()
            found = everything(Engine(kernel))
            Engine(kernel).apply(first)
        return found

    steps, wanted = place.gw.inside(prepare)
    for left in range(0, steps, stride):
        child = place.child(partial(Engine(Dies(left)).apply, second))
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        assert place.gw.inside(restarted) == wanted, left
    assert place.gw.script(THEIRS).stdout == before


class Counting(LinuxKernel):
    """Counts the looks at everything."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def look(self, site: str) -> View:
        self.looks += 1
        return super().look(site)


def test_what_was_only_asked_about_is_still_somebody_elses_doing(place: ChangePlace) -> None:
    """Between two changes by parts somebody changes a link, and `dvn show` sees it first. The
    control: where nobody changed anything, the question does not make the next change look."""

    def looks_of(*damage: str) -> int:
        with closing(Counting()) as kernel:
            engine = Engine(kernel)
            engine.apply(site(GOOD))
            engine.apply(site(WITH_A_SERVICE))
            subprocess.run(damage, check=True, timeout=60)
            engine.show()
            looks = kernel.looks
            engine.apply(site(GOOD))
            looks = kernel.looks - looks
            assert engine.plan(site(GOOD)).steps == ()
        return looks

    assert place.gw.inside(lambda: looks_of("true")) == 0
    damage = ["ip", "link", "set", "b-cms-farm", "mtu", "1300"]
    assert place.gw.inside(lambda: looks_of(*damage)) > 0


class Sender:
    """Sends UDP datagrams from a host to several addresses, as fast as they go, in a thread."""

    def __init__(self, place: ChangePlace, host: str, targets: list[tuple[str, int]]) -> None:
        def open_() -> socket.socket:
            return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

        self._socket = place.hosts[host].inside(open_)
        self._targets = targets
        self._stopping = False
        self.sent = 0
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def _send(self) -> None:
        for target in cycle(self._targets):
            if self._stopping:
                return
            try:
                self._socket.sendto(struct.pack("!I", self.sent), target)
                self.sent += 1
            except OSError:
                continue  # an ICMP error of the datagram before
            time.sleep(0.0005)

    def stop(self) -> None:
        self._stopping = True
        self._thread.join(10)
        self._socket.close()


class Receiver:
    """Counts what comes to a UDP port of a host."""

    def __init__(self, place: ChangePlace, host: str, port: int) -> None:
        def open_() -> socket.socket:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("0.0.0.0", port))
            sock.setblocking(False)
            return sock

        self._socket = place.hosts[host].inside(open_)

    def count(self) -> int:
        found = 0
        while True:
            try:
                self._socket.recv(64)
            except BlockingIOError:
                return found
            found += 1

    def close(self) -> None:
        self._socket.close()


# Each has a way to the other, the main table: only the filters keep them apart.
OPEN = GOOD.replace("/24,", "/24, access: open,")
VARIANTS = (
    OPEN.replace("10.9.0.0/24,", "10.9.0.0/24, services: [udp/7],"),
    OPEN.replace("10.9.0.0/24,", "10.9.0.0/24, services: [udp/7, tcp/22],").replace(
        TAP3, "{interface: tap3, address: 10.9.0.3, mac: '%s'}"
    ),
)


def test_nothing_slips_through_while_rules_change(place: ChangePlace) -> None:
    """m1 (cms) sends to m2 (atlas) and to the gateway, all the time. The gateway routes between
    their networks, so that only the filters keep them apart: those are added to, rewritten, and
    loaded anew as a whole, again and again. The controls: what is allowed arrives meanwhile, and
    without the tables the same datagrams do reach m2."""
    mac = place.hosts["m1"].script("cat /sys/class/net/eth0/address").stdout.strip()
    variants = [site(VARIANTS[0]), site(VARIANTS[1] % mac)]
    place.gw.inside(lambda: Engine().apply(variants[0]))
    forbidden, allowed = Receiver(place, "m2", 7), Receiver(place, "gw", 7)
    sender = Sender(place, "m1", [("10.8.0.4", 7), ("10.9.0.1", 7)])

    def change(times: int) -> None:
        with closing(LinuxKernel()) as kernel:
            engine = Engine(kernel)
            for number in range(times):
                engine.apply(variants[number % 2])
                # And each table as a whole, as an undo writes it.
                kernel.carry_out(_reloads(engine.before(variants[0]).tables))

    try:
        place.gw.inside(lambda: change(12))
        assert allowed.count() > 50
        assert forbidden.count() == 0
        sent = sender.sent
        assert sent > 100
        place.gw.script("nft delete table inet dvn-cnaf; nft delete table bridge dvn-cnaf")
        wait_for(forbidden.count, 20, what="what only the filters kept away")
    finally:
        sender.stop()
        forbidden.close()
        allowed.close()
        place.gw.inside(lambda: Engine().apply(site(GOOD)))


def _reloads(tables: tuple[NftTable, ...]) -> list[NftChange]:
    return [NftChange((DelTable((table.family, table.name)), LoadTable(table))) for table in tables]
