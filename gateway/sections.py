"""The `gateway:` and `burst:` sections of a site file as frozen models.

What one value can say is checked here; what needs two of them in `sitefile.py`.
"""

from __future__ import annotations

import re
from dataclasses import fields
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, create_model

from burst.model import Policy, Pool
from burst.money.limits import Limit, since
from dvn.forms import Model, fault
from dvn.values import AddressField, Name, in_range
from gateway.batch import LrmsConfig, Names, Port
from gateway.hypervisors import Count, DirectConfig, Libvirt, some
from gateway.units import AbsolutePath, Addresses, Duration, Money, SocketPath

DEFAULT_SOCKET = "/run/dvn/gateway.sock"


def _state(value: Any) -> str:
    text = value if isinstance(value, str) else ""
    scheme, colon, rest = text.partition("://")
    if not colon or scheme.split("+")[0] not in ("sqlite", "postgresql"):
        raise fault(
            f"state {value!r} is no database we know",
            "write sqlite:////var/lib/dvn/gateway.sqlite or postgresql+psycopg://user@host/dvn",
        )
    if scheme == "sqlite" and not rest.startswith("//"):
        raise fault(
            f"state {text!r} has a relative path", "write four slashes: sqlite:////var/lib/dvn/..."
        )
    return text


def _mode(value: Any) -> int:
    text = f"{value:04d}" if isinstance(value, int) else str(value)
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise fault(f"{value!r} is not a file mode", 'write it like "0660"')
    return mode


def _currency(value: str) -> str:
    if not re.fullmatch("[A-Z]{3}", value):
        raise fault(f"{value!r} is not a currency", "write its ISO 4217 code, such as EUR")
    return value


Currency = Annotated[str, AfterValidator(_currency)]


SomeNames = Annotated[Names, AfterValidator(some)]


class Enrol(Model):
    """Where borrowed machines fetch what they need to join. The address of the underlay unless
    given; behind NAT, machines are told the underlay's public one."""

    address: AddressField | None = None
    """On which to listen; the underlay's unless given."""
    port: Port = 8443
    """TCP port."""
    token_lifetime: Duration = timedelta(minutes=30)
    """How long a new machine's token is good for."""
    heartbeat: Duration = timedelta(seconds=30)
    """How often a machine asks whether it is still wanted."""
    watchdog: Duration = timedelta(minutes=15)
    """A machine that hears nothing for so long powers itself off, its jobs with it."""


class HostsListen(Model):
    """Where the site's other hosts come for their part of the site. They are told the underlay's
    public address where the gateway is behind NAT."""

    address: AddressField | None = None
    """On which to listen; the underlay's unless given."""
    port: Port = 8444
    """TCP port."""


class GatewayConfig(Model):
    """The daemon. The whole section may be left out."""

    state: Annotated[str, BeforeValidator(_state)] = "sqlite:////var/lib/dvn/gateway.sqlite"
    """The database, as a URL: leases, money, reasons, history."""
    directory: AbsolutePath | None = None
    """Of keys and secrets; beside an SQLite database unless given, else /var/lib/dvn."""
    socket: SocketPath = DEFAULT_SOCKET
    """Where `dvn burst` and `dvn gateway status` ask."""
    socket_mode: Annotated[int, BeforeValidator(_mode)] = 0o660
    """Who may ask, as a file mode."""
    socket_group: str | None = None
    """The group of the socket; that of `user` unless given."""
    agent_socket: SocketPath = "/run/dvn/agent.sock"
    """Between the daemon and its network agent."""
    user: str | None = None
    """Whom the daemon becomes once the agent runs; for Slurm its `SlurmUser`. Stays what it is
    unless given."""
    interval: Duration = timedelta(seconds=5)
    """Between two looks at queue, machines and leases."""
    reconcile: Duration = timedelta(seconds=60)
    """How often an unchanged network is looked over for drift."""
    answer_timeout: Duration = timedelta(seconds=20)
    """How long a round waits for the batch system and the providers."""
    keep: Duration = timedelta(days=90)
    """The history of ended leases."""
    enrol: Enrol = Enrol()
    """Where and how borrowed machines come for what they need."""
    hosts: HostsListen = HostsListen()
    """Where the agents of `hosts` ask."""

    @property
    def state_directory(self) -> Path:
        if self.directory is not None:
            return Path(self.directory)
        if self.state.startswith("sqlite:///"):
            return Path(self.state.removeprefix("sqlite:///").partition("?")[0]).parent
        return Path("/var/lib/dvn")


