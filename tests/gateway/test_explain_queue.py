"""`explain` answers for each of a thousand pending jobs of a mixed queue what `decide` decided.

Whether the named rule decided is tried by ending its cause: then the answer must change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from burst.model import Farm, Job, JobState, Machine, Node, NodeState, Offer, Pool
from burst.rules import RULES
from gateway.api.view import View
from gateway.loops.books import Books
from gateway.loops.burst import BurstLoop
from gateway.loops.network import NetworkView
from gateway.sitefile import SiteFile
from gateway.store import Store
from tests.gateway.fake_daemon import write_site

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
COUNT = 1000
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "held": {"state": JobState.HELD},
    "young": {"submitted": NOW - timedelta(milliseconds=10)},
    "elsewhere": {"partitions": ("gpu",)},
    "stranger": {"user": "mallory"},
    "local": {"features": ("infiniband",)},
    "wide": {"nodes": 64, "cores": 128},
    "big": {"memory_mb": 10**6},
    "waits": {"reason": "Dependency"},
    "alone": {"partitions": ("burst-cms",)},
    "long": {"time_limit": timedelta(days=300)},
}


def job(number: int, kind: str) -> Job:
    base = Job(
        id=str(number),
        user="alice",
        account="cms",
        state=JobState.PENDING,
        partitions=("batch",),
        cores=1 + number % 2,
        nodes=1,
        memory_mb=100 * (1 + number % 7),
        time_limit=timedelta(minutes=10 + number % 50),
        submitted=NOW - timedelta(minutes=5 + number % 60),
        reason="Resources",
    )
    return replace(base, **KINDS[kind])


BUSY = replace(
    job(0, "plain"),
    id="busy",
    state=JobState.RUNNING,
    cores=4,
    started=NOW,
    time_limit=timedelta(hours=9),
    node_names=("wn1",),
)


class Lrms:
    def __init__(self, farm: Farm) -> None:
        self.farm = farm

    def snapshot(self) -> Farm:
        return self.farm

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name in ("admit", "route", "unroute", "drain", "remove"):
            return lambda *_: None
        raise AttributeError(name)


class Provider:
    name = "aws"

    def offers(self) -> list[Offer]:
        return [Offer("aws", "c5.large", "zone-a", 2, 4096, Decimal("0.10"))]

    def machines(self) -> list[Machine]:
        return []


class Desk:
    """The daemon's loop and view, with nothing outside; `look` is one decision, not carried out."""

    def __init__(self, file: SiteFile, jobs: list[Job], pools: tuple[Pool, ...]) -> None:
        self.store = Store.open("sqlite:///:memory:")
        node = Node("wn1", NodeState.ALLOCATED, 4, 4, 8192, partitions=("batch",))
        assert file.burst is not None
        self.loop = BurstLoop(
            pools=pools,
            policy=file.policy,
            store=self.store,
            books=Books(self.store, file.burst.budgets, lambda: NOW),
            lrms=Lrms(Farm(NOW, (*jobs, BUSY), (node,))),
            providers={"aws": Provider()},  # type: ignore[dict-item]
            user_data=lambda _lease: "",
            network=lambda: NetworkView(error=""),
            clock=lambda: NOW,
            answer_timeout=timedelta(seconds=5),
            spawn=lambda _name, work: work(),
        )
        self.view = View(
            file=file,
            store=self.store,
            clock=lambda: NOW,
            network=SimpleNamespace(view=NetworkView(error="")),  # type: ignore[arg-type]
            burst=self.loop,
            loops=lambda: (),
            enrolment=lambda: None,
            enrolment_error=lambda: "",
            wake=lambda: None,
            drift=dict,
        )

    def look(self) -> dict[str, str]:
        """Decide; the codes by job."""
        facts = self.loop._gather()
        self.loop.facts = facts
        decision = self.loop._decide(facts)
        self.loop.answers.hear(decision.reasons, NOW)
        return {r.id: r.code for r in decision.reasons if r.subject == "job"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> SiteFile:
    return write_site(Path(tmp_path_factory.mktemp("explain")))


def pools(file: SiteFile) -> tuple[Pool, ...]:
    return tuple(replace(pool, users=("alice",)) for pool in file.pools)


@pytest.fixture(scope="module")
def queue() -> list[Job]:
    names = list(KINDS)
    weighted = ["plain"] * 10 + names
    return [job(number, weighted[number % len(weighted)]) for number in range(COUNT)]


def test_every_pending_job_of_a_thousand_has_the_answer_of_the_decision(
    file: SiteFile, queue: list[Job]
) -> None:
    desk = Desk(file, queue, pools(file))
    decided = desk.look()
    jobs = {one.id: one for one in desk.view.jobs() if one.state != "running"}
    assert len(decided) == len(jobs) == COUNT
    for name, code in decided.items():
        shown = jobs[name].why
        assert shown is not None
        assert shown.code == code
        assert shown.message
        assert code in RULES, f"no rule is told for {code}"
    # The control: the queue was mixed.
    assert len(Counter(decided.values())) >= 10, Counter(decided.values())


def test_the_long_answer_has_rule_inputs_and_what_would_change_it(
    file: SiteFile, queue: list[Job]
) -> None:
    desk = Desk(file, queue, pools(file))
    decided = desk.look()
    by_code = {code: name for name, code in decided.items()}
    for code, name in by_code.items():
        told = desk.view.explain("job", name)
        assert told.why is not None
        assert told.rule == RULES[code].text
        assert {fact.name for fact in told.inputs} >= {"cores", "memory", "waited", "partitions"}
        assert told.change
        for number in RULES[code].uses:
            assert f"policy.{number}" in {fact.name for fact in told.inputs}


CURES: list[tuple[str, str, dict[str, Any]]] = [
    ("held", "held", {"state": JobState.PENDING}),
    ("young", "young", {"submitted": NOW - timedelta(hours=1)}),
    ("elsewhere", "other-partition", {"partitions": ("batch",)}),
    ("stranger", "other-user", {"user": "alice"}),
    ("local", "local-only", {"features": ()}),
    ("wide", "multi-node", {"nodes": 1, "cores": 1}),
    ("big", "too-big", {"memory_mb": 100}),
    ("waits", "lrms-reason", {"reason": "Resources"}),
]


@pytest.mark.parametrize(("kind", "code", "cure"), CURES, ids=[cure[1] for cure in CURES])
def test_the_rule_that_is_named_is_the_one_that_decided(
    file: SiteFile, kind: str, code: str, cure: dict[str, Any]
) -> None:
    one = job(1, kind)
    assert Desk(file, [one], pools(file)).look() == {"1": code}
    cured = Desk(file, [replace(one, **cure)], pools(file)).look()
    assert cured == {"1": "renting"}, "without its cause the job gets a machine"


def test_a_pool_is_explained_with_its_offers_and_budgets(file: SiteFile, queue: list[Job]) -> None:
    desk = Desk(file, queue, pools(file))
    desk.look()
    told = desk.view.explain("pool", "cms-aws")
    facts = {fact.name: fact.value for fact in told.inputs}
    assert facts["offer c5.large"] == "2 cores, 4096 MiB, 0.10 USD an hour"
    assert facts["budget of each day"] == "0.0000 spent and 0.0000 reserved of 5.0 USD"
    assert facts["machines"] == "0 of at most 4"


def test_without_money_it_is_said_when_there_will_be_some(file: SiteFile) -> None:
    desk = Desk(file, [job(1, "long")], pools(file))
    assert desk.look() == {"1": "budget"}
    told = desk.view.explain("job", "1")
    assert "the next day begins 2026-03-02 00:00 UTC" in told.change


def test_the_plan_says_what_it_would_do_and_does_nothing(file: SiteFile, queue: list[Job]) -> None:
    desk = Desk(file, queue, pools(file))
    desk.look()
    plan = desk.view.plan()
    assert plan.machines == 4
    rents = [step.text for step in plan.steps if step.action == "want"]
    assert len(rents) == 4
    assert all(text.startswith("rent a c5.large for pool cms-aws: 0.10 USD") for text in rents)
    told = sum(Decimal(text.split(" an hour, ")[1].split()[0]) for text in rents)
    assert abs(plan.reserve["USD"] - told) < Decimal("0.001")
    assert desk.store.leases() == ()
