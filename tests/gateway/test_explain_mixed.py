"""A thousand pending jobs, every reason there is: `explain` answers for each what `decide` decided.

That the named input decided, and not another, is tried: it alone is changed, and the decision about
that job must be another one; what has nothing to do with it is changed, and the decision stays.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest

from burst.actions import Reason
from burst.decide import decide
from burst.model import JobState, LeaseState, MachineState, NodeState
from burst.rules import RULES
from gateway.api.models import Explanation
from gateway.api.view import View
from gateway.loops.books import Books
from gateway.loops.burst import HOLD, BurstLoop
from gateway.loops.network import NetworkView
from gateway.sitefile import SiteFile
from gateway.store import Store
from tests.gateway import explain_world as w
from tests.gateway.explain_world import NOW, Kind, World

HOUR = timedelta(hours=1)
BIG = Decimal(10_000_000)

KINDS: dict[str, Kind] = {
    "renting": Kind(
        "renting", "open", 232, "0.10 an hour", ("open: offer c5.large",),
        lambda x, _: x.with_offer("c5.large", available=0),
    ),
    "array-task": Kind(
        "renting", "open", 60, "0.10 an hour", ("open: offer c5.large",),
        lambda x, _: x.with_pool("open", max_machines=0),
    ),
    "two-nodes": Kind(
        "renting", "pair", 4, "2 of c5.large", ("nodes",),
        lambda x, _: x.with_pool("pair", max_nodes=1), {"nodes": 2, "cores": 4},
    ),
    "held": Kind(
        "held", "open", 20, "held", ("state",),
        lambda x, j: x.with_job(j, state=JobState.PENDING), {"state": JobState.HELD},
    ),
    "elsewhere": Kind(
        "other-partition", "open", 20, "takes jobs from q-", ("partitions",),
        lambda x, j: x.with_job(j, partitions=("q-open",)), {"partitions": ("gpu",)},
    ),
    "stranger": Kind(
        "other-user", "open", 20, "mallory", ("user",),
        lambda x, j: x.with_job(j, user="alice"), {"user": "mallory"},
    ),
    "barred-account": Kind(
        "other-user", "open", 20, "theory", ("account",),
        lambda x, j: x.with_job(j, account="cms"), {"account": "theory"},
    ),
    "out-by-feature": Kind(
        "opted-out", "open", 20, "stay", ("features",),
        lambda x, j: x.with_job(j, features=()), {"features": ("stay",)},
    ),
    "out-by-comment": Kind(
        "opted-out", "open", 20, "stay", ("comment",),
        lambda x, j: x.with_job(j, comment=""), {"comment": "please stay"},
    ),
    "not-in": Kind(
        "not-opted-in", "optin", 20, "cloud", ("partitions",),
        lambda x, j: x.with_job(j, comment="cloud"),
    ),
    "local-feature": Kind(
        "local-only", "open", 20, "infiniband", ("features",),
        lambda x, j: x.with_job(j, features=("x86",)), {"features": ("x86", "infiniband")},
    ),
    "licence": Kind(
        "local-only", "open", 20, "matlab", ("needs",),
        lambda x, _: x.with_pool("open", resources=("matlab",)), {"needs": ("matlab",)},
    ),
    "wide": Kind(
        "multi-node", "open", 20, "up to 2 go", ("nodes",),
        lambda x, _: x.with_pool("open", max_nodes=3), {"nodes": 3, "cores": 6},
    ),
    "big-memory": Kind(
        "too-big", "open", 20, "100000 MiB", ("memory", "open: offer c5.large"),
        lambda x, j: x.with_job(j, memory_mb=100), {"memory_mb": 100_000},
    ),
    "many-cores": Kind(
        "too-big", "open", 20, "9 cores", ("cores", "open: offer c5.large"),
        lambda x, _: x.with_offer("c5.large", cores=9), {"cores": 9},
    ),
    "dependency": Kind(
        "lrms-reason", "open", 20, "Dependency", ("batch system's reason",),
        lambda x, j: x.with_job(j, reason="Resources"), {"reason": "Dependency"},
    ),
    "array-limit": Kind(
        "lrms-reason", "open", 20, "JobArrayTaskLimit", ("batch system's reason",),
        lambda x, j: x.with_job(j, reason="Resources"), {"reason": "JobArrayTaskLimit"},
    ),
    "young": Kind(
        "young", "open", 20, "younger than 60 s", ("waited", "policy.min_job_age"),
        lambda x, _: x.with_policy(min_job_age=timedelta(seconds=3)),
        {"submitted": NOW - timedelta(seconds=4)},
    ),
    "soon": Kind(
        "starts-soon", "soon", 60, "300 s", ("policy.expected_start_cost", "policy.margin"),
        lambda x, _: x.with_node("wn-soon", state=NodeState.DOWN),
    ),
    "on-the-way": Kind(
        "on-the-way", "coming", 2, "coming", ("coming: machines",),
        lambda x, _: x.without_leases("coming"), {"cores": 1},
    ),
    "routed": Kind(
        "routed", "there", 2, "1 borrowed nodes", ("there: machines",),
        lambda x, _: x.without_leases("there"), {"partitions": ("q-there", "b-there")},
    ),
    "unrouted": Kind(
        "unrouted", "nonode", 10, "no usable node", ("nonode: machines",),
        lambda x, j: x.with_job(j, partitions=("q-nonode",)),
        {"partitions": ("q-nonode", "b-nonode")},
    ),
    "alone": Kind(
        "waits-for-pool", "nonode", 10, "b-nonode alone", ("partitions",),
        lambda x, j: x.with_job(j, partitions=("q-nonode",)), {"partitions": ("b-nonode",)},
    ),
    "long-for-the-budget": Kind(
        "budget", "tight", 20, "40.0 h", ("time limit", "tight: budget of each month"),
        lambda x, _: x.with_budget("t-tight", limit=BIG), {"time_limit": 40 * HOUR},
    ),
    "dear": Kind(
        "not-worth", "dear", 20, "min_value 0.0001", ("policy.min_value", "dear: offer p5.gold"),
        lambda x, _: x.with_policy(min_value=Decimal(0)),
    ),
    "cap": Kind(
        "cap", "cap", 20, "1 machines at most", ("cap: machines",),
        lambda x, _: x.with_pool("cap", max_machines=30),
    ),
    "tenant-cap": Kind(
        "tenant-cap", "tcap", 20, "20 machines at most", ("policy.tenant_machines",),
        lambda x, _: x.with_policy(tenant_machines=300),
    ),
    "no-address": Kind(
        "no-address", "noaddr", 20, "no inner address", ("noaddr: addresses",),
        lambda x, _: x.with_node("wn-noaddr", address="10.9.9.200"),
    ),
    "poor": Kind(
        "budget", "poor", 20, "0.01", ("poor: budget of each month", "policy.reserve_hours"),
        lambda x, _: x.with_budget("t-poor", limit=BIG),
    ),
    "soft": Kind(
        "soft-budget", "soft", 20, "0.01", ("soft: budget of each month",),
        lambda x, _: x.with_budget("t-soft", soft=Decimal(50)),
    ),
    "quota": Kind(
        "budget", "quota", 20, "of the 1", ("quota: budget of each month",),
        lambda x, _: x.with_budget("t-quota@bari", limit=BIG),
    ),
    "broke": Kind(
        "no-budget", "broke", 20, "t-broke", ("broke: offer c5.large",),
        lambda x, _: x.with_offer("c5.large", price_per_hour=Decimal(0)),
    ),
    "no-offer": Kind(
        "no-offer", "nooffer", 20, "m9.unheard", ("nooffer: machines",),
        lambda x, _: x.with_pool("nooffer", types=("c5.large",)),
    ),
    "sold-out": Kind(
        "no-offer", "soldout", 20, "g5.rare", ("soldout: offer g5.rare",),
        lambda x, _: x.with_offer("g5.rare", available=5),
    ),
    "backing-off": Kind(
        "backing-off", "backoff", 20, "until 12:00:0", ("policy.backoff_first",),
        lambda x, _: x.with_facts(forgiven=NOW),
    ),
    "throttled": Kind(
        "throttled", "slow", 20, "until 12:00:30", ("policy.backoff_first",),
        lambda x, _: x.with_lease("slow", 1, retry_after=None), {"cores": 2},
    ),
    "paused": Kind(
        "pool-paused", "paused", 20, "3 failures", ("policy.failures_to_pause", "policy.pause"),
        lambda x, _: x.with_facts(forgiven=NOW),
    ),
    "proving": Kind(
        "proving", "proving", 20, "at most 3", ("policy.failures_to_pause",),
        lambda x, _: x.with_policy(failures_to_pause=30), {"cores": 2},
    ),
    "mute": Kind(
        "no-provider", "mute", 20, "its credentials expired", ("mute: provider mute",),
        lambda x, _: x.with_facts(
            providers={**x.facts.providers, "mute": replace(x.facts.providers["aws"], name="mute")}
        ).with_pool("mute", provider="mute"),
    ),
}  # fmt: skip
COUNT = 1000
ELSEWHERE = {"no-pool", "no-network", "hold"}  # they need the whole site to be otherwise
NOT_OF_JOBS = {"ok", "no-answer", "over-budget", "launch-held", "orphans", *LeaseState}
JOB_RULES = {code for code in RULES if code not in NOT_OF_JOBS and not code.startswith("flash-")}
OF_JOBS = {kind.code for kind in KINDS.values()}
OF_POOLS = {
    "cap", "tenant-cap", "no-address", "soft-budget", "no-budget", "no-offer", "backing-off",
    "throttled", "pool-paused", "proving", "no-provider", "not-worth",
}  # fmt: skip


class Desk:
    """The daemon's loop and view, with nothing outside. One decision, not carried out."""

    def __init__(self, file: SiteFile, kinds: dict[str, Kind], *, hold: str = "") -> None:
        number = 0
        self.kind_of: dict[str, str] = {}
        jobs = []
        for name, kind in kinds.items():
            for _ in range(kind.count):
                number += 1
                one = w.job(number, kind)
                if name == "array-task":
                    one = replace(one, id=f"4711_{number}")
                jobs.append(one)
                self.kind_of[one.id] = name
        random.Random(9).shuffle(jobs)
        store = Store.open("sqlite:///:memory:")
        store.save_all(w.LEASES, NOW)
        store.note(HOLD, hold)
        assert file.burst is not None
        self.file = file
        self.loop = BurstLoop(
            pools=file.pools,
            policy=file.policy,
            store=store,
            books=Books(store, file.burst.budgets, lambda: NOW, quotas=file.burst.quotas),
            lrms=SimpleNamespace(snapshot=lambda: w.farm(jobs)),
            providers={name: w.Provider(name) for name in w.OFFERS},  # type: ignore[misc]
            user_data=lambda _lease: "",
            network=lambda: NetworkView(error=""),
            clock=lambda: NOW,
            answer_timeout=timedelta(seconds=5),
            spawn=lambda _name, work: work(),
        )
        self.view = View(
            file=file,
            store=store,
            clock=lambda: NOW,
            network=SimpleNamespace(view=NetworkView(error="")),  # type: ignore[arg-type]
            burst=self.loop,
            loops=lambda: (),
            enrolment=lambda: None,
            enrolment_error=lambda: "",
            wake=lambda: None,
            drift=dict,
        )
        facts = self.loop._gather()
        self.loop.facts = facts
        decision = self.loop._decide(facts)
        self.loop.answers.hear(decision.reasons, NOW)
        self.world = World(facts, file.pools, file.policy)
        self.said: dict[tuple[str, str], Reason] = {(r.subject, r.id): r for r in decision.reasons}

    def job(self, name: str) -> Reason:
        return self.said["job", name]

    def of_kind(self, name: str) -> list[str]:
        return [job for job, kind in self.kind_of.items() if kind == name]


