"""The attack suite's own parts: values, markers, judging, and breaking a rule; no kernel."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvn import located
from dvn.compile import compile_site
from dvn.kernel.state import KernelState
from dvn.spec import parse_site
from lab.attacks import change, ground, plan
from lab.attacks.both import together
from lab.attacks.case import MARKER_SIZE, Case, Phase, Role, Shot, dump, load, marker, markers
from lab.attacks.judge import judge
from lab.attacks.store import cases
from lab.attacks.wire import Sightings
from lab.kernel import FEATURES
from tests.dvn.sites import a_kernel

# One worker for all: the cases are made once.
pytestmark = pytest.mark.xdist_group("attacks")

# Attacks that succeed when the attacker itself sees something.
HEARD = ("traffic-theft", "undeclared listener")
numbers = st.integers(0, 2**32 - 1)
roles = st.sampled_from([Role.ATTACK, Role.CONTROL])


@cache
def whole() -> tuple[Case, ...]:
    """All cases; they are kept for the kernel tests, where making them takes minutes."""
    return cases()


@given(numbers, roles, st.binary(max_size=200), st.binary(max_size=200))
def test_a_marker_is_found_wherever_it_is(number: int, role: Role, a: bytes, b: bytes) -> None:
    one = marker(number, role)
    assert len(one) == MARKER_SIZE
    assert (number, role) in set(markers(a + one + b))


@given(numbers, roles, st.integers(0, MARKER_SIZE - 1), st.integers(1, 255))
def test_a_damaged_marker_is_nobodys(number: int, role: Role, at: int, bits: int) -> None:
    """Whatever byte is changed, it never becomes another case's."""
    damaged = bytearray(marker(number, role))
    damaged[at] ^= bits
    assert (number, role) not in set(markers(bytes(damaged)))


def test_the_catalogue_is_whole() -> None:
    """Each case attacks, can be told apart, and has a control that must arrive somewhere."""
    names = Counter(case.name for case in whole())
    assert [name for name, count in names.items() if count > 1] == []
    assert [case.number for case in whole()] == list(range(len(whole())))
    for case in whole():
        carried = Counter(key for shot in case.shots for key in markers(shot.frame))
        assert set(carried) <= {(case.number, Role.ATTACK), (case.number, Role.CONTROL)}, case.name
        assert carried[case.number, Role.CONTROL], case.name
        assert case.arrives_at, case.name
        assert carried[case.number, Role.ATTACK] or not case.leaks_at, case.name
        assert any(shot.phase == Phase.ATTACK for shot in case.shots), case.name
        assert case.leaks_at <= ground.PLACES | {ground.ROUTER, ground.UNDERLAY}, case.name
        assert case.arrives_at <= ground.PLACES | {ground.CABLE}, case.name
        assert case.attacker not in case.leaks_at or case.attack in HEARD, case.name


def test_every_way_in_attacks_every_other_network_by_every_protocol() -> None:
    """The matrix tenant x tenant x protocol x family has no holes."""
    found = Counter(
        (case.attacker, case.family, case.name.split("/")[1].split()[0])
        for case in whole()
        if case.attack == "tenant-to-tenant"
    )
    attackers = {"r1", "r5", "head", "cloud", "r3", "b1", "b9", "disk", "moon", "b3", "b5", "b7"}
    assert {attacker for attacker, _family, _net in found} == attackers
    assert {(family, count) for (_a, family, _net), count in found.items()} == {(4, 15), (6, 11)}
    twins = 2  # they cannot even name each other
    pairs = len(attackers) * (len(ground.NETS) - 1) - twins
    assert len(found) == 2 * pairs


def test_a_swept_shot_has_a_frame_for_each_number() -> None:
    shot = Shot(Phase.ATTACK, "r1", "eth0", b"ab\xff\xffcd", times=3, sweep=2)
    assert list(shot.frames()) == [b"ab\xff\xffcd", b"ab\0\0cd", b"ab\0\1cd"]
    assert list(replace(shot, sweep=0).frames()) == [shot.frame] * 3


def test_cases_survive_being_written() -> None:
    some = whole()[::97]
    assert load(dump(some)) == some


# -- judging --------------------------------------------------------------------------------------


