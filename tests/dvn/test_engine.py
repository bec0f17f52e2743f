"""Plans bring any state to any other, in an order the kernel takes, and undo what fails."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvn import addresses
from dvn.agent import Agent
from dvn.compile import compile_site
from dvn.engine import ApplyError, Engine
from dvn.kernel.diff import diff
from dvn.kernel.driver import KernelError
from dvn.kernel.fake import FakeKernel
from dvn.kernel.state import Gretap, KernelState, NftRule
from dvn.kernel.steps import (
    AddLink,
    CutConnections,
    DelLink,
    NftChange,
    SetLink,
    SetSysctl,
    Step,
    Writes,
)
from dvn.problems import SpecError
from dvn.spec import Site, Tunnel, check_site, site_from_json
from tests.dvn.sites import a_kernel, full_site, sites


def desired(site: Site, kernel: FakeKernel) -> KernelState:
    return compile_site(site, kernel.look(site.site).host).state


@given(sites())
def test_nothing_to_do_where_all_is_as_wanted(site: Site) -> None:
    state = desired(site, a_kernel())
    assert diff(state, state).steps == ()


@given(sites(), sites())
@settings(max_examples=200, deadline=None)
def test_from_any_site_to_any_other(first: Site, second: Site) -> None:
    kernel = a_kernel()
    engine = Engine(kernel)
    for site in (first, second):
        check_site(site)
        engine.apply(site)
        assert engine.apply(site).steps == ()
    engine.destroy("cnaf")
    assert not kernel.links
    assert not kernel.tables
    assert not kernel.addresses
    assert not kernel.masters


@given(sites(), st.data())
@settings(max_examples=100, deadline=None)
def test_from_any_part_of_it(site: Site, data: st.DataObject) -> None:
    """Links, tables and addresses taken away at random come back; the rest is not touched."""
    kernel = a_kernel()
    engine = Engine(kernel)
    engine.apply(site)
    whole = kernel.look("cnaf").state
    for name in data.draw(st.lists(st.sampled_from(sorted(kernel.links) or [""]))):
        kernel.perform(DelLink(replace(whole.by_name[name]))) if name in kernel.links else None
    for key in data.draw(st.lists(st.sampled_from(sorted(kernel.tables) or [("", "")]))):
        kernel.tables.pop(key, None)
    engine.apply(site)
    after = kernel.look("cnaf").state
    assert set(after.links) == set(whole.links)
    assert set(after.addresses) == set(whole.addresses)
    assert set(after.ports) == set(whole.ports)
    assert engine.plan(site).steps == ()


def steps_of(site: Site) -> int:
    return len(Engine(a_kernel()).plan(site).steps)


@pytest.mark.parametrize("index", range(steps_of(full_site())))
def test_each_step_may_fail_once(index: int) -> None:
    """The failed apply leaves nothing behind; the next one converges."""
    kernel = a_kernel()
    seen: list[Step] = []

    def fail(step: Step) -> bool:
        seen.append(step)
        return len(seen) == index + 1

    kernel.fail = fail
    engine = Engine(kernel)
    with pytest.raises(ApplyError, match="told to fail") as caught:
        engine.apply(full_site())
    assert caught.value.undone
    assert not kernel.links
    assert not kernel.tables
    assert not kernel.masters
    assert not kernel.addresses
    assert {value for key, value in kernel.values.items() if "forwarding" in key} <= {"0"}
    assert len(seen) > index  # the fault was met
    engine.apply(full_site())
    assert engine.apply(full_site()).steps == ()


def grown(site: Site) -> Site:
    lease = Tunnel.model_validate(
        {"tenant": "cms", "name": "lease-1", "network": "farm", "remote": "203.0.113.9", "key": 9}
    )
    return site.with_tunnels([lease])


LEASES = tuple(
    Tunnel.model_validate(
        {
            "tenant": tenant,
            "name": f"lease-{number}",
            "network": network,
            "remote": f"203.0.113.{100 + number}",
            "key": 100 + number,
            "dynamic": True,
        }
    )
    for number, (tenant, network) in enumerate(
        (tenant, network)
        for tenant in ("cms", "atlas", "long-tenant")
        for network in ("farm", "store", "x-y")
    )
)


def with_leases(site: Site) -> Site:
    names = {(tenant, name) for tenant, name, _network in site.networks()}
    return site.with_tunnels(lease for lease in LEASES if (lease.tenant, lease.network) in names)


@given(sites(), sites())
@settings(max_examples=100, deadline=None)
def test_a_file_applied_beside_the_daemon_leaves_its_tunnels(first: Site, second: Site) -> None:
    kernel = a_kernel()
    engine = Engine(kernel)
    engine.apply(with_leases(first))
    before = dict(kernel.links)
    engine.apply(second, keep_dynamic=True)
    assert engine.apply(second, keep_dynamic=True).steps == ()
    in_both = {(t, n) for t, n, _ in first.networks()} & {(t, n) for t, n, _ in second.networks()}
    kept = {
        addresses.tunnel_name(lease.tenant, lease.name)
        for lease in LEASES
        if (lease.tenant, lease.network) in in_both
    }
    assert {name: kernel.links[name] for name in kept} == {name: before[name] for name in kept}
    stamped = {name for name, link in kernel.links.items() if ":lease:" in link.alias}
    assert stamped == kept
    sets = [s for t in kernel.tables.values() for s in t.sets if s.name == "tunnels"]
    assert {(name,) for name in kept} <= {e for each in sets for e in each.elements}
    # The control: the daemon has the last word, and destroy takes all.
    engine.apply(with_leases(second))
    assert engine.plan(second, keep_dynamic=True).steps == ()
    engine.apply(second)
    assert not [link for link in kernel.links.values() if ":lease:" in link.alias]
    engine.apply(with_leases(second))
    engine.destroy("cnaf")
    assert not kernel.links


def test_what_the_file_says_goes_before_a_lease() -> None:
    """Its ends and key are in the file now: the lease's device makes room."""
    kernel = a_kernel()
    engine = Engine(kernel)
    lease = Tunnel.model_validate(
        {"tenant": "cms", "name": "l1", "network": "farm", "remote": "203.0.113.9", "key": 9}
    )
    engine.apply(full_site().with_tunnels([lease.model_copy(update={"dynamic": True})]))
    fixed = full_site().with_tunnels([lease.model_copy(update={"name": "fixed"})])
    engine.apply(fixed, keep_dynamic=True)
    assert "t-cms-l1" not in kernel.links
    assert kernel.links["t-cms-fixed"].alias == "dvn:cnaf:tunnel:cms/fixed"


