"""Trials, history and the look at the wire, decided without a kernel."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings

from dvn.change import guard, snapshot, view
from dvn.change.changes import BrokeError, Changes, Wish
from dvn.change.files import ChangeError
from dvn.change.history import History, Revision, static_site
from dvn.change.operator import MISSES, OperatorWatch, Route, operator_address
from dvn.change.verify import Heard, Machine, Remote, lost, still_wanted
from dvn.change.wanted import WantedSites
from dvn.engine import ApplyError, Engine
from dvn.kernel.fake import FakeKernel
from dvn.kernel.state import KernelState
from dvn.kernel.steps import AddLink, Step
from dvn.spec import Site
from tests.dvn.sites import a_kernel, full_site, sites
from tests.dvn.test_engine import grown


@dataclass
class Told:
    """A wire on which machines answer until `deaf` says otherwise; and clocks."""

    root: Path
    kernel: FakeKernel = field(default_factory=a_kernel)
    machines: frozenset[Machine] = frozenset()
    deaf: Callable[[KernelState], frozenset[Machine]] = lambda _state: frozenset()
    clock: float = 1000.0
    boot: str = "boot-1"

    def listen(self, state: KernelState, more: Iterable[Machine] = ()) -> Heard:
        return Heard(self.machines - self.deaf(state))

    def again(self, heard: Heard, state: KernelState) -> Heard:
        return Heard(heard.machines - self.deaf(state))

    def changes(self) -> Changes:
        return Changes(
            Engine(self.kernel),
            self.root,
            packets=self,
            clock=lambda: self.clock,
            boot=lambda: self.boot,
        )

    def state(self) -> tuple[object, ...]:
        kernel = self.kernel
        return (
            dict(kernel.links), dict(kernel.masters), set(kernel.addresses), dict(kernel.things),
            {key: (set(t.sets), set(t.chains)) for key, t in kernel.tables.items()},
            {key: value for key, value in kernel.values.items() if "forwarding" in key},
        )  # fmt: skip


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path)


def smaller() -> Site:
    data = full_site().model_dump(mode="json")
    del data["tenants"]["atlas"]["networks"]["store"]
    return Site.model_validate(data)


def begun(told: Told, site: Site, timeout: float = 120) -> Changes:
    changes = told.changes()
    changes.carry_out(changes.begin(Wish(site, "site.yaml"), timeout=timeout, watch=None))
    return changes


@given(sites())
@settings(max_examples=50)
def test_a_snapshot_comes_back_as_it_was(site: Site) -> None:
    engine = Engine(a_kernel())
    engine.apply(site)
    before = engine.before(site)
    text = json.dumps(snapshot.to_json(before))
    again = snapshot.from_json(json.loads(text))
    assert again == before
    assert [t.listing for t in again.tables] == [t.listing for t in before.tables]


@pytest.mark.parametrize(
    "value",
    [{}, [], "x", {"class": "os:system", "fields": {}},
     {"class": "dvn.engine:Engine", "fields": {}},
     {"class": "dvn.kernel.state:Port", "fields": {"name": "a", "master": "b"}}],
)  # fmt: skip
def test_a_snapshot_of_something_else_is_refused(value: object) -> None:
    with pytest.raises(ChangeError):
        snapshot.from_json(value)


@given(sites(), sites())
@settings(max_examples=50)
def test_restore_brings_back_any_state(first: Site, second: Site) -> None:
    kernel = a_kernel()
    engine = Engine(kernel)
    engine.apply(first)
    before = engine.before(second)
    engine.apply(second)
    engine.restore("cnaf", before)
    assert engine.plan(first).steps == ()


def test_going_back_writes_what_differs_and_leaves_the_rules() -> None:
    """Rules that are loaded anew are not byte for byte what was written: the agent would take them
    for somebody else's work, and mend what is not broken."""
    kernel = a_kernel()
    engine = Engine(kernel)
    engine.apply(full_site())
    before = engine.before(smaller())
    engine.apply(smaller())
    steps = engine.restore("cnaf", before).steps
    assert "+ element inet dvn-cnaf" in "\n".join(steps)
    assert not [step for step in steps if step[2:].startswith(("table", "chain", "rule"))]
    kernel.tables.clear()
    steps = engine.restore("cnaf", before).steps
    assert [s for s in steps if s[2:].startswith("table")]  # and what is gone comes back whole
    assert engine.plan(full_site()).steps == ()