def a_case(**fields: object) -> Case:
    shot = Shot(Phase.ATTACK, "r1", "eth0", b"")
    plain = Case(
        7, "a", "a/b", "", "", 4, "r1", (shot,), frozenset({"r2", "b1"}), frozenset({"web"}), ""
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


def seen(*sights: tuple[Role, str, bytes]) -> Sightings:
    sightings = Sightings()
    for role, place, more in sights:
        sightings.add(place, b"before" + marker(7, role) + more)
    return sightings


CONTROL = (Role.CONTROL, "web", b"")


def test_what_is_seen_nowhere_is_blocked() -> None:
    verdict = judge([a_case()], seen(CONTROL))
    assert verdict.holds
    assert verdict.as_json()["blocked"] == verdict.as_json()["controls_passed"] == 1


def test_a_marker_at_a_forbidden_place_is_a_leak() -> None:
    verdict = judge([a_case()], seen(CONTROL, (Role.ATTACK, "b1", b"")))
    assert not verdict.holds
    assert [leak.places for leak in verdict.leaks] == [("b1",)]


def test_a_marker_at_another_place_is_none() -> None:
    assert judge([a_case()], seen(CONTROL, (Role.ATTACK, "r5", b""))).holds


def test_a_control_that_does_not_arrive_fails_the_run() -> None:
    """Blocked, and nothing proves that it could have been seen."""
    verdict = judge([a_case()], seen())
    assert not verdict.holds
    assert verdict.missed == {"a/b": ("web",)}
    assert verdict.as_json()["blocked"] == 1


def test_a_narrowed_leak_needs_all_its_bytes_in_one_frame() -> None:
    case = a_case(leaks_with=(b"left", b"right"))
    apart = seen(CONTROL, (Role.ATTACK, "b1", b"left"), (Role.ATTACK, "b1", b"right"))
    assert judge([case], apart).holds
    assert not judge([case], seen(CONTROL, (Role.ATTACK, "b1", b"right left"))).holds


def test_no_cases_prove_nothing() -> None:
    assert not judge([], Sightings()).holds


def test_the_result_is_plain_json() -> None:
    found = json.loads(json.dumps(judge([a_case()], seen()).as_json()))
    assert {"cases", "blocked", "controls", "controls_passed", "leaks"} <= set(found)


# -- breaking a rule ------------------------------------------------------------------------------


@cache
def gateway() -> KernelState:
    kernel = a_kernel()
    site = parse_site(located.loads(ground.site_text(FEATURES)))
    return compile_site(site, kernel.look(site.site).host, lenient=True).state


def test_the_grounds_site_file_is_right_with_all_features_and_without() -> None:
    for features in (FEATURES, frozenset[str]()):
        site = parse_site(located.loads(ground.site_text(features)))
        assert len(list(site.networks())) == len(ground.NETS)
        assert bool(site.tunnels()) == ("gretap" in features)


def test_a_rule_is_found_by_its_words_and_taken_away() -> None:
    (part,) = change.find(gateway(), "no network reaches another")
    left = change.without(gateway(), part)
    assert set(change.rules(gateway())) - set(change.rules(left)) == {part}


def test_a_set_is_emptied_by_its_name() -> None:
    (part,) = change.find(gateway(), "owned_mac")
    left = change.without(gateway(), part)
    before, after = (
        {each.name: each for table in state.tables for each in table.sets}
        for state in (gateway(), left)
    )
    assert before["owned_mac"].elements
    assert not after["owned_mac"].elements
    assert {name for name in before if before[name] != after[name]} == {"owned_mac"}


def test_a_rule_that_is_not_there_is_an_error_that_helps() -> None:
    with pytest.raises(change.NoSuchPartError, match="owned_mac"):
        change.find(gateway(), "no such rule")


# -- on the plan ----------------------------------------------------------------------------------


@cache
def planned() -> KernelState:
    return plan.state()


def test_every_attack_is_blocked_on_the_plan_and_every_control_passes() -> None:
    verdict = plan.walk_all(whole(), planned())
    assert [f"{leak.case.name}: {leak.places}" for leak in verdict.leaks] == []
    assert verdict.missed == {}
    assert len(verdict.left_out) < len(whole()) / 50


@pytest.mark.parametrize(
    ("words", "attack"),
    [
        # Closed networks are kept apart by their routing tables as well.
        ("no network reaches another", "tenant-to-tenant"),
        ("leaving: closed by default", "closed-to-site"),
        ("entering: closed by default", "into-a-network"),
        ("the gateway's own services are closed", "gateway-service"),
        ("an address of the inside, from outside", "inside-source"),
        ("forwarding here was switched on for the networks alone", "transit"),
        ("neither ARP, IPv4 nor IPv6", "ethertype"),
        ("router advertisements, redirects and the like", "rogue-ra"),
        ("a DHCP server that nobody declared", "rogue-dhcpv4"),
        ("a DHCPv6 server that nobody declared", "rogue-dhcpv6"),
        ("metadata services", "metadata"),
        ("a probe for somebody else's address", "arp-probe"),
        ("DHCP for another MAC address than its own", "dhcp-starvation"),
        ("STP, LLDP and other link-local multicast", "link-only"),
        ("no whole IPv4 header", "malformed"),
        ("owned_mac", "mac-spoof"),
        ("owned4", "arp-spoof"),
        ("nd_owned6", "nd-spoof"),
    ],
)
def test_each_filter_has_an_attack_that_finds_it_missing(words: str, attack: str) -> None:
    """The suite can fail, and says by which attack."""
    state = planned()
    for part in change.find(state, words):
        state = change.without(state, part)
    cases = [case for case in whole() if case.attack == attack]
    verdict = plan.walk_all(cases, state)
    assert verdict.leaks
    assert not verdict.holds


def test_two_runs_make_one_result() -> None:
    """What leaks in one of them is not blocked, and is told where."""
    leaking = judge([a_case()], seen(CONTROL, (Role.ATTACK, "b1", b""))).as_json()
    blocked = judge([a_case()], seen(CONTROL)).as_json()
    found = together(blocked, leaking)
    assert (found["cases"], found["blocked"], found["controls_passed"]) == (1, 0, 1)
    assert [(leak["on"], leak["case"]) for leak in found["leaks"]] == [("plan", "a/b")]
    assert together(blocked, None)["blocked"] == 1
    assert together(blocked, judge([], Sightings()).as_json())["cases"] == 1
