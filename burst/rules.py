"""The rule behind every answer: what it looks at, in words, and what would change its outcome.

An answer's code is a stable word; here stands what it means. The numbers that decided are in the
answer's own sentence; the numbers of the site that the rule uses are named here, so that whoever
asks sees them beside it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """`uses` names numbers of `burst.policy`; `change` is what somebody can do, or wait for.
    `of_pool`: of a job, too, it is the pool's state that decided."""

    text: str
    change: tuple[str, ...]
    uses: tuple[str, ...] = ()
    of_pool: bool = False


_WAIT = ("expected_start_cost", "margin")
_UNPROVEN = ("failures_to_pause", "pause")

RULES: dict[str, Rule] = {
    # jobs
    "held": Rule(
        "a job held by its user or an operator is never moved",
        ("release it in the batch system",),
    ),
    "no-pool": Rule(
        "a job goes where some pool of the site file takes it",
        ("declare a pool whose `from` names the job's partition",),
    ),
    "other-partition": Rule(
        "a pool takes only jobs that wait in the partitions of its `from`",
        ("submit to one of these partitions", "add the job's partition to the pool's `from`"),
    ),
    "other-user": Rule(
        "a pool with `users` or `accounts` takes only theirs",
        ("add the user or the account to the pool",),
    ),
    "local-only": Rule(
        "a job that asks for what borrowed machines do not have stays",
        ("submit without it", "give the machines the feature, and name it in the pool"),
    ),
    "opted-out": Rule(
        "a job that bears a word of the pool's `opt_out` stays",
        ("submit without it",),
    ),
    "not-opted-in": Rule(
        "a pool with `opt_in` takes only jobs that bear one of its words",
        ("submit with the word as a feature or in the comment",),
    ),
    "multi-node": Rule(
        "a job goes only if it gets all its machines, or none",
        ("ask for fewer nodes", "raise what the pool allows at once"),
        of_pool=True,
    ),
    "too-big": Rule(
        "a job goes only if one machine of the pool is large enough",
        ("ask for less", "allow the pool a larger type"),
        of_pool=True,
    ),
    "lrms-reason": Rule(
        "a job that the batch system holds back for other reasons than machines stays",
        ("see the batch system's own reason",),
    ),
    "young": Rule(
        "no machine is rented for a job until it has waited for `min_job_age`",
        ("wait",),
        ("min_job_age",),
    ),
    "starts-soon": Rule(
        "a machine is rented only for a job that would wait here longer than it takes to start one",
        ("a longer queue here", "a smaller `expected_start_cost` or `margin`"),
        _WAIT,
    ),
    "on-the-way": Rule(
        "no machine is rented for work that machines there, or on their way, will take",
        ("nothing: it has its place",),
        _WAIT,
        of_pool=True,
    ),
    "renting": Rule(
        "the machine with the lowest price for the cores that would be used is asked for",
        ("nothing: it is being rented",),
        ("reserve_hours", "return_time"),
        of_pool=True,
    ),
    "routed": Rule(
        "a routed job starts here or on a borrowed node, whichever is free first",
        ("nothing: the batch system decides",),
        of_pool=True,
    ),
    "unrouted": Rule(
        "a job is offered to borrowed nodes only while one can take it and the budget covers it",
        ("a machine of the pool", "a larger budget, or a shorter time limit"),
        of_pool=True,
    ),
    "waits-for-pool": Rule(
        "a job submitted to the borrowed partition alone can start nowhere else",
        ("submit it to a local partition as well",),
    ),
    "not-worth": Rule(
        "what a machine gains must be worth its price",
        ("a smaller `min_value`", "a longer queue", "a lower price"),
        ("min_value",),
        of_pool=True,
    ),
    # pools, and jobs that wait for one
    "hold": Rule(
        "after `dvn burst drain --all` nothing new is rented until an operator allows it again",
        ("`dvn burst resume`",),
        of_pool=True,
    ),
    "cap": Rule(
        "a pool has at most `max_machines`",
        ("raise `max_machines`", "wait until one is returned"),
        of_pool=True,
    ),
    "tenant-cap": Rule(
        "a tenant has at most `tenant_machines` in all its pools",
        ("raise `tenant_machines`", "wait until one is returned"),
        ("tenant_machines",),
        of_pool=True,
    ),
    "no-address": Rule(
        "each machine needs an address of the pool's own",
        ("add addresses to the pool", "wait until one is returned"),
        of_pool=True,
    ),
    "budget": Rule(
        "the money for a machine's first jobs and its way back is reserved before it is asked for; "
        "what is spent and reserved never passes the limit",
        ("raise the budget's `limit`", "shorter time limits", "wait for machines to end"),
        ("reserve_hours", "return_time", "default_job_time"),
        of_pool=True,
    ),
    "soft-budget": Rule(
        "beyond a budget's `soft` limit nothing new is rented for the queue; what runs goes on",
        ("raise `soft`", "ask for a flash, which may use the hard limit"),
        ("reserve_hours", "return_time"),
        of_pool=True,
    ),
    "no-budget": Rule(
        "a tenant without a budget borrows nothing that costs",
        ("give the tenant one under `budgets`, or a quota under `quotas`",),
        of_pool=True,
    ),
    "no-offer": Rule(
        "only the pool's `types` are rented, and only if the provider has them now",
        ("allow more types", "see the provider's error: `dvn gateway status`"),
        of_pool=True,
    ),
    "backing-off": Rule(
        "what could not be had is tried again after a pause that doubles each time",
        ("wait", "allow more types", "`dvn burst resume`"),
        ("backoff_first", "backoff_limit"),
        of_pool=True,
    ),
    "throttled": Rule(
        "a provider that asks for fewer requests is left alone for a while",
        ("wait",),
        ("backoff_first", "backoff_limit"),
        of_pool=True,
    ),
    "pool-paused": Rule(
        "a pool whose machines fail to join again and again rents none for a while",
        ("mend the cause, then `dvn burst resume`", "wait for the pause to end"),
        _UNPROVEN,
        of_pool=True,
    ),
    "proving": Rule(
        "until the first machine of a pool has joined, only a few are tried at once",
        ("wait for one to join",),
        _UNPROVEN,
        of_pool=True,
    ),
    "no-network": Rule(
        "no tunnel, no launch: what could not be reached is not rented",
        ("see `dvn gateway status`: the network agent must answer",),
    ),
    "no-provider": Rule(
        "nothing is rented from a provider that does not answer",
        ("see `dvn gateway status`",),
        of_pool=True,
    ),
    "no-answer": Rule(
        "while somebody does not answer, what depends on it stays as it is",
        ("see `dvn gateway status`",),
    ),
    "ok": Rule(
        "a pool rents when jobs would wait too long and nothing bars it",
        ("a job that would wait longer than a machine takes to start",),
        _WAIT,
    ),
    # leases
    "wanted": Rule("a lease is stored, then the provider is asked", ("wait",)),
    "requested": Rule(
        "a machine must run, with an address, within `boot_timeout`",
        ("wait",),
        ("request_timeout", "boot_timeout"),
    ),
    "booting": Rule(
        "a machine must enrol and be heard through its tunnel in time",
        ("wait", "let protocol 47 through the security group"),
        ("boot_timeout", "tunnel_timeout"),
    ),
    "tunnelled": Rule(
        "a machine's node must appear in the batch system within `join_timeout`",
        ("wait", "see the machine's console"),
        ("join_timeout",),
    ),
    "joined": Rule(
        "a node is kept while it has work, and then for as long as a new start would cost",
        ("no work for `idle_release`", "`dvn burst drain`"),
        ("idle_release", "lost_timeout"),
    ),
    "draining": Rule(
        "a node leaves when its last job has ended; jobs are never killed",
        ("wait for its jobs", "end them in the batch system"),
        ("drain_timeout",),
    ),
    "leaving": Rule("a machine goes back only when the batch system forgot its node", ("wait",)),
    "terminating": Rule("a lease ends when the provider says that the machine is gone", ("wait",)),
    "gone": Rule("an ended lease has paid its bill and is kept as history", ()),
    "failed": Rule(
        "a machine that failed is returned, and its way is tried again later and less often",
        ("mend the cause, then `dvn burst resume`",),
        ("backoff_first", *_UNPROVEN),
    ),
    "launch-held": Rule(
        "a launch waits until it can lead to something",
        ("see the reason",),
        ("backoff_first", "backoff_limit"),
    ),
    "over-budget": Rule(
        "a reservation is kept ahead of its cost; what cannot be covered is let go",
        ("raise the budget's `limit`",),
        ("return_time",),
    ),
    "orphans": Rule(
        "a machine with our tag that no lease knows is returned when it is old enough",
        (),
        ("orphan_age",),
    ),
    # flashes
    "flash-served": Rule(
        "a flash's machines are rented whatever the queue says, and kept until its end",
        ("`dvn burst flash --cancel`",),
    ),
    "flash-max-cost": Rule(
        "what all its machines will have cost at its end never passes `--max-cost`",
        ("a larger `--max-cost`", "a shorter time"),
    ),
    "flash-budget": Rule(
        "a flash's whole time is reserved before the launch, under the hard limit",
        ("raise the budget's `limit`", "ask for fewer cores or less time"),
        ("return_time",),
    ),
    "flash-cap": Rule(
        "a flash does not pass a pool's `max_machines` and addresses",
        ("raise `max_machines`, add addresses",),
    ),
    "flash-no-offer": Rule(
        "a flash is served from the types of its tenant's pools",
        ("allow more types", "another provider"),
    ),
    "flash-barred": Rule(
        "what bars a pool bars a flash as well: no network, no provider, a pause",
        ("see the reason",),
        _UNPROVEN,
    ),
}

UNKNOWN = Rule("the answer says it itself", ())


def rule_of(code: str) -> Rule:
    return RULES.get(code, UNKNOWN)