def codes(world: World) -> dict[tuple[str, str], str]:
    """What `decide` itself says now, by subject."""
    numbers = iter(range(1, 10**6))
    made = decide(world.facts, world.pools, world.policy, lambda: f"{next(numbers):08x}{'f' * 24}")
    return {(reason.subject, reason.id): reason.code for reason in made.reasons}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> SiteFile:
    return w.site(Path(tmp_path_factory.mktemp("mixed")))


@pytest.fixture(scope="module")
def desk(file: SiteFile) -> Desk:
    return Desk(file, KINDS)


@pytest.fixture(scope="module")
def told(desk: Desk) -> dict[str, Explanation]:
    """What `dvn burst explain` says of each of them."""
    return {name: desk.view.explain("job", name) for name in desk.kind_of}


def test_the_queue_is_of_a_thousand_and_has_every_reason(desk: Desk) -> None:
    found = Counter(desk.job(name).code for name in desk.kind_of)
    assert sum(found.values()) == len(desk.kind_of) == COUNT
    assert set(found) == OF_JOBS
    assert JOB_RULES == OF_JOBS | ELSEWHERE, "every rule about a job decides somewhere"


def test_each_job_has_the_answer_of_the_decision(desk: Desk, told: dict[str, Explanation]) -> None:
    for name, one in told.items():
        said = desk.job(name)
        assert one.why is not None
        assert (one.why.code, one.why.message) == (said.code, said.message)
        assert said.message in one.text


