"""The values the burst engine thinks in: all frozen, none of them does anything.

Units are fixed by the field's name or said here: memory in MiB, money as `Decimal` in the site's
currency, durations as `timedelta`, instants as timezone-aware UTC `datetime`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum


class JobState(StrEnum):
    """What the LRMS says of a job, reduced to what a decision needs."""

    PENDING = "pending"
    HELD = "held"  # pending, but by a user's or an operator's will: never routed
    RUNNING = "running"
    COMPLETING = "completing"
    DONE = "done"  # ended with success
    FAILED = "failed"  # ended any other way


@dataclass(frozen=True, slots=True)
class Job:
    """One job (or one array task) of the LRMS; `id` is what the submit command printed."""

    id: str
    user: str
    account: str
    state: JobState
    partitions: tuple[str, ...]  # the partitions or queues where it may start, in order
    cores: int
    nodes: int
    memory_mb: int
    time_limit: timedelta | None
    submitted: datetime
    started: datetime | None = None
    ended: datetime | None = None
    node_names: tuple[str, ...] = ()
    reason: str = ""  # the LRMS's own word for why it waits
    features: tuple[str, ...] = ()
    estimated_start: datetime | None = None
    name: str = ""
    comment: str = ""
    home: str = ""  # the queue it was moved from and `unroute` returns it to (PBS, Torque, LSF)
    needs: tuple[str, ...] = ()  # generic resources and licences it asks for: `gpu`, `matlab`

    @property
    def cores_a_node(self) -> int:
        """What one of its nodes must have; `cores` and `memory_mb` are for all of them."""
        return -(-self.cores // max(self.nodes, 1))

    @property
    def memory_a_node(self) -> int:
        return -(-self.memory_mb // max(self.nodes, 1))


class NodeState(StrEnum):
    IDLE = "idle"
    MIXED = "mixed"
    ALLOCATED = "allocated"
    DRAINING = "draining"  # told to take no more work, still has some
    DRAINED = "drained"  # told to take no more work, has none
    DOWN = "down"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Node:
    """One execution node of the LRMS."""

    name: str
    state: NodeState
    cores: int
    allocated_cores: int
    memory_mb: int
    address: str = ""
    features: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Farm:
    """One snapshot of the LRMS. `taken` is when the snapshot *began*."""

    taken: datetime
    jobs: tuple[Job, ...]
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """What a provider would lend now."""

    provider: str
    type: str
    zone: str
    cores: int
    memory_mb: int
    price_per_hour: Decimal
    available: int | None = None  # how many more; None: not known
    spot: bool = False
    unit: str = ""  # of the price: the site's currency if empty, else `core-hours` of a quota


class MachineState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"
    TERMINATED = "terminated"


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of ours as the provider lists it, found by tag."""

    id: str
    provider: str
    lease_id: str  # from our tag; empty when the tag is missing
    state: MachineState
    type: str
    zone: str
    private_address: str = ""
    public_address: str = ""  # what the gateway's tunnel must name as remote
    launched: datetime | None = None
    ended: datetime | None = None  # when it stopped costing money, where the provider says so
    batch: str = ""  # the batch it was launched in, and its place there; see burst/batches.py
    index: int = 0


class LeaseState(StrEnum):
    """The life of a borrowed machine; the transitions are the table in `leases.py`."""

    WANTED = "wanted"  # intention stored and money reserved; the provider may not know yet
    REQUESTED = "requested"  # the provider accepted the launch
    BOOTING = "booting"  # the machine runs and has an address; the tunnel is wanted
    TUNNELLED = "tunnelled"  # packets pass through the tunnel
    JOINED = "joined"  # the LRMS knows the node and may start jobs on it
    DRAINING = "draining"  # takes no more jobs
    LEAVING = "leaving"  # empty; being removed from the LRMS
    TERMINATING = "terminating"  # the machine is being returned
    GONE = "gone"  # final, as planned
    FAILED = "failed"  # final, with a reason; the machine was returned