def test_a_revision_for_each_change_and_none_for_none(told: Told) -> None:
    changes = told.changes()
    assert changes.apply(Wish(full_site(), "site.yaml", "the text")).revision == 1
    assert changes.apply(Wish(full_site(), "site.yaml", "the text")).revision == 1
    assert changes.apply(Wish(smaller(), "site.yaml", "less")).revision == 2
    assert changes.apply(changes.rollback("cnaf", 1)).revision == 3
    revisions = changes.history.revisions("cnaf")
    assert [each.source for each in revisions] == ["site.yaml", "site.yaml", "revision 1"]
    assert [each.text for each in revisions] == ["the text", "less", "the text"]
    assert revisions[0].plan
    assert Engine(told.kernel).plan(full_site()).steps == ()
    with pytest.raises(ChangeError, match="has no revision 9"):
        changes.rollback("cnaf", 9)


def test_the_tunnels_of_leases_are_in_no_revision() -> None:
    site = grown(full_site())
    dynamic = site.model_dump(mode="json")
    dynamic["tenants"]["cms"]["tunnels"]["lease-1"]["dynamic"] = True
    assert static_site(Site.model_validate(dynamic)) == full_site()


def test_old_revisions_go_but_never_the_one_in_force(tmp_path: Path) -> None:
    history = History(tmp_path, keep=3)
    for number in range(10):
        result = "done" if number in (0, 1) else "undone: it was late"
        history.add(Revision("cnaf", "now", "me", "file", "", {}, (), result))
    assert [each.number for each in history.revisions("cnaf")] == [2, 8, 9, 10]
    current = history.current("cnaf")
    assert current is not None
    assert current.number == 2