def test_each_answer_has_its_inputs_its_rule_and_what_would_change_it(
    desk: Desk, told: dict[str, Explanation]
) -> None:
    for name, one in told.items():
        rule = RULES[desk.job(name).code]
        assert one.rule == rule.text
        assert one.change
        shown = {fact.name: fact.value for fact in one.inputs}
        assert all(value for value in shown.values())
        assert {"cores", "memory", "waited", "partitions", "user"} <= set(shown)
        assert {f"policy.{number}" for number in rule.uses} <= set(shown)


@pytest.mark.parametrize("kind", [name for name in KINDS if KINDS[name].count])
def test_the_number_that_decided_is_told(
    desk: Desk, told: dict[str, Explanation], kind: str
) -> None:
    expected = KINDS[kind]
    mine = [name for name in desk.of_kind(kind) if desk.job(name).code == expected.code]
    assert mine, Counter(desk.job(name).code for name in desk.of_kind(kind))
    for name in mine:
        assert expected.says in told[name].text
        assert set(expected.shows) <= {fact.name for fact in told[name].inputs}


@pytest.mark.parametrize("kind", list(KINDS))
def test_another_input_another_decision(desk: Desk, kind: str) -> None:
    """A sample of each kind; the input that is told to have decided, and it alone, is changed."""
    expected = KINDS[kind]
    mine = [name for name in desk.of_kind(kind) if desk.job(name).code == expected.code]
    for name in {mine[0], mine[-1]}:
        cured = codes(expected.cure(desk.world, name))["job", name]
        assert cured != expected.code