class Ec2(Model):
    """Amazon EC2, or what speaks its API."""

    type: Literal["ec2"]
    """Which kind of provider."""
    region: str
    """AWS region, such as `eu-south-1`."""
    endpoint: str | None = None
    """URL of another service that speaks EC2's API; AWS unless given."""
    image: str
    """The machine image (AMI) of borrowed machines."""
    subnet: str
    """The subnet they are started in."""
    security_groups: SomeNames
    """Their security groups."""
    credentials: AbsolutePath | None = None
    """An AWS credentials file; unless given, boto3 looks in its usual places."""
    profile: str = "default"
    """The section of the credentials file."""
    prices: dict[str, Money] = Field(default_factory=dict)
    """For an hour of each type on demand, in the site's currency; those not given are asked of
    AWS's price list."""
    currency: Currency = "USD"
    """Of its price list and of its spot prices."""
    spot: Literal["no", "also", "only"] = "no"
    """Whether spot machines are rented: they are cheaper, and may be taken back."""
    public_address: bool = True
    """Whether EC2 gives each machine a public address."""
    key_name: str = ""
    """An EC2 key pair for logging in by ssh; none unless given."""


ProviderConfig = Annotated[Ec2 | Libvirt, Field(discriminator="type")]


class PoolConfig(Model):
    """One tenant's way to one provider: which jobs, which machines, how many."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=False)

    tenant: Name
    """Whose jobs, and whose money."""
    network: Name
    """The tenant's network that machines join."""
    provider: Name
    """Where machines come from: a name under `providers`."""
    partition: str
    """The batch system's partition of borrowed machines; each tenant needs its own."""
    from_partitions: Annotated[SomeNames, Field(alias="from")]
    """The partitions whose waiting jobs may be moved."""
    users: Names = ()
    """Whose jobs; everybody's if `users` and `accounts` are both left out."""
    accounts: Names = ()
    """Jobs of which accounts, besides those of `users`."""
    types: SomeNames
    """The machine types allowed; the cheapest that fits is taken."""
    max_machines: Count = 10
    """How many may be borrowed at once."""
    addresses: Addresses
    """Addresses of the network that machines may take."""
    features: Names = ()
    """Features a job may ask of a node and find on these machines."""
    not_users: Names = ()
    """Whose jobs never go."""
    not_accounts: Names = ()
    """Jobs of which accounts never go."""
    opt_in: Names = ()
    """If given, only jobs go that bear one of these words as a feature or in their comment."""
    opt_out: Names = ()
    """Jobs that bear one of these words stay."""
    resources: Names = ()
    """Generic resources and licences that these machines have: a job that needs others stays."""
    max_nodes: Count = 1
    """Jobs for up to so many machines at once may go; they get all of them or none."""
    spares: Annotated[int, AfterValidator(in_range("number", 0, 10_000))] = 0
    """Machines kept ready beyond what the queue asks for."""
    rank: Annotated[int, AfterValidator(in_range("number", 0, 1000))] = 0
    """Of a tenant's pools those of a lower rank come first, at any price."""
    data_cost: Money = Decimal(0)
    """What moving data adds to an hour of a machine, when pools are compared."""
    transport: Literal["plain"] = "plain"
    """How tunnel packets travel: `plain` is not encrypted."""

    def pool(self, name: str) -> Pool:
        return Pool(
            name=name,
            **{
                field.name: getattr(self, field.name)
                for field in fields(Pool)
                if field.name not in ("name", "unit", "hold")  # the provider's, an operator's
            },
        )