def test_a_change_that_fails_leaves_the_old_state() -> None:
    site = full_site()
    for index in range(20):
        kernel = a_kernel()
        engine = Engine(kernel)
        engine.apply(site)
        before = kernel.look("cnaf").state
        total = len(engine.plan(grown(site)).steps)
        if index >= total:
            break
        countdown = [index]

        def fail(_step: Step, countdown: list[int] = countdown) -> bool:
            countdown[0] -= 1
            return countdown[0] == -1

        kernel.fail = fail
        with pytest.raises(ApplyError):
            engine.apply(grown(site))
        kernel.fail = None
        assert diff(kernel.look("cnaf").state, before).steps == ()
        engine.apply(grown(site))
    assert index > 2


class Forgetful(FakeKernel):
    """Says yes to a link and does not make it."""

    def perform(self, step: Step) -> Writes:
        if isinstance(step, AddLink) and isinstance(step.link.params, Gretap):
            return Writes(netlink=1)
        if getattr(step, "name", "").startswith("t-"):
            return Writes(netlink=1)
        if isinstance(step, SetSysctl) and "/t-" in step.key:
            return Writes(sysctl=1)
        return super().perform(step)


def test_what_is_not_there_afterwards_is_an_error_and_undone() -> None:
    base = a_kernel()
    kernel = Forgetful(base.foreign, base.foreign_addresses, values=base.values)
    with pytest.raises(ApplyError, match="not as it was told") as caught:
        Engine(kernel).apply(full_site())
    assert caught.value.undone
    assert not kernel.links
    assert not kernel.tables


def test_an_undo_that_fails_is_said() -> None:
    kernel = a_kernel()
    kernel.fail = lambda step: (
        isinstance(step, AddLink | DelLink) or (isinstance(step, NftChange) and bool(kernel.tables))
    )
    with pytest.raises(ApplyError, match="could not be undone") as caught:
        Engine(kernel).apply(full_site())
    assert not caught.value.undone


def test_filters_come_before_links_and_go_after_them() -> None:
    kernel = a_kernel()
    engine = Engine(kernel)
    kinds = [type(step) for step in engine.plan(full_site()).steps]
    assert kinds.index(NftChange) < kinds.index(AddLink)
    engine.apply(full_site())
    kernel.done.clear()
    engine.destroy("cnaf")
    assert [type(step) for step in kernel.done[-2:]] == [NftChange, CutConnections]


def test_a_lease_costs_a_handful_of_writes_however_many_there_are() -> None:
    kernel = a_kernel()
    engine = Engine(kernel)
    engine.apply(full_site())
    applied = engine.apply(grown(full_site()))
    # Its elements of three sets and two maps, the device, no IPv6 of ours on it, up.
    assert len(applied.steps) == 8
    assert not any(line.startswith("-") for line in applied.steps)


