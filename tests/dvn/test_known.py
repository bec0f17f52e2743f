"""A change by parts ends where a look at everything ends, and costs what it changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvn.compile import compile_site
from dvn.engine import ApplyError, Engine
from dvn.kernel.diff import diff
from dvn.kernel.fake import FakeKernel
from dvn.kernel.state import HostLink, KernelState, View
from dvn.kernel.steps import NftChange, Step, Writes
from dvn.known import Known, NotByParts
from dvn.spec import Site, site_from_json
from tests.dvn.sites import a_kernel, full_site, sites


class Watched(FakeKernel):
    """Counts the looks at everything."""

    looks = 0

    def look(self, site: str) -> View:
        self.looks += 1
        return super().look(site)


def a_watched_kernel() -> Watched:
    base = a_kernel()
    return Watched(base.foreign, base.foreign_addresses, values=base.values)


def contents(kernel: FakeKernel) -> tuple[object, ...]:
    tables = {
        key: ({s.name: s for s in table.sets}, {c.name: c for c in table.chains})
        for key, table in kernel.tables.items()
    }
    return (
        dict(kernel.links), dict(kernel.masters), set(kernel.addresses), tables,
        dict(kernel.things), dict(kernel.values),
        {name for name, link in kernel.foreign.items() if link.up},
    )  # fmt: skip


@given(st.lists(sites(), min_size=2, max_size=5))
@settings(max_examples=100)
def test_by_parts_as_by_a_look_at_everything(some: list[Site]) -> None:
    by_parts, whole = a_watched_kernel(), a_kernel()
    engine = Engine(by_parts)
    for site in some:
        engine.apply(site)
        Engine(whole).apply(site)
        assert contents(by_parts) == contents(whole)
    assert Engine(by_parts).plan(some[-1]).steps == ()


@given(sites(), sites())
@settings(max_examples=100)
def test_some_networks_at_a_time_as_all_at_once(first: Site, second: Site) -> None:
    in_rows, whole = a_watched_kernel(), a_kernel()
    engine = Engine(in_rows, row=1)
    for site in (first, second):
        engine.apply(site)
        Engine(whole).apply(site)
        assert contents(in_rows) == contents(whole)
    assert Engine(in_rows).plan(second).steps == ()


@given(sites(), sites())
@settings(max_examples=100)
def test_what_is_known_is_what_is_compiled(first: Site, second: Site) -> None:
    kernel = a_kernel()
    host = kernel.look("cnaf").host
    context = compile_site(first, host).context
    assert context is not None
    known = Known(context)
    assert same(known.state(), compile_site(first, host).state)
    try:
        change = known.change(second)
    except NotByParts:
        return
    known.done(change)
    assert same(known.state(), compile_site(second, host).state)


def same(one: KernelState, two: KernelState) -> bool:
    return not diff(one, two) and not diff(two, one)


def changed(change: Callable[[dict[str, Any]], object]) -> Site:
    data = full_site().model_dump(mode="json")
    change(data["tenants"])
    return site_from_json(data)


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a network more": lambda tenants: tenants["atlas"]["networks"].update(
        more={"prefix": ["10.8.2.0/24"]}
    ),
    "a network less": lambda tenants: tenants["atlas"]["networks"].pop("store"),
    "another outside address": lambda tenants: tenants["atlas"]["networks"]["farm"].update(
        nat={"snat": ["198.51.100.77"]}
    ),
    "a tunnel less": lambda tenants: tenants["cms"]["tunnels"].pop("pisa"),
    "another key": lambda tenants: tenants["cms"]["tunnels"]["pisa"].update(key=77),
    "a port more": lambda tenants: tenants["atlas"]["networks"]["store"].update(
        ports=[{"interface": "tap4"}]
    ),
    "a service more": lambda tenants: tenants["cms"]["networks"]["farm"].update(
        services=["tcp/22", "udp/53"]
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_made_without_a_look_at_everything(name: str) -> None:
    kernel, whole = a_watched_kernel(), a_kernel()
    engine = Engine(kernel)
    engine.apply(full_site())
    looks = kernel.looks
    applied = engine.apply(changed(CHANGES[name]))
    assert applied.steps
    assert kernel.looks == looks
    for site in (full_site(), changed(CHANGES[name])):
        Engine(whole).apply(site)
    assert contents(kernel) == contents(whole)
    # The control: the same site again is an order to repair, and looks.
    assert engine.apply(changed(CHANGES[name])).steps == ()
    assert kernel.looks == looks + 1


def damage(kernel: FakeKernel) -> None:
    del kernel.links["t-cms-bari"]


def foreign(kernel: FakeKernel) -> None:
    kernel.foreign["eth9"] = HostLink("eth9", "", 1500, True, False)


@pytest.mark.parametrize("asked", [False, True], ids=["", "asked about"])
@pytest.mark.parametrize("what", [damage, foreign])
def test_what_somebody_else_did_is_looked_at(
    what: Callable[[FakeKernel], None], asked: bool
) -> None:
    """Also when somebody has asked meanwhile how things are, and so has seen it."""
    kernel = a_watched_kernel()
    engine = Engine(kernel)
    engine.apply(full_site())
    what(kernel)
    if asked:
        engine.show()
        engine.plan(full_site())
    looks = kernel.looks
    engine.apply(changed(CHANGES["a network more"]))
    assert kernel.looks > looks
    assert "t-cms-bari" in kernel.links


def rows_of(site: Site) -> int:
    kernel = a_kernel()
    Engine(kernel, row=1).apply(site)
    return len(kernel.done)


@pytest.mark.parametrize("index", range(rows_of(full_site())))
def test_a_start_in_rows_that_fails_leaves_nothing(index: int) -> None:
    kernel = a_kernel()
    left = [index]

    def fail(_step: Step) -> bool:
        left[0] -= 1
        return left[0] == -1

    kernel.fail = fail
    with pytest.raises(ApplyError, match="told to fail") as caught:
        Engine(kernel, row=1).apply(full_site())
    assert caught.value.undone
    assert not any((kernel.links, kernel.tables, kernel.masters, kernel.addresses, kernel.things))
    assert {value for key, value in kernel.values.items() if "forwarding" in key} <= {"0"}
    kernel.fail = None
    Engine(kernel, row=1).apply(full_site())
    assert Engine(kernel).plan(full_site()).steps == ()


def test_after_a_while_a_change_is_an_occasion_to_look() -> None:
    kernel = a_watched_kernel()
    now = [0.0]
    engine = Engine(kernel, clock=lambda: now[0])
    engine.apply(full_site())
    looks = kernel.looks
    now[0] += 3600
    engine.apply(changed(CHANGES["a network more"]))
    assert kernel.looks > looks


def steps_of(name: str) -> int:
    kernel = a_kernel()
    engine = Engine(kernel)
    engine.apply(full_site())
    done = len(kernel.done)
    engine.apply(changed(CHANGES[name]))
    return len(kernel.done) - done


@pytest.mark.parametrize(
    ("name", "index"), [(name, index) for name in CHANGES for index in range(steps_of(name))]
)
def test_a_change_by_parts_that_fails_leaves_the_old_state(name: str, index: int) -> None:
    kernel = a_watched_kernel()
    engine = Engine(kernel)
    engine.apply(full_site())
    before = contents(kernel)
    left = [index]

    def fail(_step: Step) -> bool:
        left[0] -= 1
        return left[0] == -1

    kernel.fail = fail
    with pytest.raises(ApplyError, match="told to fail") as caught:
        engine.apply(changed(CHANGES[name]))
    assert caught.value.undone
    kernel.fail = None
    after = contents(kernel)
    assert after[:5] == before[:5]
    engine.apply(changed(CHANGES[name]))
    assert Engine(kernel).plan(changed(CHANGES[name])).steps == ()


class Forgetful(Watched):
    """Says yes to a network's bridge and does not make it."""

    def perform(self, step: Step) -> Writes:
        if "b-atlas-more" in str(step) and not isinstance(step, NftChange):
            return Writes(netlink=1)
        return super().perform(step)


def test_what_is_not_there_after_a_change_by_parts_is_an_error_and_undone() -> None:
    base = a_kernel()
    kernel = Forgetful(base.foreign, base.foreign_addresses, values=base.values)
    engine = Engine(kernel)
    engine.apply(full_site())
    before = contents(kernel)
    with pytest.raises(ApplyError, match="not as it was told") as caught:
        engine.apply(changed(CHANGES["a network more"]))
    assert caught.value.undone
    assert contents(kernel)[:4] == before[:4]