class FailureClass(StrEnum):
    THROTTLED = "throttled"
    NO_CAPACITY = "no_capacity"
    QUOTA = "quota"
    CONFIG = "config"  # the provider refused the request itself: wrong image, subnet, credentials
    BOOTSTRAP = "bootstrap"  # the machine never ran, or never enrolled, though the tunnel is up
    TUNNEL = "tunnel"  # no packet came through the tunnel in time
    JOIN = "join"  # enrolled, but never appeared in the LRMS
    LOST = "lost"  # was there and is no more
    INTERRUPTED = "interrupted"  # taken back by the provider


@dataclass(frozen=True, slots=True)
class Failure:
    kind: FailureClass
    message: str  # one sentence for a person: what was seen, and what to look at


@dataclass(frozen=True, slots=True)
class Lease:
    """One borrowed machine from the first intention to the last trace.

    `id` is 32 hex digits, used as the EC2 ClientToken (at most 64 ASCII characters), as the tag by
    which the machine is recognised, and as the key of everything kept about it.
    """

    id: str
    pool: str
    tenant: str
    network: str  # the tenant's network the machine joins
    provider: str
    type: str
    zone: str
    cores: int
    memory_mb: int
    price_per_hour: Decimal
    state: LeaseState
    node: str  # the node name in the LRMS
    address: str  # inside the tenant network
    gre_key: int  # RFC 2890, 1..2**32-1, unique among living leases
    wanted: datetime
    requested: datetime | None = None
    booted: datetime | None = None
    tunnelled: datetime | None = None
    enrolled: datetime | None = None
    joined: datetime | None = None
    draining: datetime | None = None
    left: datetime | None = None
    terminating: datetime | None = None
    ended: datetime | None = None
    machine: str = ""  # the provider's id
    underlay: str = ""  # the machine's address as the gateway sees it
    failure: Failure | None = None
    launch_attempts: int = 0
    retry_after: datetime | None = None  # no launch attempt before this
    idle_since: datetime | None = None
    reserved: Decimal = Decimal(0)
    cost: Decimal = Decimal(0)  # settled when the machine is gone; an estimate before
    drain_requested: str = ""  # an operator's reason; empty: nobody asked
    stop_reason: str = ""  # why the engine lets it go, when that is no failure
    attempted: datetime | None = None  # when the provider was last asked to launch
    maybe_launched: bool = False  # it was asked, and has not said a clear no: a machine may exist
    setback: Failure | None = None  # why the last launch did not happen yet; it will be repeated
    failed: datetime | None = None  # when `failure` was concluded
    unwell_since: datetime | None = None  # its machine or its node is not where it should be
    used: datetime | None = None  # when a job was last seen on its node
    machine_ended: datetime | None = None  # when the provider stopped charging, where it says so
    spot: bool = False  # it may be taken back; it never costs more than `price_per_hour`
    unit: str = ""  # of all its amounts; see `Offer.unit`
    flash: str = ""  # the flash request it was rented for
    taken_back: datetime | None = None  # when the provider will end its machine, as announced
    batch: str = ""  # it is asked for with others, by one call; see burst/batches.py
    batch_index: int = 0
    batch_size: int = 0

    @property
    def account(self) -> str:
        """Whose budget pays for it; see `account_of`."""
        return account_of(self.tenant, self.provider, self.unit)

    @property
    def living(self) -> bool:
        return self.state not in (LeaseState.GONE, LeaseState.FAILED)


@dataclass(frozen=True, slots=True)
class LinkHealth:
    """What the network engine says of one lease's tunnel."""

    up: bool
    since: datetime
    rx_packets: int = 0
    tx_packets: int = 0
    rtt_ms: float | None = None
    detail: str = ""
    state: str = ""  # up, degraded or down
    loss: float = 0.0  # share of the last probes that were lost


def account_of(tenant: str, provider: str, unit: str) -> str:
    """The name of a purse: a tenant's money is one, its quota at each partner is another."""
    return f"{tenant}@{provider}" if unit else tenant