def test_history_refuses_a_directory_that_is_not_its_own(tmp_path: Path) -> None:
    """The directory above may be the daemon's: a link there must not lead root elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "history").symlink_to(elsewhere)
    with pytest.raises(ChangeError, match="is not a directory of ours"):
        History(tmp_path / "state").add(Revision("cnaf", "", "", "", "", {}, ()))
    assert list(elsewhere.iterdir()) == []


M1, M2 = Machine("b-cms-farm", "10.9.0.3", "tap3"), Machine("b-atlas-farm", "10.8.0.9", "v-x")


def test_what_silences_somebody_is_undone(told: Told) -> None:
    changes = told.changes()
    changes.apply(Wish(full_site(), "site.yaml"))
    before = told.state()
    told.machines = frozenset({M1})
    told.deaf = lambda state: frozenset() if "b-atlas-store" in state.by_name else frozenset({M1})
    with pytest.raises(BrokeError, match=r"silenced 10\.9\.0\.3 on b-cms-farm \(via tap3\)") as e:
        changes.apply(Wish(smaller(), "site.yaml"))
    assert e.value.undone
    assert told.state() == before
    assert [each.in_force for each in changes.history.revisions("cnaf")] == [True, False]
    # The controls: nobody looks; it was silent before.
    told.machines = frozenset()
    assert told.changes().apply(Wish(smaller(), "site.yaml")).applied.steps


def test_who_is_meant_to_go_may_fall_silent() -> None:
    engine = Engine(a_kernel())
    engine.apply(full_site())
    state = engine.show("cnaf")
    gone = replace(state, ports=())
    bari = Remote("t-cms-bari", "203.0.113.7")
    heard = Heard(frozenset({M1}), frozenset({bari}))
    assert still_wanted(heard, state) == heard
    assert still_wanted(heard, gone) == Heard(frozenset(), frozenset({bari}))
    assert still_wanted(heard, KernelState()) == Heard()
    moved = Heard(frozenset({replace(M1, address="10.77.0.3")}))
    assert still_wanted(moved, state) == Heard()
    assert lost(heard, Heard(frozenset({M1}))) == (str(bari),)


def test_a_trial_in_time_is_kept(told: Told) -> None:
    changes = begun(told, full_site())
    with pytest.raises(ChangeError, match="waits to be confirmed: dvn confirm cnaf"):
        changes.apply(Wish(smaller(), "site.yaml"))
    assert changes.recover("cnaf", guarded=False) is None
    assert changes.confirm("cnaf").number == 1
    with pytest.raises(ChangeError, match="no change of site cnaf waits"):
        changes.confirm("cnaf")
    assert changes.undo("cnaf", "late") is None
    assert Engine(told.kernel).plan(full_site()).steps == ()


@pytest.mark.parametrize("first", [None, full_site()])
def test_a_trial_whose_time_is_over_is_undone(told: Told, first: Site | None) -> None:
    if first:
        told.changes().apply(Wish(first, "site.yaml"))
    before = told.state()
    begun(told, smaller(), timeout=120)
    assert told.state() != before
    told.clock += 119.9
    changes = told.changes()  # another process
    assert changes.recover("cnaf", guarded=False) is None
    told.clock += 0.2
    assert changes.recover("cnaf", guarded=True) is None  # the guard will do it
    kept = changes.recover("cnaf", guarded=False)
    assert kept is not None
    assert kept.result == "undone: nobody confirmed it within 120 s"
    assert told.state() == before


def test_killed_while_undoing_it_is_finished(told: Told) -> None:
    changes = begun(told, full_site())
    told.kernel.fail = lambda _step: True
    with pytest.raises(ApplyError):
        changes.undo("cnaf", "the operator is lost")
    told.kernel.fail = None
    with pytest.raises(ChangeError, match="too late: the change is being undone, the operator is"):
        changes.confirm("cnaf")
    kept = told.changes().recover("cnaf", guarded=False)
    assert kept is not None
    assert kept.result == "undone: the operator is lost"
    assert not told.kernel.links


def test_after_a_restart_of_the_machine_there_is_nothing_to_undo(told: Told) -> None:
    begun(told, full_site())
    told.boot, told.kernel = "boot-2", a_kernel()
    kept = told.changes().recover("cnaf", guarded=False)
    assert kept is not None
    assert kept.result.startswith("gone: this machine was restarted")
    assert told.changes().pending.get("cnaf") is None
    assert told.kernel.done == []


def test_a_trial_that_fails_is_over(told: Told) -> None:
    def fail(step: Step) -> bool:
        return isinstance(step, AddLink) and step.link.name == "t-cms-bari"

    told.kernel.fail = fail
    with pytest.raises(ApplyError, match="told to fail"):
        begun(told, full_site())
    changes = told.changes()
    assert changes.pending.get("cnaf") is None
    assert not told.kernel.links
    assert [each.in_force for each in changes.history.revisions("cnaf")] == [False]


def test_a_destroyed_site_is_written_down(told: Told) -> None:
    changes = told.changes()
    changes.apply(Wish(full_site(), "site.yaml"))
    changes.destroy("cnaf", "site.yaml")
    current = changes.history.current("cnaf")
    assert current is not None
    assert current.site_spec().tenants == {}


class Way:
    def __init__(self) -> None:
        self.answers, self.route = True, Route("eth0", "192.0.2.254")

    def watch(self) -> OperatorWatch:
        return OperatorWatch(
            "192.0.2.9", answers=lambda _a: self.answers, route_to=lambda _a: self.route
        )


def test_an_operator_who_answered_must_go_on_answering() -> None:
    way = Way()
    watch = way.watch()
    way.answers = False
    assert [watch.lost() for _ in range(MISSES - 1)] == [""] * (MISSES - 1)
    way.answers = True
    assert watch.lost() == ""  # one lost packet is no loss
    way.answers = False
    words = [watch.lost() for _ in range(MISSES)]
    assert words[:-1] == [""] * (MISSES - 1)
    assert words[-1] == "the operator at 192.0.2.9 answers no more"


@pytest.mark.parametrize(
    ("route", "words"),
    [(Route(""), "no route to the operator"), (Route("b-x"), "leads elsewhere"),
     (Route("eth0", "192.0.2.254"), "")],
)  # fmt: skip
def test_an_operator_who_never_answered_is_known_by_the_route(route: Route, words: str) -> None:
    way = Way()
    way.answers = False
    watch = way.watch()
    way.route = route
    found = [watch.lost() for _ in range(10)][-1]
    assert words in found
    assert bool(words) == bool(found)


def test_who_could_not_be_reached_before_is_not_lost() -> None:
    way = Way()
    way.answers, way.route = False, Route("")
    assert not way.watch().reachable
    assert way.watch().lost() == ""


def test_the_operator_is_who_came_by_ssh() -> None:
    session = {"SSH_CONNECTION": "192.0.2.9 50000 192.0.2.1 22"}
    assert operator_address(session) == "192.0.2.9"
    assert operator_address({}, iter([{}, session])) == "192.0.2.9"  # sudo hides it
    assert operator_address({}, iter([{}])) is None


def test_a_plan_reads_by_network() -> None:
    plan = Engine(a_kernel()).plan(full_site())
    found = view.groups(plan, full_site())
    assert [group.title for group in found] == [
        "host and shared rules", "atlas/farm", "atlas/store", "cms/farm",
    ]  # fmt: skip
    counted = view.totals(found)
    assert sum(counted.values()) == sum(len(group.lines) for group in found)
    cms = view.folded(found[-1])
    assert any("t-cms-bari: gretap" in line for line in cms)
    assert sum("set elements" in line for line in cms) == 1
    assert not any("sysctl" in line for line in cms)
    assert view.summary(found).endswith("in 3 networks")


@given(sites(), sites())
@settings(max_examples=50)
def test_no_line_of_a_plan_is_lost_in_the_groups(first: Site, second: Site) -> None:
    kernel = a_kernel()
    engine = Engine(kernel)
    engine.apply(first)
    plan = engine.plan(second)
    found = view.groups(plan, second, verbose=True)
    assert sorted(line for group in found for line in group.lines) == sorted(plan.lines())


def test_an_apply_that_was_killed_in_the_middle_is_undone(told: Told) -> None:
    """By whoever comes next; meanwhile nobody repairs what it did, and nobody else changes it."""
    told.changes().apply(Wish(full_site(), "site.yaml"))
    before = told.state()

    class Killed(BaseException):
        pass

    def die(step: Step) -> bool:
        if "b-atlas-store" not in told.kernel.links:
            raise Killed
        return False

    told.kernel.fail = die
    with pytest.raises(Killed):
        told.changes().apply(Wish(smaller(), "site.yaml"))
    told.kernel.fail = None
    assert told.state() != before
    changes = told.changes()
    with pytest.raises(ChangeError, match="is changing site cnaf at this moment"):
        changes.apply(Wish(smaller(), "site.yaml"))
    kept = changes.recover("cnaf", guarded=False)
    assert kept is not None
    assert kept.result == "undone: the command was killed in the middle of it"
    assert told.state() == before
    assert changes.apply(Wish(smaller(), "site.yaml")).applied.steps


def test_while_one_applies_nobody_takes_it_for_drift_or_undoes_it(told: Told) -> None:
    seen: list[object] = []
    other = told.changes()
    step_seen: list[Step] = []

    def look(step: Step) -> bool:
        if not step_seen:
            step_seen.append(step)
            seen.extend(guard.finish_left(other, told.root, restart=False))
            seen.append(WantedSites(other).sites())
            with pytest.raises(ChangeError, match="for good at this moment"):
                other.confirm("cnaf")
        return False

    told.kernel.fail = look
    told.changes().apply(Wish(full_site(), "site.yaml"))
    assert seen == [{}]
    assert set(WantedSites(told.changes()).sites()) == {"cnaf"}
