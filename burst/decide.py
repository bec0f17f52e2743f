"""What to do now: from all that is known to a list of actions and the reasons for them.

Pure: no I/O, no clock, no randomness; the same facts and ids give the same decision. It is made
again from scratch every few seconds, and what it asks for may be carried out in part only.

What is not known is not guessed. When the LRMS, a provider or the network engine does not answer,
the leases keep their state, nothing new is started, and the reasons say why.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from burst import flashing, funds, reconcile, renting, routing
from burst.actions import Decision, Reason
from burst.model import Facts, Policy, Pool
from burst.observe import world
from burst.queue import Queue, sort_jobs
from burst.round import Round


def decide(
    facts: Facts, pools: Sequence[Pool], policy: Policy, new_id: Callable[[], str]
) -> Decision:
    """`new_id` gives 32 hex digits, never the same twice; one is drawn for each lease wanted."""
    with _without_collecting():
        return _decide(facts, pools, policy, new_id)


@contextmanager
def _without_collecting() -> Iterator[None]:
    """A decision makes no reference cycles, and with 100,000 jobs in memory looking for some would
    take as long as the decision."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _decide(
    facts: Facts, pools: Sequence[Pool], policy: Policy, new_id: Callable[[], str]
) -> Decision:
    look = world(facts, policy)
    paper = Round.begin(look, pools, policy, new_id)
    queue = sort_jobs(look, pools)
    paper.routed = queue.routed
    for job_id, no in queue.refused.items():
        paper.answers[job_id] = Reason("job", job_id, no.code, no.message)

    _say_what_is_unknown(paper)
    reconcile.leases(paper, _deserving(queue, pools, policy), _with_work(queue, pools))
    reconcile.hold_launches(paper)
    funds.carry(paper)
    routing.route(paper, queue)
    flashing.ahead(paper)
    renting.rent(paper, queue)
    reconcile.orphans(paper)
    reconcile.strays(paper)
    reconcile.explain(paper)
    return paper.decision({lease.id: lease for lease in facts.leases})


def _deserving(queue: Queue, pools: Sequence[Pool], policy: Policy) -> set[str]:
    """The pools for whose jobs a machine is worth waiting for. Once it is wanted, it is so until
    the wait falls below the start itself, `margin` lower: a forecast at the edge starts and stops
    nothing.
    """
    start = policy.expected_start_cost.total_seconds()
    return {
        pool.name
        for pool in pools
        if pool.spares or any(one.wait > start for one in queue.candidates(pool))
    }


def _with_work(queue: Queue, pools: Sequence[Pool]) -> set[str]:
    """The pools with pending jobs that a borrowed node could start now."""
    return {pool.name for pool in pools if queue.candidates(pool)}


def _say_what_is_unknown(paper: Round) -> None:
    facts = paper.world.facts
    if facts.farm is None:
        text = "the LRMS does not answer: nothing is launched, drained or removed until it does"
        paper.say("lrms", "lrms", "no-answer", text)
    if facts.network_error:
        text = f"the network engine cannot act: {facts.network_error}; nothing is launched"
        paper.say("network", "network", "no-network", text)
    for provider in facts.providers.values():
        if provider.machines is None:
            text = f"does not answer: {provider.error or 'no reason known'}; its leases wait"
            paper.say("provider", provider.name, "no-answer", text)
