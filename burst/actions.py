"""What a decision may ask for, as values: they can be printed, stored, counted and asserted on.

`execute.apply` carries them out in the order given. Every one is safe to repeat: a decision is
made again from the whole truth every few seconds, and says the same until the world agrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from burst.model import Lease, Node


@dataclass(frozen=True, slots=True)
class Want:
    """Store a new lease and reserve its money, in one transaction, before anybody is asked."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Update:
    """Store what is now known of a lease; always before the acts that follow from it."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Launch:
    """Ask the provider for the machine of this stored lease; idempotent by the lease's id."""

    lease_id: str


@dataclass(frozen=True, slots=True)
class Admit:
    """Let a node that has just registered take jobs."""

    node: Node


@dataclass(frozen=True, slots=True)
class Route:
    """Make a pending job eligible for `partition` too; it keeps its id and its other partitions."""

    job_id: str
    partition: str


@dataclass(frozen=True, slots=True)
class Unroute:
    """Take `partition` from a pending job again."""

    job_id: str
    partition: str


@dataclass(frozen=True, slots=True)
class Requeue:
    """Stop a running job and queue it again, under its id: its machine goes away anyhow."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Let the node take no new job; running jobs go on."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Remove:
    """Have the LRMS forget the node."""

    node: str


@dataclass(frozen=True, slots=True)
class Terminate:
    """Return machines to the provider; `lease_id` is None for orphans."""

    provider: str
    machine_ids: tuple[str, ...]
    lease_id: str | None


Action = Want | Update | Launch | Admit | Route | Unroute | Requeue | Drain | Remove | Terminate

Subject = Literal["job", "lease", "pool", "provider", "lrms", "network", "flash"]


class Reason(NamedTuple):
    """Why something is, or is not, done: the answer of `dvn burst explain`.

    `code` is a stable word for programs (`starts-soon`, `budget`, ...), `message` one sentence for
    people with the numbers that decided. A tuple, since each waiting job has one in each round.
    """

    subject: Subject
    id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    actions: Sequence[Action]
    reasons: Sequence[Reason]
