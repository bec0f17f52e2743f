"""`transport: auto`: two ends talk over simulated paths, find out the same, and choose alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvn.spec.tunnel import Carried
from dvn.tunnels.auto import Choice, Nat, PathFacts, choose
from dvn.tunnels.exchange import PROBE_PORT, Exchange, Packet
from dvn.tunnels.pmtu import Search

ALL: tuple[Carried, ...] = ("plain", "fou", "wireguard", "ipsec")
ENCRYPTED: tuple[Carried, ...] = ("wireguard", "ipsec")
NATS: tuple[Nat, ...] = ("none", "one_to_one", "port")


@pytest.mark.parametrize(
    ("facts", "allowed", "expected"),
    [
        # The six situations of NAT, everything allowed, the cheapest first.
        (PathFacts(True, True), ALL, "plain"),
        (PathFacts(True, True, here="one_to_one"), ALL, "plain"),
        (PathFacts(True, True, here="port"), ALL, "wireguard"),
        (PathFacts(True, True, there="port"), ALL, "wireguard"),
        (PathFacts(True, True, here="port", there="port"), ALL, "wireguard"),
        (PathFacts(True, False), ALL, "plain"),
        (PathFacts(False, True), ALL, "fou"),
        # By default only what is encrypted.
        (PathFacts(True, True), ENCRYPTED, "wireguard"),
        (PathFacts(True, True, here="port"), ENCRYPTED, "wireguard"),
        (PathFacts(True, True), ("ipsec", "wireguard"), "ipsec"),
        (PathFacts(True, False), ENCRYPTED, None),
        (PathFacts(False, False, here="port", there="port"), ALL, None),
    ],
)
def test_choice(facts: PathFacts, allowed: tuple[Carried, ...], expected: str | None) -> None:
    found = choose(facts, allowed)
    assert found.transport == expected
    assert found.why


def test_it_says_why_and_what_it_passed_over() -> None:
    found = choose(PathFacts(True, True, here="port"), ("plain", "fou", "wireguard"))
    assert found.why == (
        "wireguard: UDP passes, and it follows an end whose ports are translated; "
        "not plain: GRE has no ports, and a box before an end translates them; "
        "not fou: its ports are fixed, and a box before an end changes them"
    )
    nothing = choose(PathFacts(False, False, here="port", there="port"), ENCRYPTED)
    assert nothing.transport is None
    assert nothing.why.endswith("give one end a forwarded port, or an address of its own")


@given(
    st.booleans(), st.booleans(), st.sampled_from(NATS), st.sampled_from(NATS),
    st.lists(st.sampled_from(ALL), unique=True),
)  # fmt: skip
def test_both_ends_choose_alike(
    gre: bool, udp: bool, here: Nat, there: Nat, allowed: list[Carried]
) -> None:
    one = choose(PathFacts(gre, udp, here, there), allowed)
    other = choose(PathFacts(gre, udp, there, here), allowed)
    assert one.transport == other.transport
    assert one.transport is None or one.transport in allowed


@given(st.integers(1280, 9001), st.integers(1280, 9001), st.integers(0, 2))
def test_the_search_finds_the_size_and_soon(path: int, largest: int, losses: int) -> None:
    """Up to two packets in a row lost by chance change nothing."""
    search, steps = Search(1280, max(largest, 1280)), 0
    while not search.done:
        size = search.size
        assert search.low < size <= search.high
        if size <= path:
            for _ in range(losses):
                search = search.lost()
            assert search.size == size
            search = search.came(size)
        else:
            search = search.lost()
        steps += 1
    assert search.result == min(path, max(largest, 1280))
    assert steps <= 60


@dataclass
class Box:
    """What stands before an end, as Linux does it. `flows`: (outer port, the other end's port)
    that packets from inside opened."""

    nat: Nat
    inside: str
    outside: str
    gre: bool = True
    udp: bool = True
    keeps_ports: bool = False

    def __post_init__(self) -> None:
        self.flows: dict[tuple[int, int], int] = {}

    def passes(self, via: str) -> bool:
        return self.gre if via == "gre" else self.udp

    def out(self, port: int, to_port: int) -> tuple[str, int]:
        if self.nat == "none":
            return self.inside, port
        if self.nat == "one_to_one":
            return self.outside, port
        changed = port if self.keeps_ports or not port else port % 1000 + 20000
        self.flows[(changed, to_port)] = port
        return self.outside, changed

    def into(self, port: int, from_port: int) -> int | None:
        if self.nat != "port":
            return port
        return self.flows.get((port, from_port))


@dataclass
class End:
    talk: Exchange
    box: Box
    remote: str | None
    stray_port: int = 40001


def converse(a: End, b: End, path: int, rounds: int = 300) -> int:
    """Until both are over; returns the number of rounds."""
    for number in range(rounds):
        for end, other in ((a, b), (b, a)):
            end.talk, packets = end.talk.round()
            for packet in packets:
                deliver(packet, end, other, path)
        if a.talk.over and b.talk.over:
            return number
    raise AssertionError(f"not over: {a.talk.facts()} {b.talk.facts()}")


def deliver(packet: Packet, end: End, other: End, path: int) -> None:
    if packet.size > path or not (end.box.passes(packet.via) and other.box.passes(packet.via)):
        return
    target, port = end.remote, PROBE_PORT
    if packet.via == "udp" and end.talk.remote:
        target, port = end.talk.remote
    own = {"gre": 0, "udp": PROBE_PORT, "stray": end.stray_port}[packet.via]
    if packet.via == "gre":
        port = 0
    if target is None:
        return
    source, source_port = end.box.out(own, port)
    reachable = other.box.inside if other.box.nat == "none" else other.box.outside
    if target != reachable:
        return
    arrived = other.box.into(port, source_port)
    if arrived is None or (arrived != PROBE_PORT and packet.via != "gre"):
        return
    if other.remote not in (None, source):
        return
    via: Any = "gre" if packet.via == "gre" else "udp"
    other.talk = other.talk.receive(via, source, source_port, packet.body)


def ends(box_a: Box, box_b: Box) -> tuple[End, End]:
    def talk(nonce: str, box: Box) -> Exchange:
        return Exchange(42, nonce, box.inside, Search(1280, 1500))

    def address(box: Box) -> str:
        return box.inside if box.nat == "none" else box.outside

    return End(talk("a", box_a), box_a, address(box_b)), End(
        talk("b", box_b), box_b, address(box_a)
    )


def a_box(nat: Nat, **more: Any) -> Box:
    return Box(nat, "192.168.1.2", "198.51.100.1", **more)


def b_box(nat: Nat, **more: Any) -> Box:
    return Box(nat, "192.168.2.2", "203.0.113.1", **more)


SITUATIONS: list[tuple[str, Callable[[], tuple[End, End]], str | None]] = [
    ("no NAT", lambda: ends(a_box("none"), b_box("none")), "plain"),
    ("1:1 NAT", lambda: ends(a_box("one_to_one"), b_box("none")), "plain"),
    ("1:1 NAT at both", lambda: ends(a_box("one_to_one"), b_box("one_to_one")), "plain"),
    ("masquerade here", lambda: ends(a_box("port"), b_box("none")), "wireguard"),
    ("masquerade there", lambda: ends(a_box("none"), b_box("port")), "wireguard"),
    (
        "masquerade at both, ports kept",
        lambda: ends(a_box("port", keeps_ports=True), b_box("port", keeps_ports=True)),
        "wireguard",
    ),
    ("UDP blocked", lambda: ends(a_box("none", udp=False), b_box("none")), "plain"),
    ("GRE blocked", lambda: ends(a_box("none"), b_box("none", gre=False)), "fou"),
    (
        "GRE blocked, 1:1 NAT",
        lambda: ends(a_box("one_to_one", gre=False), b_box("none")),
        "fou",
    ),
]


@pytest.mark.parametrize(("name", "made", "expected"), SITUATIONS, ids=[s[0] for s in SITUATIONS])
@pytest.mark.parametrize("path", [1400, 1500])
def test_situations(
    name: str, made: Callable[[], tuple[End, End]], expected: str | None, path: int
) -> None:
    a, b = made()
    rounds = converse(a, b, path)
    assert rounds * 0.2 < 30
    facts = a.talk.facts(), b.talk.facts()
    assert facts[0] is not None
    assert facts[1] is not None
    assert [fact.mtu for fact in facts if fact] == [path, path]
    assert (facts[0].here, facts[0].there) == (facts[1].there, facts[1].here)
    choices: list[Choice] = [choose(fact, ALL) for fact in facts if fact]
    assert [choice.transport for choice in choices] == [expected, expected]


def test_an_end_that_knows_no_address_waits_to_be_called() -> None:
    a, b = ends(a_box("port"), b_box("none"))
    b.remote = None
    converse(a, b, 1500)
    facts = b.talk.facts()
    assert facts is not None
    assert facts.udp
    assert facts.there == "port"


def test_nobody_there() -> None:
    a, _b = ends(a_box("none"), b_box("none"))
    for _ in range(20):
        a.talk, _packets = a.talk.round()
    assert a.talk.facts() is None
    assert not a.talk.over


@given(st.binary(max_size=300))
def test_garbage_is_ignored(body: bytes) -> None:
    a, _b = ends(a_box("none"), b_box("none"))
    assert a.talk.receive("udp", "203.0.113.1", 1, body) == a.talk


@pytest.mark.parametrize(("here", "there"), list(product(NATS, NATS)))
def test_facts_in_words(here: Nat, there: Nat) -> None:
    assert "GRE passes, UDP does not pass" in str(PathFacts(True, False, here, there))
