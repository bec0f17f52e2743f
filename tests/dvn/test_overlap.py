"""Numbers of networks, the tree of rules that leads to them, and what a change makes stale."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvn.allocate import FIRST_TABLE, HIGHEST, allocate, mark_of, number_of, table_of
from dvn.compile import compile_site
from dvn.engine import Engine
from dvn.kernel.conntrack import Connection, Flows, matches
from dvn.kernel.state import ForeignRouting, KernelState
from dvn.kernel.steps import AddLink, CutConnections
from dvn.nat.driver import own_rules
from dvn.nat.stale import stale
from dvn.nat.things import FIRST, LAST, Rule, rules
from dvn.problems import SpecError
from dvn.spec import Site, site_from_json
from tests.dvn import twins
from tests.dvn.sites import a_kernel, sites

NUMBERS = st.integers(1, HIGHEST)
NETWORKS = st.tuples(st.sampled_from(["cms", "atlas", "lhcb"]), st.sampled_from("abcdef"))


# -- numbers


@given(st.sets(NETWORKS), st.sets(st.integers(1, 20)), st.lists(st.sets(NETWORKS), max_size=5))
def test_who_has_a_number_keeps_it(
    first: set[tuple[str, str]], taken: set[int], later: list[set[tuple[str, str]]]
) -> None:
    held = allocate(sorted(first), {}, taken)
    for networks in later:
        now = allocate(sorted(networks), held, taken)
        assert all(now[network] == held[network] for network in networks & held.keys())
        assert len(set(now.values())) == len(now)
        new = {now[network] for network in networks - held.keys()}
        assert not new & (set(held.values()) | taken)
        used = set(held.values()) | taken | new
        assert new <= set(range(1, len(used) + 1)), "the lowest that are free"
        held = now


def test_a_host_that_is_full_says_so() -> None:
    with pytest.raises(SpecError, match="more than 65535 networks"):
        allocate([("cms", "farm")], {}, range(1, HIGHEST + 1))


def test_restarts_and_neighbours_change_no_number() -> None:
    """Read back from the routers; a table that others use is left to them."""
    kernel = a_kernel()
    kernel.foreign_routing = ForeignRouting({table_of(1): "rule 500 of `ip rule`"})
    Engine(kernel).apply(site_from_json(twins_of(3)))
    before = {link.name: link.params for link in kernel.links.values()}
    assert min(kernel.look("cnaf").host.numbers.values()) == 2
    fewer = twins_of(3)
    del fewer["tenants"]["t0"]
    Engine(kernel).apply(site_from_json(fewer))
    assert {name: kernel.links[name].params for name in kernel.links}.items() <= before.items()
    Engine(kernel).apply(site_from_json(twins_of(4)))
    assert before.items() <= {name: kernel.links[name].params for name in kernel.links}.items()


def test_a_table_that_others_came_to_use_is_refused() -> None:
    kernel = a_kernel()
    site = site_from_json(twins_of(1))
    Engine(kernel).apply(site)
    kernel.foreign_routing = ForeignRouting({table_of(1): "the VRF mgmt"})
    with pytest.raises(SpecError, match=r"table 1000001 .* used by the VRF mgmt"):
        Engine(kernel).plan(site)
    kernel.foreign_routing = ForeignRouting({}, frozenset({FIRST + 7}))
    with pytest.raises(SpecError, match="rule 20007 of `ip rule` is not ours"):
        Engine(kernel).plan(site)


# -- the tree


def looked_up(every: Iterable[Rule], mark: int) -> tuple[str, int, int]:
    """(action, target, rules compared), as fib_rules_lookup does it."""
    ordered = sorted(every, key=lambda rule: rule.preference)
    at, compared = 0, 0
    while at < len(ordered):
        rule = ordered[at]
        compared += 1
        if (mark & rule.mask == rule.mark) == rule.inverted:
            at += 1
        elif rule.action == "goto":
            assert rule.target > rule.preference
            at = next(i for i, other in enumerate(ordered) if other.preference == rule.target)
        elif rule.action == "nop":
            at += 1
        else:
            return rule.action, rule.target, compared
    return "", 0, compared


@given(st.sets(NUMBERS, max_size=40), NUMBERS, st.integers(0, 0xFFFFFFFF))
def test_a_mark_leads_to_its_own_table(numbers: set[int], other: int, foreign: int) -> None:
    tree = {rule.key: rule for number in numbers for rule in rules(4, number)}.values()
    for number in numbers:
        assert looked_up(tree, mark_of(number))[:2] == ("table", table_of(number))
    if numbers and other not in numbers:
        assert looked_up(tree, mark_of(other))[0] == "blackhole"
    if number_of(foreign & 0xFFFF) is None and foreign >> 16 != mark_of(1) >> 16:
        action, _target, compared = looked_up(tree, foreign)
        assert (action, compared <= 2) == ("", True), "what has no mark of ours goes past"
    assert all(FIRST <= rule.preference <= LAST for rule in tree)


def test_4000_networks_cost_a_packet_some_fifty_compares() -> None:
    tree = {rule.key: rule for number in range(1, 4001) for rule in rules(6, number)}.values()
    assert max(looked_up(tree, mark_of(number))[2] for number in range(1, 4001, 7)) <= 4 * 16 + 1
    assert len(tree) < 4000 * 1.1


def test_what_two_sites_share_is_shown_and_never_removed() -> None:
    both = {r.key: r for number in (1, 2, 300) for r in rules(4, number)}.values()
    mine = {rule.key: rule for rule in own_rules(both, {table_of(2), table_of(300)})}
    assert set(mine) == {rule.key for rule in rules(4, 1)}
    assert {rule.is_leaf for rule in mine.values() if not rule.shared} == {True}
    # When the site's own is gone, the rest is the other's.
    rest = [rule for rule in both if not (rule.is_leaf and rule.target == table_of(1))]
    assert not list(own_rules(rest, {table_of(2), table_of(300)}))
    assert set(own_rules(rest, set())) == set(rest), "nobody's is whoever's looks"


# -- many tenants, one set of rules


def twins_of(count: int) -> dict[str, Any]:
    """So many tenants, all with the same prefix, addresses and outside address."""
    network = {"prefix": ["10.9.0.0/24", "fd00:9::/64"], "nat": {"snat": ["192.0.2.1"]}}
    return {
        "site": "cnaf",
        "underlay": {"interface": "wan0", "address": "198.51.100.1"},
        "tenants": {f"t{number}": {"networks": {"farm": network}} for number in range(count)},
    }


def compiled(content: dict[str, Any] | Site) -> KernelState:
    kernel = a_kernel()
    site = content if isinstance(content, Site) else site_from_json(content)
    return compile_site(site, kernel.look("cnaf").host).state


def test_2_and_200_tenants_have_the_same_rules() -> None:
    few, many = (
        {(t.family, c.name): c.rules for t in compiled(twins_of(count)).tables for c in t.chains}
        for count in (2, 200)
    )
    assert few == many
    assert sum(map(len, few.values())) > 50


# -- what is stale


def changed(change: str, **values: object) -> tuple[str, ...]:
    """What must be cut if a farm of red changes, and what if it changes back."""
    content = twins.site()
    before = compiled(content)
    red = content["tenants"]["red"]
    match change:
        case "policy":
            red["policy"] = []
        case "less policy":
            red["policy"][0]["services"] = ["tcp/5002"]
        case "gone":
            del content["tenants"]["blue"]
            return tuple(map(str, stale(before, compiled_as(before, content))))
        case _:
            red["networks"]["farm"] |= values
    return tuple(map(str, stale(before, compiled(content))))


def compiled_as(before: KernelState, content: dict[str, Any]) -> KernelState:
    """Compiled with the numbers that are there."""
    kernel = a_kernel()
    kernel.links = {link.name: link for link in before.links}
    return compile_site(site_from_json(content), kernel.look("cnaf").host).state


NAT = twins.site()["tenants"]["red"]["networks"]["farm"]["nat"]
RED, BLUE, STORE = 0x64760002, 0x64760001, 0x64760003


@pytest.mark.parametrize(
    ("change", "values", "cut"),
    [
        ("nothing", {}, ()),
        ("nat", {"nat": NAT | {"snat": ["198.51.100.11"]}}, (f"{RED:#x}, by 198.51.100.10",)),
        (
            "forward",
            {"nat": NAT | {"forward": NAT["forward"][1:]}},
            (f"{RED:#x}, by 198.51.100.10, tcp/8081",),
        ),
        ("more", {"nat": NAT | {"one_to_one": {"10.7.0.9": "198.51.100.30"}}}, ()),
        ("policy", {}, (f"{RED:#x}, to 10.6.0.0/24, tcp/5001",)),
        ("less policy", {}, (f"{RED:#x}, to 10.6.0.0/24, tcp/5001",)),
        ("gone", {}, (f"{BLUE:#x}",)),
    ],
)
def test_what_a_change_cuts(change: str, values: dict[str, object], cut: tuple[str, ...]) -> None:
    assert changed(change, **values) == tuple(f"mark {words}" for words in cut)


def test_open_to_closed_cuts_what_goes_on_with_the_site() -> None:
    content = twins.site()
    farm = content["tenants"]["blue"]["networks"]["farm"]
    farm["access"] = "open"
    opened = compiled(content)
    farm["access"] = "closed"
    cut = tuple(map(str, stale(opened, compiled(content))))
    assert f"mark {BLUE:#x}, not translated" in cut
    assert stale(compiled(content), opened) == (), "the other way nothing was forbidden"


@given(sites(), sites())
def test_a_plan_cuts_nothing_of_networks_that_stay_as_they_are(first: Site, second: Site) -> None:
    kernel = a_kernel()
    Engine(kernel).apply(first)
    numbers = kernel.look("cnaf").host.numbers
    steps = Engine(kernel).plan(second).steps
    cut = {flows.mark for step in steps if isinstance(step, CutConnections) for flows in step.flows}
    untouched = {
        mark_of(numbers["cnaf", tenant, name])
        for tenant, name, network in first.networks()
        if second.tenants.get(tenant) and second.tenants[tenant].networks.get(name) == network
    }
    assert not cut & untouched
    made = {step.link.params for step in steps if isinstance(step, AddLink)}
    assert all(
        mark_of(params.table - FIRST_TABLE) in cut for params in made if params.kind == "vrf"
    ), "a number that was somebody's before has none of his connections"


def test_a_kill_before_the_cut_leaves_a_note() -> None:
    """The rules are changed, the connections not yet cut: the next start finds that in the kernel
    and does it, and then owes nothing."""
    kernel = a_kernel()
    content = twins.site()
    Engine(kernel).apply(site_from_json(content))
    content["tenants"]["red"]["policy"] = []
    changed_ = site_from_json(content)
    for step in Engine(kernel).plan(changed_).steps:
        if isinstance(step, CutConnections):
            break
        kernel.perform(step)
    else:
        pytest.fail("nothing was to be cut")
    again = Engine(kernel).apply(changed_)
    assert f"- connections of mark {RED:#x}" in again.steps
    assert Engine(kernel).plan(changed_).steps == ()
    # The control: without the kill there is nothing left to do.
    kernel.done.clear()
    Engine(kernel).apply(changed_)
    assert kernel.done == []


@pytest.mark.parametrize(
    ("flows", "fits"),
    [
        (Flows(7), True),
        (Flows(7, outside="198.51.100.10"), True),
        (Flows(7, outside="198.51.100.11"), False),
        (Flows(7, to="192.0.2.0/24", protocol="tcp", port=443), True),
        (Flows(7, protocol="tcp", port=80), False),
        (Flows(7, protocol="udp", port=443), False),
        (Flows(7, not_to=("192.0.2.0/24",)), False),
        (Flows(7, source=("10.0.0.0/8",)), True),
        (Flows(7, source=("fd00::/8",)), False),
        (Flows(7, version=6), False),
        (Flows(7, translated=False), False),
        (Flows(8), False),
    ],
)
def test_which_connections_are_meant(flows: Flows, fits: bool) -> None:
    from ipaddress import ip_address

    inside, outside, server = map(ip_address, ("10.9.0.3", "198.51.100.10", "192.0.2.1"))
    one = Connection(7, 4, inside, server, outside, server, 6, 443, True, b"")
    assert matches(flows, one) is fits
