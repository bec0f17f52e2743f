"""A hard budget of 1.00 through kill -9: machines at 0.30 an hour, a queue without end.

Told twice. By the hour: four machines could run, what is set aside for them would pass the limit,
so the limit is what decides. And with an hour of five minutes, so that the money is really spent
and the last of it is gone while jobs still wait.

Somebody from outside looks all the time (`Auditor`), also while no daemon lives. Every second kill
waits for a launch: the cloud has started the machine, and its answer never comes.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import partial

import pytest

from lab.process import CommandTimeoutError, wait_for
from lab.scenarios import site, work
from lab.scenarios.story import Story
from tests.whole.auditor import Auditor

pytestmark = [
    pytest.mark.whole,
    pytest.mark.long,
    pytest.mark.xdist_group("whole"),
    pytest.mark.timeout(2700),
]

LIMIT = Decimal("1.00")
GRAIN = Decimal("0.001")  # the lab rounds each machine's bill at its own price
TYPE = "c5.large"
SLOW = {  # an emulated machine with little to run on: what is late here is not broken
    "boot_timeout": "400s",
    "tunnel_timeout": "300s",
    "join_timeout": "300s",
    "failures_to_pause": 20,
}
SEED = 2030
ENDED = {"gone", "failed"}


@dataclass(frozen=True)
class Tariff:
    """price: for an hour of the clock. first: what is set aside before a launch. minutes: the
    jobs' time limit. kills: of the daemon. launches: how many of them fell into one, at least; by
    the hour the money is enough for three machines, which one call may launch."""

    price: Decimal
    first: Decimal
    minutes: int
    kills: int
    launches: int
    policy: dict[str, object]


HOUR = Tariff(
    Decimal("0.30"),
    Decimal("0.255"),  # 51 minutes: the budget carries three machines, and of a fourth a part
    10,
    10,
    1,
    {"reserve_hours": "0.85", "default_job_time": "40m"},
)
FIVE_MINUTES = Tariff(
    Decimal("3.60"),  # 0.30 each five minutes: 1.00 is 1,000 machine-seconds
    Decimal("0.260"),  # start 20 s, a job's 2 minutes, twice the return of 60 s
    2,
    6,
    2,
    {"reserve_hours": "0.02", "default_job_time": "2m"},
)


@pytest.fixture
def tariff(request: pytest.FixtureRequest) -> Tariff:
    assert isinstance(request.param, Tariff)
    return request.param


@pytest.fixture
def poor(tariff: Tariff) -> Iterator[Story]:
    """A lab of its own: its site file has another budget and other prices."""
    with Story(
        policy={**site.LAB_POLICY, **SLOW, **tariff.policy},
        max_machines=6,
        core_share=0.3,
        budget=str(LIMIT),
        period="ever",
        warm_start=True,
        prices={TYPE: str(tariff.price)},
    ) as story:
        story.dvn("apply", site.SITE_FILE)
        yield story


@dataclass
class Customer:
    """Who keeps the queue full."""

    story: Story
    minutes: int
    ids: list[str]

    def waiting(self) -> list[str]:
        ended = self.story.finished()
        return [job for job in self.ids if job not in ended]

    def come(self, at_least: int = 6) -> None:
        if len(self.waiting()) < at_least:
            self.ids += self.story.submit(work.flash(12, size=100_000), minutes=self.minutes)


def kill_often(story: Story, customer: Customer, kills: int) -> int:
    """Start and kill the daemon; how many of the kills fell into a launch."""
    moments = random.Random(SEED)
    in_a_launch = 0

    def begun(before: int) -> bool:
        return story.daemon_log().count("event=started") > before

    def one_more(before: int) -> bool:
        return len(story.cloud.backend.states()) > before

    for kill in range(kills):
        seen = story.daemon_log().count("event=started")
        machines = len(story.cloud.backend.states())
        if kill % 2 == 0:
            story.cloud.faults.launch_timeout_after_success = 1
        story.start_daemon(wait=False)
        wait_for(partial(begun, seen), 300, what="the daemon's loops", interval=0.2)
        if kill % 2 == 0:
            with suppress(CommandTimeoutError):  # there may be no money for one now
                wait_for(partial(one_more, machines), 60, interval=0.05)
                in_a_launch += 1
        else:
            with pytest.raises(subprocess.TimeoutExpired):  # else it ended by itself: a defect
                story.daemon.wait(moments.uniform(0.5, 12))
        story.kill_daemon()
        story.cloud.faults.clear()
        customer.come()
    return in_a_launch


def cancel_what_waits(story: Story) -> None:
    story.head.run("scancel", "--user=alice", "--state=PENDING")


@pytest.mark.parametrize("tariff", [HOUR, FIVE_MINUTES], indirect=True, ids=["hour", "minutes"])
def test_the_budget_is_never_exceeded_kills_included(poor: Story, tariff: Tariff) -> None:
    customer = Customer(poor, tariff.minutes, [])
    customer.come()
    with Auditor(poor, TYPE, tariff.price) as auditor:
        in_a_launch = kill_often(poor, customer, tariff.kills)
        poor.start_daemon()
        if tariff is FIVE_MINUTES:
            spent = partial(all_is_spent, poor, customer)
            wait_for(spent, 1500, what="the end of the money", interval=2)
        cancel_what_waits(poor)
        wait_for(lambda: not customer.waiting(), 600, what="the end of all jobs", interval=2)
        poor.wait_returned(600)

    assert len(auditor.looks) > 100
    assert auditor.missed < len(auditor.looks) / 4
    # At every moment: what was spent and set aside, and so what the cloud charged.
    assert all(look.counted <= LIMIT for look in auditor.looks), worst(auditor)
    assert all(look.bill <= look.counted + GRAIN for look in auditor.looks), worst(auditor)
    last = auditor.look()
    assert last.reserved == 0
    assert last.bill - GRAIN <= last.spent <= LIMIT, "settled is never less than the bill"
    left = poor.leftovers()
    assert (left.instances, left.nodes, left.leases) == (0, 0, 0)

    # The controls: the kills met launches, machines worked, the limit was in reach.
    assert in_a_launch >= tariff.launches
    assert any(lease["joined"] for lease in poor.leases())
    assert max(look.counted for look in auditor.looks) + tariff.first > LIMIT
    if tariff is FIVE_MINUTES:
        assert last.spent + tariff.first > LIMIT, "the money was spent, but for less than a machine"
        without_the_budget_more_is_spent(poor, customer, auditor)


def all_is_spent(story: Story, customer: Customer) -> bool:
    """Jobs wait, no machine is left, and the reason is the money."""
    customer.come()
    (pool,) = (story.status() or {"pools": [{"why": None}]})["pools"]
    ended = all(lease["state"] in ENDED for lease in story.leases())
    return ended and bool(pool["why"]) and pool["why"]["code"] == "budget"


def without_the_budget_more_is_spent(story: Story, customer: Customer, auditor: Auditor) -> None:
    """The same lab and the same queue, the limit lifted: nothing else had held it back."""
    story.kill_daemon()
    story.write_site_file(budget="100.00")
    customer.come()
    story.start_daemon()
    wait_for(lambda: auditor.bill() > LIMIT, 600, what="a bill beyond the old limit", interval=1)
    cancel_what_waits(story)
    wait_for(lambda: not customer.waiting(), 600, what="the end of all jobs", interval=2)
    story.wait_returned(600)


def worst(auditor: Auditor) -> str:
    most = max(auditor.looks, key=lambda look: look.counted)
    least = min(auditor.looks, key=lambda look: look.counted - look.bill)
    return f"most counted: {most}; least cover: {least}"