class PeriodConfig(Model):
    """A limit for one more period."""

    limit: Money
    """The most that may be spent and reserved in one period."""
    soft: Money | None = None
    """From here on nothing new is rented but for a flash request."""
    period: Literal["day", "week", "month", "year", "ever"] = "month"
    """By the calendar, in UTC; a week begins on Monday."""

    def as_limit(self) -> Limit:
        return Limit(self.limit, self.period, self.soft)


class BudgetConfig(Model):
    """A tenant's money, in the site's currency, for each period (UTC)."""

    limit: Money
    """The most that may be spent and reserved in one period."""
    soft: Money | None = None
    """From here on nothing new is rented but for a flash request."""
    period: Literal["day", "week", "month", "year", "ever"] = "month"
    """By the calendar, in UTC; a week begins on Monday."""
    also: tuple[PeriodConfig, ...] = ()
    """More limits that hold at the same time: so much a month, and of it so much a day."""

    def limits(self) -> tuple[Limit, ...]:
        own = Limit(self.limit, self.period, self.soft)
        return (own, *(one.as_limit() for one in self.also))

    def since(self, now: datetime) -> datetime:
        """The start of the period that `now` is in."""
        return since(self.period, now)


class QuotaConfig(Model):
    """What a tenant may take of one provider, in core-hours instead of money."""

    core_hours: Money
    """The most that may be used and reserved in one period: cores of machines, times hours."""
    soft: Money | None = None
    """From here on nothing new is rented but for a flash request."""
    period: Literal["day", "week", "month", "year", "ever"] = "month"
    """By the calendar, in UTC; a week begins on Monday."""

    def limits(self) -> tuple[Limit, ...]:
        return (Limit(self.core_hours, self.period, self.soft),)


def _policy_field(kind: Any) -> Any:
    if kind is timedelta:
        return Duration
    if kind is Decimal:
        return Money
    if kind is bool:
        return bool
    return Annotated[int, AfterValidator(in_range("number", 1, 1_000_000))]


# Every number of the policy may be set, by its own name: one added there needs no line here.
_POLICY_FIELDS: dict[str, Any] = {
    name: (_policy_field(kind), getattr(Policy(), name))
    for name, kind in get_type_hints(Policy).items()
}
PolicyConfig: type[Model] = create_model("PolicyConfig", __base__=Model, **_POLICY_FIELDS)


class BurstConfig(Model):
    """Borrowed machines. Leave the whole section out on a site that only has networks."""

    lrms: LrmsConfig
    """The batch system."""
    providers: Annotated[dict[Name, ProviderConfig], AfterValidator(some)]
    """Where machines come from, by name."""
    pools: Annotated[dict[Name, PoolConfig], AfterValidator(some)]
    """Which jobs may go to which machines, by name."""
    currency: Currency = "USD"
    """Of all budgets, prices and costs, as ISO 4217 writes it."""
    exchange: dict[Currency, Money] = Field(default_factory=dict)
    """What one unit of another currency costs in the site's: `{USD: 0.92}`."""
    price_files: dict[Name, AbsolutePath] = Field(default_factory=dict)
    """CSV files of prices in the site's currency, by provider; the first line names the columns:
    `type,price_per_hour[,zone][,spot]`."""
    direct: tuple[DirectConfig, ...] = ()
    """Which jobs run on bare metal and which in machines; where there is room unless given."""
    budgets: dict[Name, BudgetConfig] = Field(default_factory=dict)
    """Money by tenant. A tenant without a budget borrows nothing that costs."""
    quotas: dict[Name, dict[Name, QuotaConfig]] = Field(default_factory=dict)
    """Core-hours by tenant and provider. Machines of a provider named here cost core-hours, not
    money, and a tenant without a quota there borrows none."""
    policy: PolicyConfig = PolicyConfig()
    """The numbers of a decision."""


def policy_of(config: BurstConfig) -> Policy:
    values: Model = config.policy
    return Policy(**{field.name: getattr(values, field.name) for field in fields(Policy)})
