"""What the API answers: one model for each thing a client may show. Instants are UTC, ISO 8601."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class Why(Model):
    """An answer to "why?": a stable word, and a sentence with the numbers that decided."""

    code: str
    message: str
    since: datetime


class Link(Model):
    up: bool
    since: datetime
    rtt_ms: float | None
    state: str
    loss: float
    rx_packets: int
    tx_packets: int
    detail: str


class Failed(Model):
    kind: str
    message: str


class Lease(Model):
    id: str
    pool: str
    tenant: str
    network: str
    provider: str
    type: str
    zone: str
    state: str
    node: str
    machine: str
    address: str
    underlay: str
    cores: int
    memory_mb: int
    price_per_hour: Decimal
    cost: Decimal  # until now; what was settled, of an ended one
    reserved: Decimal
    wanted: datetime
    requested: datetime | None
    booted: datetime | None
    tunnelled: datetime | None
    enrolled: datetime | None
    joined: datetime | None
    draining: datetime | None
    left: datetime | None
    terminating: datetime | None
    ended: datetime | None
    launch_attempts: int
    failure: Failed | None
    stop_reason: str
    drain_requested: str
    link: Link | None
    why: Why | None


class Job(Model):
    id: str
    name: str
    user: str
    state: str
    partitions: tuple[str, ...]
    cores: int
    submitted: datetime
    started: datetime | None
    ended: datetime | None
    nodes: tuple[str, ...]
    where: str  # local | remote | both; empty: nowhere yet
    routed: bool  # it may start on borrowed nodes
    lrms_reason: str
    why: Why | None


class Pool(Model):
    name: str
    tenant: str
    network: str
    provider: str
    partition: str
    types: tuple[str, ...]
    max_machines: int
    machines: int  # living leases
    states: dict[str, int]
    why: Why | None


class Budget(Model):
    tenant: str
    period: str
    limit: Decimal
    spent: Decimal
    reserved: Decimal
    free: Decimal


class Event(Model):
    id: int
    at: datetime
    lease: str
    kind: str
    state: str
    message: str


class Service(Model):
    """Somebody the daemon depends on: the LRMS, a provider, the network agent."""

    name: str
    ok: bool
    since: datetime | None
    error: str
    failures: int
    retry_at: datetime | None


class LoopState(Model):
    name: str
    rounds: int
    last: datetime | None
    seconds: float
    bugs: int
    last_bug: str


class Enrolment(Model):
    url: str
    refusals: int
    error: str


class Repair(Model):
    """Drift of the kernel that the agent found."""

    time: datetime
    site: str
    action: str  # repaired | held | failed
    who: str  # as far as it is known
    steps: tuple[str, ...]
    message: str
    seconds: float | None = None  # from the event to the repair's end; None: nothing announced it


class Drift(Model):
    watching: bool  # the kernel's events are heard; else there is only the slow look
    error: str
    repairs: tuple[Repair, ...]  # the newest last
    foreign: tuple[str, ...]  # other people's rules that would drop our packets
    held: dict[str, str]  # by site: a fight with somebody who undoes every repair


class Status(Model):
    version: str
    site: str
    pid: int
    started: datetime
    now: datetime
    hold: str  # why nothing new is rented; empty: it may be
    services: tuple[Service, ...]
    loops: tuple[LoopState, ...]
    enrolment: Enrolment | None
    leases: dict[str, int]  # living ones, by state
    failed_actions: dict[str, str]  # of the last round
    pools: tuple[Pool, ...]
    budgets: tuple[Budget, ...]
    drift: Drift | None = None  # None: the agent does not answer


class Host(Model):
    """A hypervisor of the site."""

    name: str
    seen: datetime | None  # when it asked last, since the daemon's start
    current: bool  # whether it has its part of the site as it is now
    machines: int  # NICs of running machines that ask for a network
    error: str  # why it could not make its part so
    problems: tuple[str, ...]  # NICs that are in no network, and what was left out


class Invitation(Model):
    host: str
    text: str  # the agent's file


class Explanation(Model):
    kind: str
    id: str
    why: Why | None
    text: str  # the whole answer in one paragraph
    job: Job | None = None
    lease: Lease | None = None
    pool: Pool | None = None
    events: tuple[Event, ...] = ()


class Drained(Model):
    leases: tuple[str, ...]
    hold: str


class Mixed(Model):
    """Whether a host runs virtual machines beside its batch jobs."""

    provider: str
    on: bool
    leases: tuple[str, ...]  # of machines that are on it now


class Step(Model):
    action: str
    about: str


class PlanNow(Model):
    ready: bool  # False: no round has ended yet
    steps: tuple[Step, ...]


class Error(Model):
    error: str