@dataclass(frozen=True, slots=True)
class Notice:
    """What a machine was told by its provider, and passed on.

    `ends` is when the provider will end it; None: it only may do so soon (EC2's rebalance
    recommendation).
    """

    at: datetime
    ends: datetime | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """An account's money, or core-hours, for one period; of several periods the tightest.

    `reserved` is for leases not yet settled. Beyond `soft` nothing new is rented but for a flash.
    """

    tenant: str  # the account: see `account_of`
    limit: Decimal
    spent: Decimal
    reserved: Decimal
    soft: Decimal | None = None
    period: str = ""
    unit: str = ""

    @property
    def free(self) -> Decimal:
        return self.limit - self.spent - self.reserved


@dataclass(frozen=True, slots=True)
class Flash:
    """An operator's standing request: so many cores now, for so long, for at most so much.

    The machines are rented whatever the queue says, and kept until `ends`; from then on they are
    ordinary ones, kept while there is work and let go when idle.
    """

    id: str
    tenant: str
    cores: int
    asked: datetime
    ends: datetime
    provider: str = ""  # empty: any
    max_cost: Decimal | None = None  # of all its machines from launch to `ends`
    cancelled: datetime | None = None

    def active(self, now: datetime) -> bool:
        return self.cancelled is None and now < self.ends


@dataclass(frozen=True, slots=True)
class Pool:
    """One tenant's way to one provider: which jobs, which machines, how many."""

    name: str
    tenant: str
    network: str
    provider: str
    partition: str  # the LRMS partition or queue of the borrowed nodes
    from_partitions: tuple[str, ...]  # jobs waiting here may be routed
    users: tuple[str, ...] = ()  # whose jobs; both empty: everybody's
    accounts: tuple[str, ...] = ()
    types: tuple[str, ...] = ()  # instance types allowed, cheapest first is not assumed
    max_machines: int = 10
    addresses: tuple[str, ...] = ()  # inner addresses that leases of this pool may take
    features: tuple[str, ...] = ()  # what a job may ask of a node and find on a borrowed one
    unit: str = ""  # of what its provider charges; see `Offer.unit`

    @property
    def account(self) -> str:
        """Whose budget pays for its machines; see `account_of`."""
        return account_of(self.tenant, self.provider, self.unit)

    not_users: tuple[str, ...] = ()  # whose jobs never go, whatever else says they may
    not_accounts: tuple[str, ...] = ()
    opt_in: tuple[str, ...] = ()  # if given, only jobs go that bear one of these words ...
    opt_out: tuple[
        str, ...
    ] = ()  # ... and none that bears one of these, as feature or in a comment
    resources: tuple[str, ...] = ()  # what its machines have of `Job.needs`; all else is local-only
    max_nodes: int = 1  # jobs that want up to so many machines at once may go, all or nothing
    spares: int = 0  # machines kept ready beyond what the queue asks for
    rank: int = 0  # the site's own order: pools of a lower rank are used up first, at any price
    data_cost: Decimal = Decimal(0)  # what moving data adds to an hour of a machine
    hold: str = ""  # an operator's word: why it rents nothing new now


