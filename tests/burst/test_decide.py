"""What is decided, case by case, from facts written out by hand."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypeVar

import pytest

from burst.actions import (
    Action,
    Admit,
    Decision,
    Drain,
    Launch,
    Remove,
    Route,
    Terminate,
    Unroute,
    Update,
    Want,
)
from burst.decide import decide
from burst.model import (
    Budget,
    Facts,
    Failure,
    FailureClass,
    Farm,
    Job,
    JobState,
    Lease,
    LeaseState,
    LinkHealth,
    Machine,
    MachineState,
    Node,
    NodeState,
    Offer,
    Policy,
    Pool,
    ProviderFacts,
)
from tests.burst.test_leases import NOW, a_lease
from tests.burst.test_policy import a_job

MINUTE = timedelta(minutes=1)
POLICY = Policy()
POOL = Pool(
    "cms-aws",
    "cms",
    "farm",
    "aws",
    "burst-cms",
    ("batch",),
    users=("alice",),
    max_machines=4,
    addresses=tuple(f"10.9.0.{n}" for n in range(101, 106)),
)
OFFER = Offer("aws", "m5.large", "", 2, 8192, Decimal("0.36"))
WORKER = Node("wn1", NodeState.ALLOCATED, 1, 1, 4000, partitions=("batch",))
LONG = a_job("busy", 60, state=JobState.RUNNING, started=NOW, node_names=("wn1",))
GOOD = LinkHealth(up=True, since=NOW - 20 * MINUTE)


def facts(
    *pending: Job,
    leases: tuple[Lease, ...] = (),
    machines: tuple[Machine, ...] | None = (),
    nodes: tuple[Node, ...] = (),
    **changes: Any,
) -> Facts:
    """A farm of one busy worker, one provider, five units of money."""
    seen = Facts(
        now=NOW,
        farm=Farm(NOW, (LONG, *pending), (WORKER, *nodes)),
        leases=leases,
        providers={"aws": ProviderFacts("aws", (OFFER,), machines)},
        budgets={"cms": Budget("cms", Decimal(5), Decimal(0), Decimal(0))},
        watching_since=NOW - timedelta(hours=2),
    )
    return replace(seen, **changes)


def decided(seen: Facts, policy: Policy = POLICY, pool: Pool = POOL) -> Decision:
    ids = itertools.count(0xABC)
    return decide(seen, [pool], policy, lambda: f"{next(ids):08x}{'0' * 24}")


A = TypeVar("A", bound=Action)


def only(decision: Decision, kind: type[A]) -> list[A]:
    return [action for action in decision.actions if isinstance(action, kind)]


def why(decision: Decision, subject: str, name: str) -> tuple[str, str]:
    """Code and sentence of the one reason given."""
    (found,) = [r for r in decision.reasons if (r.subject, r.id) == (subject, name)]
    return found.code, found.message


def updated(decision: Decision) -> Lease:
    (update,) = only(decision, Update)
    return update.lease


def machine(state: MachineState = MachineState.RUNNING, **changes: Any) -> Machine:
    seen = Machine(
        "i-1", "aws", "a" * 32, state, "m5.large", "", "10.20.1.5", "198.51.100.5", NOW - MINUTE
    )
    return replace(seen, **changes)


def lease(state: LeaseState, minutes_ago: float = 30, **changes: Any) -> Lease:
    """A lease that came as far as `state`, each step `minutes_ago`."""
    then = NOW - timedelta(minutes=minutes_ago)
    order = list(LeaseState)
    stamps = ["wanted", "requested", "booted", "tunnelled", "joined", "draining", "left"]
    reached = stamps[: order.index(state) + 1]
    values: dict[str, Any] = dict.fromkeys(reached, then)
    if state is not LeaseState.WANTED:
        values |= {"machine": "i-1"}
    if "booted" in reached:
        values |= {"underlay": "198.51.100.5", "enrolled": then}
    if "joined" in reached:
        values |= {"used": then}
    return replace(a_lease(state, reserved=Decimal("0.72")), **(values | changes))


def node(state: NodeState = NodeState.IDLE, used: int = 0, **changes: Any) -> Node:
    seen = Node(
        "cms-aws-aaaaaaaa", state, 2, used, 7000, "10.9.0.101", ("burst-cms",), ("burst-cms",)
    )
    return replace(seen, **changes)


def on_it(state: JobState = JobState.RUNNING) -> Job:
    return a_job("remote", 10, state=state, started=NOW, node_names=("cms-aws-aaaaaaaa",))


# Wanting


def test_a_job_that_would_wait_too_long_gets_a_machine_with_its_money_reserved() -> None:
    decision = decided(facts(a_job("7", 30)))
    want, launch = decision.actions
    assert isinstance(want, Want)
    assert launch == Launch(want.lease.id)
    assert want.lease.state is LeaseState.WANTED
    assert (want.lease.type, want.lease.address) == ("m5.large", "10.9.0.101")
    assert want.lease.node == f"cms-aws-{want.lease.id[:8]}"
    assert want.lease.gre_key >= 2**31
    assert want.lease.reserved >= Decimal("0.36")
    code, message = why(decision, "job", "7")
    assert code == "renting"
    assert "3600 s" in message, "the wait that was expected here"


def test_a_job_that_starts_here_soon_stays() -> None:
    soon = replace(LONG, started=NOW - 58 * MINUTE)
    decision = decided(replace(facts(), farm=Farm(NOW, (soon, a_job("7")), (WORKER,))))
    assert decision.actions == ()
    assert why(decision, "job", "7")[0] == "starts-soon"


def test_what_is_on_its_way_is_not_asked_for_again() -> None:
    coming = lease(LeaseState.REQUESTED, 1)
    seen = facts(a_job("1"), a_job("2"), leases=(coming,), machines=(machine(public_address=""),))
    assert only(decided(seen), Want) == []
    third = facts(a_job("1"), a_job("2"), a_job("3"), leases=(coming,), machines=(machine(),))
    assert len(only(decided(third), Want)) == 1


def test_the_cap_on_machines_holds_and_says_so() -> None:
    queue = [a_job(str(n), 60) for n in range(40)]
    policy = replace(POLICY, failures_to_pause=9)
    decision = decided(facts(*queue), policy)
    assert len(only(decision, Want)) == POOL.max_machines
    assert why(decision, "job", "39") == (
        "cap",
        "it would wait here 140400 s, but pool cms-aws may have 4 machines at most",
    )
    assert why(decision, "pool", "cms-aws")[0] == "cap"
    addresses = [want.lease.address for want in only(decision, Want)]
    assert len(set(addresses)) == len(addresses)


def test_an_unproven_pool_starts_with_k_machines() -> None:
    decision = decided(facts(*(a_job(str(n), 60) for n in range(40))))
    assert len(only(decision, Want)) == POLICY.failures_to_pause
    assert why(decision, "job", "39")[0] == "proving"


def test_a_budget_that_is_used_up_rents_nothing_and_shows_the_numbers() -> None:
    poor = {"cms": Budget("cms", Decimal(1), Decimal("0.40"), Decimal("0.50"))}
    decision = decided(facts(a_job("7", 60), budgets=poor))
    assert decision.actions == ()
    code, message = why(decision, "job", "7")
    assert code == "budget"
    assert "0.1000 are free" in message
    assert why(decided(facts(a_job("7", 60), budgets={})), "job", "7")[0] == "no-budget"


def test_what_costs_nothing_needs_no_budget() -> None:
    free = replace(OFFER, price_per_hour=Decimal(0))
    seen = facts(a_job("7", 60), budgets={}, providers={"aws": ProviderFacts("aws", (free,), ())})
    (want,) = only(decided(seen), Want)
    assert want.lease.reserved == 0


def test_every_pending_job_has_exactly_one_answer() -> None:
    queue = [
        a_job("1", 60),
        a_job("2", state=JobState.HELD),
        a_job("3", user="bob"),
        a_job("4", nodes=2),
        a_job("5", cores=64),
        a_job("6", reason="Dependency"),
        a_job("7", submitted=NOW),
        a_job("8", partitions=("gpu",)),
    ]
    decision = decided(facts(*queue))
    codes = {job.id: why(decision, "job", job.id)[0] for job in queue}
    assert codes == {
        "1": "renting",
        "2": "held",
        "3": "other-user",
        "4": "multi-node",
        "5": "too-big",
        "6": "lrms-reason",
        "7": "young",
        "8": "other-partition",
    }


# Not knowing


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"network_error": "the agent restarts"}, "no-network"),
        ({"providers": {"aws": ProviderFacts("aws", (OFFER,), None, "timeout")}}, "no-provider"),
        ({"providers": {"aws": ProviderFacts("aws", (), ())}}, "no-offer"),
    ],
)
def test_nothing_is_rented_while_something_is_silent(change: dict[str, Any], code: str) -> None:
    decision = decided(facts(a_job("7", 60), **change))
    assert not only(decision, Want)
    assert not only(decision, Launch)
    assert why(decision, "job", "7")[0] == code


@pytest.mark.parametrize("state", list(LeaseState))
def test_silence_moves_no_lease_however_long_it_lasts(state: LeaseState) -> None:
    held = lease(state, 60 * 24, reserved=Decimal(100), ended=NOW)
    silent = facts(
        leases=(held,),
        links={held.id: LinkHealth(up=False, since=NOW - timedelta(days=1))},
        farm=None,
        providers={"aws": ProviderFacts("aws", (), None, "timeout")},
        network_error="the agent restarts",
    )
    decision = decided(silent)
    assert not [a for a in decision.actions if not isinstance(a, Update)]
    assert {update.lease.state for update in only(decision, Update)} <= {state}
    told = {(reason.subject, reason.code) for reason in decision.reasons}
    assert told >= {("lrms", "no-answer"), ("provider", "no-answer"), ("network", "no-network")}


def test_a_wanted_lease_waits_for_network_and_lrms_and_says_so() -> None:
    seen = facts(a_job("1", 60), leases=(lease(LeaseState.WANTED, 1),))
    assert only(decided(seen), Launch) == [Launch("a" * 32)]
    for change, word in (({"network_error": "gone"}, "no tunnel"), ({"farm": None}, "LRMS")):
        decision = decided(replace(seen, **change))
        assert only(decision, Launch) == []
        assert word in why(decision, "lease", "a" * 32)[1]


def test_a_just_launched_machine_that_is_not_listed_yet_is_not_lost() -> None:
    young = lease(LeaseState.REQUESTED, 1)
    seen = facts(a_job("1", 60), leases=(young,), machines=())
    first = updated(decided(seen))
    assert (first.state, first.failure) == (LeaseState.REQUESTED, None)
    later = replace(seen, now=NOW + timedelta(hours=1), leases=(first,))
    assert (failure := updated(decided(later)).failure) is not None
    assert failure.kind is FailureClass.LOST


def test_after_a_long_absence_of_the_gateway_nobody_is_declared_dead_at_once() -> None:
    old = lease(LeaseState.BOOTING, 600, reserved=Decimal(9))
    seen = facts(
        a_job("1", 60),
        leases=(old,),
        machines=(machine(),),
        links={old.id: LinkHealth(up=False, since=NOW)},
        watching_since=NOW,
    )
    assert only(decided(seen), Update) == []
    late = replace(seen, now=NOW + POLICY.tunnel_timeout)
    assert updated(decided(late)).failure is not None


# The way in


def test_the_way_from_wanted_to_joined_in_one_look_after_a_restart() -> None:
    waiting = lease(LeaseState.WANTED, 1, attempted=NOW - MINUTE, maybe_launched=True)
    seen = facts(
        a_job("1", 60),
        leases=(waiting,),
        machines=(machine(),),
        nodes=(node(),),
        links={waiting.id: GOOD},
        enrolled={waiting.id: NOW},
    )
    decision = decided(seen)
    after = updated(decision)
    assert after.state is LeaseState.JOINED
    assert (after.machine, after.underlay, after.enrolled) == ("i-1", "198.51.100.5", NOW)
    assert only(decision, Launch) == []
    assert only(decision, Route) == [Route("1", "burst-cms")]


def test_a_node_that_registers_drained_is_admitted() -> None:
    here = lease(LeaseState.TUNNELLED, 1)
    seen = facts(
        a_job("1", 60),
        leases=(here,),
        machines=(machine(),),
        nodes=(node(NodeState.DRAINED),),
        links={here.id: GOOD},
    )
    assert only(decided(seen), Admit) == [Admit(node(NodeState.DRAINED))]


@pytest.mark.parametrize(
    ("state", "enrolled", "report", "kind", "word"),
    [
        (LeaseState.REQUESTED, None, "", FailureClass.BOOTSTRAP, "console"),
        (LeaseState.BOOTING, None, "", FailureClass.BOOTSTRAP, "nothing was heard"),
        (LeaseState.BOOTING, NOW - 20 * MINUTE, "", FailureClass.TUNNEL, "protocol 47"),
        (LeaseState.BOOTING, NOW, "link: no gretap", FailureClass.TUNNEL, "no gretap"),
        (LeaseState.BOOTING, None, "metadata: 404", FailureClass.BOOTSTRAP, "404"),
        (LeaseState.TUNNELLED, None, "", FailureClass.BOOTSTRAP, "never enrolled"),
        (LeaseState.TUNNELLED, NOW - 20 * MINUTE, "", FailureClass.JOIN, "is not there"),
        (LeaseState.TUNNELLED, NOW, "slurmd: exit 1", FailureClass.JOIN, "exit 1"),
    ],
)
def test_time_outs_and_reports_have_their_class_and_a_hint(
    state: LeaseState, enrolled: Any, report: str, kind: FailureClass, word: str
) -> None:
    stuck = lease(state, 30, enrolled=enrolled)
    up = state is LeaseState.TUNNELLED
    seen = facts(
        a_job("1", 60),
        leases=(stuck,),
        machines=(
            machine(MachineState.PENDING if state is LeaseState.REQUESTED else machine().state),
        ),
        links={stuck.id: LinkHealth(up=up, since=NOW - 25 * MINUTE, tx_packets=9)},
        join_reports={stuck.id: report} if report else {},
    )
    after = updated(decided(seen))
    assert after.failure is not None
    assert after.failure.kind is kind
    assert word in after.failure.message
    assert after.state in (LeaseState.DRAINING, LeaseState.TERMINATING)


def test_the_missing_rule_pauses_the_pool_after_k_and_the_job_stays_here() -> None:
    """Protocol 47 is not let in: K leases fail with `tunnel`, then nothing is rented, and why."""
    broken = tuple(
        a_lease(
            LeaseState.FAILED,
            id=f"{n:032x}",
            failure=Failure(FailureClass.TUNNEL, "nothing came through its GRE tunnel"),
            failed=NOW - n * MINUTE,
            ended=NOW - n * MINUTE,
        )
        for n in range(1, 4)
    )
    paused = decided(facts(a_job("7", 60), leases=broken))
    assert why(paused, "pool", POOL.name)[0] == "pool-paused"
    idle = decided(facts(leases=broken))
    assert why(idle, "pool", POOL.name)[0] == "pool-paused", "it says so also with no work"
    assert only(paused, Want) == []
    code, message = why(paused, "job", "7")
    assert code == "pool-paused"
    assert "3 failures in a row" in message
    assert "GRE tunnel" in message
    fewer = decided(facts(a_job("7", 60), leases=broken[:2]))
    assert len(only(fewer, Want)) == 1, "the control: two failures do not pause"
    over = facts(a_job("7", 60), leases=(), now=NOW + POLICY.pause)
    assert only(decided(over), Want)


def test_throttling_holds_launches_of_that_provider_and_fails_nothing() -> None:
    setback = Failure(FailureClass.THROTTLED, "RequestLimitExceeded")
    asked = lease(LeaseState.WANTED, 1, setback=setback, retry_after=NOW + MINUTE)
    other = replace(lease(LeaseState.WANTED, 1), id="b" * 32, gre_key=2**31 + 5)
    queue = [a_job(str(n), 60) for n in range(40)]
    decision = decided(facts(*queue, leases=(asked, other)))
    assert not only(decision, Want)
    assert not only(decision, Launch)
    assert why(decision, "job", "39")[0] == "throttled"
    later = decided(replace(facts(*queue, leases=(asked, other)), now=NOW + MINUTE))
    assert {launch.lease_id for launch in only(later, Launch)} >= {"a" * 32, "b" * 32}


def test_a_wanted_lease_that_nobody_needs_ends_but_not_before_a_doubt_is_settled() -> None:
    sure = updated(decided(facts(leases=(lease(LeaseState.WANTED, 1),))))
    assert sure.state is LeaseState.TERMINATING
    assert updated(decided(facts(leases=(sure,)))).state is LeaseState.GONE
    doubt = replace(sure, attempted=NOW, maybe_launched=True)
    assert only(decided(facts(leases=(doubt,))), Update) == []
    late = facts(leases=(doubt,), machines=(machine(),))
    assert only(decided(late), Terminate) == [Terminate("aws", ("i-1",), "a" * 32)]
    never = replace(facts(leases=(doubt,)), now=NOW + POLICY.request_timeout)
    ended = updated(decided(never))
    assert ended.state is LeaseState.GONE
    assert ended.cost == 0


# The way out


def leaving(state: LeaseState, seen_node: Node | None, *jobs: Job, taken: Any = None) -> Decision:
    gone = lease(state, 1, stop_reason="idle")
    farm = Farm(taken or NOW, (LONG, *jobs), (WORKER, *((seen_node,) if seen_node else ())))
    return decided(facts(leases=(gone,), machines=(machine(),), farm=farm))


def test_an_idle_node_is_drained_first() -> None:
    idle = lease(LeaseState.JOINED, 30, idle_since=NOW - POLICY.idle_release)
    decision = decided(facts(leases=(idle,), machines=(machine(),), nodes=(node(),)))
    assert [type(action) for action in decision.actions] == [Update, Drain]
    assert updated(decision).state is LeaseState.DRAINING
    assert "idle since" in updated(decision).stop_reason


def test_a_busy_node_is_not_idle_and_not_released() -> None:
    busy = lease(LeaseState.JOINED, 30, idle_since=NOW - POLICY.idle_release)
    seen = facts(on_it(), leases=(busy,), machines=(machine(),), nodes=(node(NodeState.MIXED, 1),))
    assert updated(decided(seen)).idle_since is None


def test_a_draining_node_with_a_job_is_waited_for() -> None:
    decision = leaving(LeaseState.DRAINING, node(NodeState.DRAINING, 1), on_it())
    assert decision.actions == ()
    assert "waits for jobs remote" in why(decision, "lease", "a" * 32)[1]


def test_drained_counts_only_in_a_snapshot_begun_after_the_drain() -> None:
    old = leaving(LeaseState.DRAINING, node(NodeState.DRAINED), taken=NOW - 2 * MINUTE)
    assert old.actions == ()
    fresh = leaving(LeaseState.DRAINING, node(NodeState.DRAINED))
    assert [type(action) for action in fresh.actions] == [Update, Remove]


def test_a_drain_that_was_undone_is_repeated() -> None:
    assert only(leaving(LeaseState.DRAINING, node()), Drain)
    again = leaving(LeaseState.LEAVING, node())
    assert updated(again).state is LeaseState.DRAINING


def test_the_machine_goes_back_only_after_the_lrms_forgot_the_node() -> None:
    assert only(leaving(LeaseState.LEAVING, node(NodeState.DRAINED)), Terminate) == []
    decision = leaving(LeaseState.LEAVING, None)
    assert [type(action) for action in decision.actions] == [Update, Terminate]


def test_a_node_that_came_back_with_a_job_keeps_its_machine_until_it_is_empty() -> None:
    back = leaving(LeaseState.TERMINATING, node(NodeState.MIXED, 1), on_it())
    assert only(back, Drain)
    assert not only(back, Terminate)
    empty = leaving(LeaseState.TERMINATING, node(NodeState.DRAINED))
    assert [type(action) for action in empty.actions] == [Terminate, Remove]


@pytest.mark.parametrize(
    ("known", "returned"),
    [
        ({}, True),  # where nobody makes tunnels
        ({"network_applied": NOW - 2 * MINUTE}, True),
        ({"network_applied": NOW}, False),  # the snapshot was begun before it was closed
        ({"network_applied": NOW - 2 * MINUTE, "linked": True}, False),
        ({"network_applied": NOW - 2 * MINUTE, "network_error": "the agent is away"}, False),
    ],
)
def test_a_machine_is_ended_when_its_door_is_closed_and_its_node_was_not_seen_since(
    known: dict[str, Any], returned: bool
) -> None:
    def ends(since: timedelta) -> bool:
        gone = lease(
            LeaseState.TERMINATING,
            60,
            stop_reason="idle",
            left=NOW - since,
            terminating=NOW - since,
        )
        links = {gone.id: LinkHealth(up=True, since=NOW)} if known.get("linked") else {}
        rest = {key: value for key, value in known.items() if key != "linked"}
        seen = replace(facts(leases=(gone,), machines=(machine(),)), links=links, **rest)
        assert seen.farm is not None
        seen = replace(seen, farm=replace(seen.farm, taken=NOW - MINUTE))
        return bool(only(decided(seen), Terminate))

    assert ends(POLICY.lost_timeout - MINUTE / 2) == returned
    assert ends(POLICY.lost_timeout), "who cannot close it is not waited for for ever"


def test_a_machine_that_ended_right_after_its_report_failed_as_it_said() -> None:
    """Not "ended by itself": what it said is how to mend it."""
    coming = lease(LeaseState.TUNNELLED, 1)
    seen = facts(
        leases=(coming,),
        machines=(machine(MachineState.TERMINATED),),
        join_reports={coming.id: "preflight: there is no program slurmd"},
    )
    failure = updated(decided(seen)).failure
    assert failure is not None
    assert failure.message.endswith("reports: preflight: there is no program slurmd")
    silent = updated(decided(replace(seen, join_reports={}))).failure
    assert silent is not None
    assert silent.kind is FailureClass.LOST


def test_a_machine_that_never_enrolled_is_ended_without_asking_the_batch_system() -> None:
    """It lacks the secrets of a node. One round later, when it cannot enrol any more."""
    silent = lease(LeaseState.BOOTING, 90, enrolled=None)
    seen = facts(leases=(silent,), machines=(machine(),), farm=None)
    first = decided(seen)
    let_go = updated(first)
    assert let_go.state is LeaseState.TERMINATING
    assert let_go.failure is not None
    assert [type(action) for action in first.actions] == [Update]
    seen = replace(seen, leases=(let_go,), now=NOW + timedelta(seconds=5))
    assert only(decided(seen), Terminate)


def test_a_machine_that_enrolled_just_before_it_was_let_go_is_waited_for() -> None:
    """It may be a node, or become one: its tunnel is closed and the batch system is asked."""
    moment = POLICY.lost_timeout / 4
    raced = lease(
        LeaseState.TERMINATING, 1, stop_reason="idle", left=None, terminating=NOW - 2 * moment
    )
    seen = facts(leases=(raced,), machines=(machine(),), network_applied=NOW - moment)
    assert only(decided(replace(seen, farm=None)), Terminate) == []
    assert only(decided(seen), Terminate)
    back = replace(seen, farm=Farm(NOW, (LONG,), (WORKER, node())))
    assert updated(decided(back)).state is LeaseState.DRAINING


def test_the_end_settles_the_bill() -> None:
    done = lease(LeaseState.TERMINATING, 60, stop_reason="idle")
    ended = updated(decided(facts(leases=(done,), machines=(machine(MachineState.TERMINATED),))))
    assert ended.state is LeaseState.GONE
    assert ended.cost == Decimal("0.36")
    assert ended.reserved == 0


def test_an_operator_may_have_any_machine_back() -> None:
    for state in (
        LeaseState.REQUESTED,
        LeaseState.BOOTING,
        LeaseState.TUNNELLED,
        LeaseState.JOINED,
    ):
        asked = lease(state, 1, drain_requested="maintenance")
        seen = facts(a_job("1", 60), leases=(asked,), machines=(machine(),), links={asked.id: GOOD})
        after = updated(decided(seen))
        assert after.stop_reason == "operator: maintenance"
        assert after.state in (LeaseState.DRAINING, LeaseState.TERMINATING)


def test_a_machine_that_ends_under_its_job_is_a_loss_and_the_lrms_requeues() -> None:
    lost = lease(LeaseState.JOINED, 30)
    seen = facts(
        on_it(),
        leases=(lost,),
        machines=(machine(MachineState.TERMINATED),),
        nodes=(node(NodeState.MIXED, 1),),
    )
    decision = decided(seen)
    after = updated(decision)
    assert after.state is LeaseState.DRAINING
    assert after.failure is not None
    assert after.failure.kind is FailureClass.LOST
    assert only(decision, Drain)
    assert not only(decision, Remove)
    assert not only(decision, Terminate)


def test_a_silent_tunnel_drains_after_lost_timeout() -> None:
    here = lease(LeaseState.JOINED, 30)
    for minutes, lost in ((1, False), (5, True)):
        link = LinkHealth(up=False, since=NOW - minutes * MINUTE)
        seen = facts(
            leases=(here,), machines=(machine(),), nodes=(node(used=1),), links={here.id: link}
        )
        assert bool(only(decided(seen), Drain)) is lost


# Whose is it


def test_an_unknown_machine_with_our_tag_goes_back_when_it_is_old_enough() -> None:
    for age, returned in ((1, False), (10, True)):
        stray = machine(lease_id="f" * 32, launched=NOW - age * MINUTE)
        assert bool(only(decided(facts(machines=(stray,))), Terminate)) is returned


def test_a_second_machine_of_one_lease_goes_back_and_a_late_one_of_an_ended_lease() -> None:
    here = lease(LeaseState.JOINED, 30)
    twin = machine(id="i-2")
    seen = facts(leases=(here,), machines=(machine(), twin), nodes=(node(used=1),))
    assert only(decided(seen), Terminate) == [Terminate("aws", ("i-2",), None)]
    over = a_lease(LeaseState.GONE, ended=NOW)
    decision = decided(facts(leases=(over,), machines=(machine(),)))
    assert only(decision, Terminate) == [Terminate("aws", ("i-1",), "a" * 32)]


def test_a_node_that_no_lease_names_is_drained_and_removed_and_others_are_let_be() -> None:
    ours = node(name="cms-aws-0badcafe")
    theirs = node(name="wn7")
    assert only(decided(facts(nodes=(ours, theirs))), Drain) == [
        Drain("cms-aws-0badcafe", "no lease stands behind this node")
    ]
    gone = replace(ours, state=NodeState.DRAINED)
    assert only(decided(facts(nodes=(gone, theirs))), Remove) == [Remove("cms-aws-0badcafe")]


# Routing and money


def joined(*pending: Job, limit: str = "5", reserved: str = "0.72", **changes: Any) -> Facts:
    here = lease(LeaseState.JOINED, 30, reserved=Decimal(reserved))
    budget = Budget("cms", Decimal(limit), Decimal(0), Decimal(reserved))
    return facts(
        *pending,
        leases=(here,),
        machines=(machine(),),
        nodes=(node(used=1),),
        links={here.id: GOOD},
        budgets={"cms": budget},
        **changes,
    )


def test_as_many_jobs_are_routed_as_keep_the_nodes_fed_oldest_first() -> None:
    queue = [a_job(str(n), 10, submitted=NOW - (60 - n) * MINUTE) for n in range(9)]
    routes = only(decided(joined(*queue)), Route)
    assert [route.job_id for route in routes] == ["0", "1", "2", "3"]
    some = [replace(job, partitions=("batch", "burst-cms")) for job in queue[:3]]
    more = only(decided(joined(*some, *queue[3:])), Route)
    assert [route.job_id for route in more] == ["3"]


def test_held_and_foreign_jobs_are_never_routed() -> None:
    queue = [a_job("1", state=JobState.HELD), a_job("2", user="bob"), a_job("3", nodes=2)]
    assert only(decided(joined(*queue)), Route) == []


def test_jobs_come_back_when_no_node_is_left() -> None:
    queue = [
        a_job("1", partitions=("batch", "burst-cms")),
        a_job("2", partitions=("burst-cms",)),
    ]
    decision = decided(facts(*queue))
    assert only(decision, Unroute) == [Unroute("1", "burst-cms")]


def test_money_for_a_routed_job_is_reserved_before_it_is_routed() -> None:
    decision = decided(joined(a_job("1", 120)))
    kinds = [type(action) for action in decision.actions]
    assert kinds.index(Update) < kinds.index(Route)
    needed = Decimal("0.18") + Decimal("0.72")  # half an hour spent, two hours to come
    assert updated(decision).reserved >= needed


def test_a_job_too_long_for_the_budget_is_not_routed_and_taken_back() -> None:
    decision = decided(joined(a_job("1", 600), a_job("2", 10), limit="1"))
    assert [route.job_id for route in only(decision, Route)] == ["2"]
    assert why(decision, "job", "1")[0] == "budget"
    sent = a_job("1", 600, partitions=("batch", "burst-cms"))
    assert only(decided(joined(sent, limit="1")), Unroute) == [Unroute("1", "burst-cms")]


def test_a_lease_that_the_budget_cannot_carry_on_is_let_go_in_time() -> None:
    decision = decided(joined(limit="0.19", reserved="0.185"))
    after = updated(decision)
    assert after.state is LeaseState.DRAINING
    assert "budget" in after.stop_reason
    assert only(decision, Drain)


# The function itself


def test_it_is_a_function() -> None:
    seen = joined(*(a_job(str(n), 60) for n in range(20)))
    assert decided(seen) == decided(seen)
    shuffled = replace(seen, leases=tuple(reversed(seen.leases)))
    assert decided(shuffled) == decided(seen)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def test_it_is_linear_in_the_number_of_jobs() -> None:
    def crowd(count: int) -> Facts:
        return facts(*(a_job(str(n), 10 + n % 50, cores=1 + n % 2) for n in range(count)))

    few, many = crowd(2_000), crowd(20_000)
    small = min(_seconds(lambda: decided(few)) for _ in range(3))
    large = min(_seconds(lambda: decided(many)) for _ in range(3))
    assert large < 40 * small