def test_what_has_nothing_to_do_with_it_changes_nothing(desk: Desk) -> None:
    """The control of the test before: decisions are not shaken by just anything."""
    before = {name: reason.code for (kind, name), reason in desk.said.items() if kind == "job"}
    other = desk.world
    assert other.facts.farm is not None
    jobs = tuple(replace(one, name="another name", ended=None) for one in other.facts.farm.jobs)
    after = codes(other.with_facts(farm=replace(other.facts.farm, jobs=jobs)))
    assert {name: after["job", name] for name in before} == before


def test_an_operators_hold_is_told_as_what_it_is(file: SiteFile) -> None:
    desk = Desk(file, {"renting": KINDS["renting"]}, hold="maintenance")
    for name in desk.kind_of:
        assert desk.job(name).code == "hold"
    told = desk.view.explain("job", next(iter(desk.kind_of)))
    assert "nothing new is rented: maintenance" in told.text
    assert told.change == ("`dvn burst resume`",)
    assert desk.view.explain("pool", "open").change == ("`dvn burst resume`",)


def test_without_a_network_every_job_that_would_get_a_machine_is_told_so(desk: Desk) -> None:
    before = {key for key, reason in desk.said.items() if reason.code == "renting"}
    after = codes(desk.world.with_facts(network_error="the agent does not answer"))
    assert {after[key] for key in before if key[0] == "job"} == {"no-network"}