def test_key_and_remote_change_in_place() -> None:
    kernel = a_kernel()
    engine = Engine(kernel)
    engine.apply(full_site())
    data = full_site().model_dump(mode="json")
    data["tenants"]["cms"]["tunnels"]["bari"] |= {"key": 77, "remote": "203.0.113.70"}
    steps = engine.plan(site_from_json(data)).steps
    assert [type(step) for step in steps] == [SetLink]
    # Two tunnels that swap their keys would meet half-way: one of them is made anew.
    data = full_site().model_dump(mode="json")
    tunnels = data["tenants"]["cms"]["tunnels"]
    tunnels["bari"] |= {"key": 43, "remote": "203.0.113.8"}
    tunnels["pisa"] |= {"key": 42, "remote": "203.0.113.7"}
    engine.apply(site_from_json(data))
    assert engine.plan(site_from_json(data)).steps == ()


def test_a_rule_changed_or_lost_is_drift() -> None:
    kernel = a_kernel()
    engine = Engine(kernel)
    engine.apply(full_site())
    key = ("inet", "dvn-cnaf")
    table = kernel.tables[key]
    number = max(range(len(table.chains)), key=lambda n: len(table.chains[n].rules))
    whole = table.chains[number]
    for rules in (
        whole.rules[1:],
        (*whole.rules, NftRule("(not ours)")),
        (NftRule(whole.rules[0].comment + " (changed by hand)"), *whole.rules[1:]),
        tuple(reversed(whole.rules)),
    ):
        changed = replace(whole, rules=rules)
        chains = (*table.chains[:number], changed, *table.chains[number + 1 :])
        kernel.tables[key] = replace(table, chains=chains)
        applied = engine.apply(full_site())
        assert applied.steps[0].startswith(f"~ chain inet dvn-cnaf {whole.name}")
        assert engine.plan(full_site()).steps == ()


def test_another_site_and_foreign_links_are_left_alone() -> None:
    kernel = a_kernel()
    engine = Engine(kernel)
    other = full_site().model_dump(mode="json")
    other |= {"site": "other"}
    other["tenants"] = {"lhcb": {"networks": {"farm": {"prefix": ["10.7.0.0/24"]}}}}
    engine.apply(site_from_json(other))
    engine.apply(full_site())
    engine.destroy("cnaf")
    assert set(kernel.links) == {
        addresses.router_name("lhcb", "farm"),
        addresses.bridge_name("lhcb", "farm"),
    }
    assert engine.plan(site_from_json(other)).steps == ()
    assert set(kernel.foreign) == set(a_kernel().foreign)


def test_lenient_leaves_out_a_tap_that_is_not_there() -> None:
    kernel = a_kernel()
    del kernel.foreign["tap3"]
    with pytest.raises(SpecError, match="tap3 is not on this host"):
        Engine(kernel).apply(full_site())
    applied = Engine(kernel, lenient=True).apply(full_site())
    assert any("tap3" in note for note in applied.notes)
    assert applied.verified


def test_the_agent_answers_anything() -> None:
    agent = Agent(Engine(a_kernel(), lenient=True))
    site = full_site().model_dump(mode="json")
    good = agent.answer(json.dumps({"op": "apply", "site": site}).encode())
    assert good["ok"]
    assert good["applied"]["netlink_writes"] > 0
    again = agent.answer(json.dumps({"op": "apply", "site": site}).encode())
    assert again["applied"]["steps"] == ()
    assert agent.answer(json.dumps({"op": "show"}).encode())["state"]["links"]
    for line in (
        b"",
        b"[]",
        b"{",
        b'"x"',
        b'{"op": "rm"}',
        b'{"op": "apply"}',
        b'{"op": "destroy", "site": "../x"}',
        b'{"op": "destroy"}',
        b'{"op": "probe", "count": "many"}',
        b'{"op": "probe", "address": "here", "network": "cms/farm"}',
        b"\xff\xfe",
        b"[" * 100_000,
    ):
        answer = agent.answer(line)
        assert answer["ok"] is False, line
        assert answer["error"]
    site["tenants"]["cms"]["networks"]["farm"]["vlan"]["id"] = 5000
    refused = agent.answer(json.dumps({"op": "apply", "site": site}).encode())
    assert refused["kind"] == "spec"
    assert "VLAN id 5000 is out of range" in refused["error"]


def test_a_kernel_that_cannot_be_read_is_an_answer() -> None:
    class Blind(FakeKernel):
        def sysctls(self, keys: object) -> tuple[()]:
            raise KernelError("list links: Operation not permitted")

    answer = Agent(Engine(Blind())).answer(
        json.dumps({"op": "plan", "site": {"site": "cnaf"}}).encode()
    )
    assert answer == {
        "ok": False,
        "kind": "kernel",
        "error": "list links: Operation not permitted",
    }
