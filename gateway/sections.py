"""The `gateway:` and `burst:` sections of a site file as frozen models.

What one value can say is checked here; what needs two of them in `sitefile.py`.
"""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, create_model

from burst.join.bundle import BundleError, Mount
from burst.model import Policy, Pool
from dvn.forms import Model, fault
from dvn.values import AddressField, Name, in_range, one_or_more
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


def _some(value: Any) -> Any:
    if not value:
        raise fault("there is nothing in it", "name at least one")
    return value


def _mounts(value: tuple[str, ...]) -> tuple[str, ...]:
    for text in value:
        try:
            Mount.parse(text)
        except BundleError as error:
            raise fault(str(error)) from None
    return value


Port = Annotated[int, AfterValidator(in_range("port", 1, 65535))]
Count = Annotated[int, AfterValidator(in_range("number", 1, 10_000))]
Names = Annotated[tuple[str, ...], BeforeValidator(one_or_more)]
SomeNames = Annotated[Names, AfterValidator(_some)]


class Enrol(Model):
    """Where borrowed machines fetch what they need to join. The address of the underlay unless
    given; behind NAT, machines are told the underlay's public one."""

    address: AddressField | None = None
    port: Port = 8443
    token_lifetime: Duration = timedelta(minutes=30)
    heartbeat: Duration = timedelta(seconds=30)
    watchdog: Duration = timedelta(minutes=15)


class GatewayConfig(Model):
    state: Annotated[str, BeforeValidator(_state)] = "sqlite:////var/lib/dvn/gateway.sqlite"
    directory: AbsolutePath | None = None  # of secrets; beside an SQLite file unless given
    socket: SocketPath = DEFAULT_SOCKET
    socket_mode: Annotated[int, BeforeValidator(_mode)] = 0o660
    socket_group: str | None = None
    agent_socket: SocketPath = "/run/dvn/agent.sock"
    user: str | None = None
    interval: Duration = timedelta(seconds=5)
    reconcile: Duration = timedelta(seconds=60)  # how often an unchanged network is looked over
    answer_timeout: Duration = timedelta(seconds=20)  # of LRMS and providers, in one round
    keep: Duration = timedelta(days=90)  # the history of ended leases
    enrol: Enrol = Enrol()

    @property
    def state_directory(self) -> Path:
        if self.directory is not None:
            return Path(self.directory)
        if self.state.startswith("sqlite:///"):
            return Path(self.state.removeprefix("sqlite:///").partition("?")[0]).parent
        return Path("/var/lib/dvn")


class SlurmConfig(Model):
    type: Literal["slurm"]
    munge_key: AbsolutePath
    slurm_conf: AbsolutePath
    job_users: Names = ()
    mounts: Annotated[Names, AfterValidator(_mounts)] = ()
    hosts: dict[str, str] = Field(default_factory=dict)
    install: str = ""


class Ec2(Model):
    type: Literal["ec2"]
    region: str
    endpoint: str | None = None
    image: str
    subnet: str
    security_groups: SomeNames
    credentials: AbsolutePath | None = None  # None: boto3's own ways (instance profile, ...)
    profile: str = "default"
    prices: dict[str, Money] = Field(default_factory=dict)  # an hour; else AWS's price list
    public_address: bool = True
    key_name: str = ""


class PoolConfig(Model):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=False)

    tenant: Name
    network: Name
    provider: Name
    partition: str
    from_partitions: Annotated[SomeNames, Field(alias="from")]
    users: Names = ()
    accounts: Names = ()
    types: SomeNames
    max_machines: Count = 10
    addresses: Addresses
    features: Names = ()
    transport: Literal["plain"] = "plain"

    def pool(self, name: str) -> Pool:
        return Pool(
            name=name,
            **{
                field.name: getattr(self, field.name)
                for field in fields(Pool)
                if field.name != "name"
            },
        )


class BudgetConfig(Model):
    """A tenant's money, in the site's currency, for each period (UTC)."""

    limit: Money
    period: Literal["day", "week", "month", "year", "ever"] = "month"

    def since(self, now: datetime) -> datetime:
        """The start of the period that `now` is in."""
        day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        match self.period:
            case "day":
                return day
            case "week":  # ISO 8601: from Monday
                return day - timedelta(days=day.weekday())
            case "month":
                return day.replace(day=1)
            case "year":
                return day.replace(month=1, day=1)
            case "ever":
                return datetime(1970, 1, 1, tzinfo=UTC)


def _policy_field(kind: Any) -> Any:
    if kind is timedelta:
        return Duration
    if kind is Decimal:
        return Money
    return Annotated[int, AfterValidator(in_range("number", 1, 1_000_000))]


# Every number of the policy may be set, by its own name: one added there needs no line here.
_POLICY_FIELDS: dict[str, Any] = {
    name: (_policy_field(kind), getattr(Policy(), name))
    for name, kind in get_type_hints(Policy).items()
}
PolicyConfig: type[Model] = create_model("PolicyConfig", __base__=Model, **_POLICY_FIELDS)


class BurstConfig(Model):
    lrms: SlurmConfig
    providers: Annotated[dict[Name, Ec2], AfterValidator(_some)]
    pools: Annotated[dict[Name, PoolConfig], AfterValidator(_some)]
    budgets: dict[Name, BudgetConfig] = Field(default_factory=dict)
    policy: PolicyConfig = PolicyConfig()


def policy_of(config: BurstConfig) -> Policy:
    values: Model = config.policy
    return Policy(**{field.name: getattr(values, field.name) for field in fields(Policy)})