def test_without_a_pool_that_is_the_reason(desk: Desk) -> None:
    after = codes(replace(desk.world, pools=()))
    assert {after["job", name] for name in desk.kind_of} == {"no-pool"}


# -- leases and pools -----------------------------------------------------------------------------

LEASE_CURES: dict[tuple[str, int], tuple[str, Callable[[World], World]]] = {
    ("slow", 1): ("launch-held", lambda x: x.with_lease("slow", 1, retry_after=None)),
    ("zoo", 1): (
        "requested",
        lambda x: x.with_machine("zoo", 1, state=MachineState.RUNNING),
    ),
    ("zoo", 2): ("booting", lambda x: x.with_link("zoo", 2)),
    ("zoo", 3): ("tunnelled", lambda x: x.with_new_node("zoo", 3)),
    ("zoo", 4): ("joined", lambda x: x.with_lease("zoo", 4, drain_requested="bad disk")),
    ("zoo", 5): ("draining", lambda x: x.without_job("r-zoo-5").with_idle("zoo", 5)),
    ("zoo", 6): ("leaving", lambda x: x.without_node("zoo", 6)),
    ("zoo", 7): ("terminating", lambda x: x.with_machine("zoo", 7, state=MachineState.TERMINATED)),
    ("over", 1): ("over-budget", lambda x: x.with_budget("t-over", limit=BIG)),
}


def test_each_lease_has_an_answer_with_inputs_and_rule(desk: Desk) -> None:
    for lease in w.LEASES:
        told = desk.view.explain("lease", lease.id)
        said = desk.said["lease", lease.id]
        assert told.why is not None
        assert told.why.code == said.code
        assert told.rule == RULES[said.code].text
        assert {fact.name for fact in told.inputs} >= {"pool", "machine", "price", "reserved"}
        assert told.change or said.code == "gone"
        assert desk.view.explain("lease", lease.node) == told
    found = {desk.said["lease", lease.id].code for lease in w.LEASES}
    states = {
        "requested",
        "booting",
        "tunnelled",
        "joined",
        "draining",
        "terminating",
        "gone",
        "failed",
    }
    assert found >= states | {"launch-held", "over-budget"}


@pytest.mark.parametrize("of", list(LEASE_CURES), ids=lambda of: f"{of[0]}-{of[1]}")
def test_another_input_another_answer_of_a_lease(desk: Desk, of: tuple[str, int]) -> None:
    code, cure = LEASE_CURES[of]
    key = ("lease", w.lease_id(*of))
    assert desk.said[key].code == code
    assert codes(cure(desk.world))[key] != code


def test_a_lease_of_long_ago_is_explained_by_its_end(desk: Desk) -> None:
    """No decision speaks of it any more."""
    old = w.lease("zoo", 99, LeaseState.GONE, ended=NOW - timedelta(days=9), cost=Decimal("0.07"))
    desk.view._store.save(old, NOW)
    told = desk.view.explain("lease", old.id)
    assert told.why is None
    assert told.rule == RULES["gone"].text
    assert any(fact.name == "cost until now" and "0.07" in fact.value for fact in told.inputs)


def test_each_pool_has_an_answer_with_inputs_and_rule(desk: Desk) -> None:
    for pool in desk.file.pools:
        told = desk.view.explain("pool", pool.name)
        said = desk.said["pool", pool.name]
        assert told.why is not None
        assert (told.why.code, told.why.message) == (said.code, said.message)
        assert told.rule == RULES[said.code].text
        assert told.change
        shown = {fact.name for fact in told.inputs}
        assert {"machines", "addresses"} <= shown
        assert {f"policy.{number}" for number in RULES[said.code].uses} <= shown


@pytest.mark.parametrize(
    "kind",
    [name for name in KINDS if KINDS[name].code in OF_POOLS],
)
def test_another_input_another_answer_of_a_pool(desk: Desk, kind: str) -> None:
    expected = KINDS[kind]
    key = ("pool", expected.pool)
    assert desk.said[key].code == expected.code
    (name, *_) = desk.of_kind(kind)
    assert codes(expected.cure(desk.world, name))[key] != expected.code
