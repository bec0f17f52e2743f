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
    tenant: str  # or tenant@provider, of a quota
    period: str
    unit: str = ""
    limit: Decimal
    soft: Decimal | None = None
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
    settled: bool = True  # what was announced has been looked into
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


class Fact(Model):
    """One number or word that an answer looked at."""

    name: str
    value: str


class Explanation(Model):
    kind: str
    id: str
    why: Why | None
    text: str  # the whole answer in one paragraph
    rule: str = ""  # that was applied
    inputs: tuple[Fact, ...] = ()  # what it looked at
    change: tuple[str, ...] = ()  # what would change it
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
    text: str = ""  # for people


class PlanNow(Model):
    ready: bool  # False: no round has ended yet
    steps: tuple[Step, ...]
    machines: int = 0  # that would be rented
    reserve: dict[str, Decimal] = {}  # money set aside for them, by unit
    pools: dict[str, str] = {}  # what each pool says


class Cost(Model):
    key: str
    unit: str
    amount: Decimal
    machine_hours: Decimal
    core_hours: Decimal  # held by jobs
    idle_core_hours: Decimal  # paid for, held by none
    leases: int
    jobs: int


class CostReport(Model):
    by: str
    since: datetime | None
    before: datetime | None
    costs: tuple[Cost, ...]
    total: dict[str, Decimal]  # by unit


class UsageRow(Model):
    """One job on one machine, or (`job` empty) what nobody held of it."""

    site: str
    tenant: str
    pool: str
    provider: str
    type: str
    zone: str
    lease: str
    node: str
    job: str
    name: str
    user: str
    account: str
    cores: int
    started: datetime
    ended: datetime
    wall_seconds: int
    cost: Decimal
    unit: str
    outcome: str = ""


class UsageText(Model):
    """Usage records in somebody else's format; several texts are several messages."""

    format: str
    records: int
    texts: tuple[str, ...]


class Past(Model):
    """One borrowed machine, ended or not, from the books."""

    lease: str
    tenant: str
    pool: str
    provider: str
    type: str
    node: str
    started: datetime
    ended: datetime | None
    amount: Decimal
    unit: str
    outcome: str  # the class of its failure; empty: as planned, or it lives
    jobs: int


class Part(Model):
    """Machines of one type in one pool, as quoted for a flash."""

    pool: str
    provider: str
    type: str
    count: int
    cores: int
    price_per_hour: Decimal
    unit: str
    spot: bool


class Quote(Model):
    tenant: str
    cores: int  # asked for
    got: int  # that could be had now
    ends: datetime
    parts: tuple[Part, ...]
    cost: dict[str, Decimal]  # until the end, by unit
    reserved: dict[str, Decimal]  # what is set aside, the way back included
    short: tuple[str, ...]  # why there are fewer cores than wanted
    slow: tuple[str, ...]  # what delays them


class Flash(Model):
    id: str
    tenant: str
    provider: str
    cores: int
    asked: datetime
    ends: datetime
    max_cost: Decimal | None
    state: str  # active | ended | cancelled
    joined: int  # cores that take jobs now
    coming: int  # cores on their way
    machines: dict[str, int]  # by state
    cost: Decimal  # of its machines until now
    committed: Decimal  # at its end
    why: Why | None


class FlashAsked(Model):
    flash: Flash | None  # None: only a quote was wanted
    quote: Quote


class Error(Model):
    error: str