@dataclass(frozen=True, slots=True)
class Policy:
    """The numbers a decision uses; the defaults are for real clouds, the lab shortens them."""

    min_job_age: timedelta = timedelta(seconds=10)
    """No machine is rented for a job that has waited for less: it shall have been seen twice, not
    only in the moment before it starts here. On a borrowed machine that is there it may start."""
    expected_start_cost: timedelta = timedelta(minutes=4)
    """From asking for a machine to its first job: boot, tunnel and join."""
    margin: timedelta = timedelta(minutes=1)
    """How much longer than that a job must be expected to wait before a machine is rented."""
    default_job_time: timedelta = timedelta(hours=1)
    """Taken for a job that has no time limit."""
    idle_release: timedelta = timedelta(minutes=5)
    """A machine idle for so long is returned; three times as long while routed jobs wait."""
    request_timeout: timedelta = timedelta(minutes=5)
    """A machine just asked for may be missing from the provider's list for so long."""
    boot_timeout: timedelta = timedelta(minutes=10)
    """From the accepted launch to running, and from running to the first word of the machine."""
    tunnel_timeout: timedelta = timedelta(minutes=5)
    """From enrolment to the first packet through the tunnel."""
    join_timeout: timedelta = timedelta(minutes=5)
    """From tunnel and enrolment to a usable node in the batch system."""
    lost_timeout: timedelta = timedelta(minutes=3)
    """A joined machine whose node, machine or tunnel is gone for so long is given up."""
    silence_timeout: timedelta = timedelta(minutes=5)
    """A machine whose heartbeat was not heard for so long is drained; less than
    `gateway.enrol.watchdog`, after which it powers itself off, with the jobs on it."""
    requeue_before: timedelta = timedelta(seconds=60)
    """So long before the provider takes a machine back its jobs are queued again."""
    drain_timeout: timedelta = timedelta(hours=24)
    """A drain that lasts longer is called late in `dvn burst explain`; jobs are never killed."""
    backoff_first: timedelta = timedelta(seconds=10)
    """The first pause after a launch that did not succeed; it doubles each time."""
    backoff_limit: timedelta = timedelta(minutes=10)
    """The longest of these pauses."""
    failures_to_pause: int = 3
    """Machines in a row that did not become nodes, after which a pool pauses; also how many are
    tried at once until the first has joined."""
    pause: timedelta = timedelta(minutes=30)
    """How long such a pool rents nothing."""
    reserve_hours: Decimal = Decimal(1)
    """Hours of a machine's price that are reserved at a time, at least."""
    orphan_age: timedelta = timedelta(minutes=5)
    """A machine with our tag that no lease knows is returned when it is older."""
    return_time: timedelta = timedelta(minutes=3)
    """From a last job's end to the machine's, for the reservation of money."""
    trust_estimates: bool = False
    """Whether the batch system's own estimate of a start counts before our forecast."""
    min_value: Decimal = Decimal(0)
    """What must be gained for each unit of money: how many times its own length a job waits less,
    summed over the jobs a machine is rented for. 0: whoever would wait too long gets a machine."""
    tenant_machines: int = 1_000_000
    """The most machines that one tenant may have, all its pools together."""
    spot_interruptions: Decimal = Decimal("0.05")
    """How often an hour a spot machine is taken back, for what its price is really worth."""


@dataclass(frozen=True, slots=True)
class ProviderFacts:
    """What is known of a provider at this moment; `machines` is None when it did not answer."""

    name: str
    offers: tuple[Offer, ...] = ()
    machines: tuple[Machine, ...] | None = None
    error: str = ""
    billing: timedelta = timedelta(seconds=1)  # what is charged for is rounded up to so much


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything a decision may look at. `farm` is None when the LRMS did not answer."""

    now: datetime
    farm: Farm | None
    leases: tuple[Lease, ...]  # the living ones, and those ended within the last `Policy.pause`
    providers: Mapping[str, ProviderFacts]
    links: Mapping[str, LinkHealth] = field(default_factory=dict)  # by lease id
    enrolled: Mapping[str, datetime] = field(default_factory=dict)  # by lease id
    join_reports: Mapping[str, str] = field(default_factory=dict)  # by lease id: why joining failed
    heard: Mapping[str, datetime] = field(default_factory=dict)  # by lease id: its last word
    notices: Mapping[str, Notice] = field(default_factory=dict)  # by lease id
    budgets: Mapping[str, Budget] = field(default_factory=dict)  # by account, see `account_of`
    flashes: tuple[Flash, ...] = ()  # those asked for and not yet over
    flash_spent: Mapping[str, Decimal] = field(default_factory=dict)  # settled, by flash id
    network_error: str = ""  # the network engine cannot act now: then nothing is launched
    # When the kernel was last made as the leases want it; None where nobody makes tunnels.
    network_applied: datetime | None = None
    # Since when all of this has been watched without a gap: the daemon's start, or the end of the
    # last outage of LRMS, provider or network. Nobody is declared dead for our own absence.
    watching_since: datetime | None = None
    # An operator has mended what was broken: no failure up to this instant pauses or delays.
    forgiven: datetime | None = None
    # The share of their time limits that a user's jobs take; 1 for those not in it.
    habits: Mapping[str, float] = field(default_factory=dict)
