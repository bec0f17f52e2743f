"""Amazon EC2, or whatever speaks its API at `endpoint`.

A launch is idempotent: the lease's id is the ClientToken ("Ensuring idempotency in Amazon EC2 API
requests"), and the tags are part of RunInstances itself, because a tag set afterwards may come too
late or never. Instances are found again by tag alone; nothing else is remembered.

Instances demand IMDSv2 with a hop limit of 1, end for good when they shut themselves down, and go
through one network interface with the subnet, the security groups and a public address.

boto3 is imported when it is first needed: it takes long to load.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

from burst.model import Machine, MachineState, Offer
from burst.providers import ec2_prices
from burst.providers.base import LaunchRequest, Misconfigured, ProviderError, Unreachable
from burst.providers.ec2_errors import provider_error
from burst.providers.pace import Pace

LAUNCH_AT_ONCE = 200  # machines a call; AWS advises against more in one request
_ALL_LISTED = timedelta(minutes=10)  # EC2's lists lag by seconds, at times by minutes
TERMINATE_AT_ONCE = 100  # machines a call; AWS recommends small batches, and allows 1,000
_STATES = {
    "pending": MachineState.PENDING,
    "running": MachineState.RUNNING,
    "shutting-down": MachineState.STOPPING,
    "stopping": MachineState.STOPPING,
    "stopped": MachineState.STOPPING,  # never by us; it costs storage: treat it as leaving
    "terminated": MachineState.TERMINATED,
}
_ENDED_AT = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)")


PRICES_LAST = timedelta(days=1)
_GRAIN = Decimal("0.000001")


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Ec2Config:
    """Where and what to rent. `types` are those that offers are made of."""

    region: str
    image: str
    subnet: str
    security_groups: tuple[str, ...]
    types: tuple[str, ...]
    site: str  # the value of the tag dvn:site: two gateways in one account stay apart
    credentials: Path | str | None = None  # an AWS credentials file; None: boto3's usual search
    profile: str = "default"
    endpoint: str | None = None
    prices: Mapping[str, Decimal] = field(default_factory=dict)  # per hour; else AWS's price list
    rate: Decimal = Decimal(1)  # what one unit of AWS's currency costs in the site's
    on_demand: bool = True
    spot: bool = False  # offer spot machines, too
    public_address: bool = True
    key_name: str = ""
    connect_timeout: timedelta = timedelta(seconds=5)
    read_timeout: timedelta = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class _Shape:
    cores: int
    memory_mb: int


class Ec2Provider:
    """`burst.providers.base.Provider` for EC2. `client` and `pricing` are for tests."""

    def __init__(
        self,
        name: str,
        config: Ec2Config,
        *,
        client: Any = None,
        pricing: Any = None,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self.name = name
        self.config = config
        self._client = client
        self._pricing = pricing
        self._given = client is not None
        self._clock = clock
        self._pace = Pace(clock)
        self._read_at: int | None = None  # the credentials file's time of change when it was read
        self._shapes: dict[str, _Shape] = {}
        self._prices: dict[str, Decimal] = {}
        self._priced: datetime | None = None
        self._zone: str | None = None

    def offers(self) -> Sequence[Offer]:
        """One offer for each configured type, on demand and as spot as configured, with prices in
        the site's currency. Sizes and zone are asked for once, list prices once a day, spot prices
        each time."""
        missing = [name for name in self.config.types if name not in self._shapes]
        if missing:
            self._learn_shapes(missing)
        if self._zone is None:
            self._zone = self._learn_zone()
        found: list[Offer] = []
        if self.config.on_demand:
            self._learn_prices()
            found += [self._offer(name, self._prices[name]) for name in self.config.types]
        if self.config.spot:
            with mapped():
                spot = ec2_prices.spot(self._ec2(), self.config.types, self._zone, self._clock())
            found += [self._offer(name, self._ours(spot[name]), spot=True) for name in spot]
        return tuple(found)

    def _offer(self, name: str, price: Decimal, *, spot: bool = False) -> Offer:
        return Offer(
            provider=self.name,
            type=name,
            zone=self._zone or "",
            cores=self._shapes[name].cores,
            memory_mb=self._shapes[name].memory_mb,
            price_per_hour=price,
            spot=spot,
        )

    def _learn_prices(self) -> None:
        """The site file's prices first; the price list for the rest, once a day."""
        now = self._clock()
        if self._priced is not None and now - self._priced < PRICES_LAST:
            return
        asked = [name for name in self.config.types if name not in self.config.prices]
        listed: dict[str, Decimal] = {}
        for name in asked:
            with mapped():
                listed[name] = self._ours(
                    ec2_prices.on_demand(self._price_list(), name, self.config.region)
                )
        self._prices = {**listed, **self.config.prices}
        self._priced = now

    def _ours(self, amount: Decimal) -> Decimal:
        """AWS's amount in the site's currency, rounded up."""
        return (amount * self.config.rate).quantize(_GRAIN, ROUND_CEILING)

    def launch(self, request: LaunchRequest) -> Machine:
        """RunInstances for exactly one machine. Repeated with the same lease and parameters it
        returns the same machine. `Unreachable` leaves open whether there is one."""
        found = self._run(request, 1, {"dvn:lease": request.lease_id})
        if not found:
            raise Unreachable(f"the machine of lease {request.lease_id} is not listed yet")
        return found[0]

    @property
    def at_once(self) -> int:
        return LAUNCH_AT_ONCE

    def launch_many(self, request: LaunchRequest, count: int) -> Sequence[Machine]:
        """RunInstances for up to `count` machines of one batch, and at least one. They are told
        apart by their launch index, since all parameters, tags too, are the same for all."""
        found = self._run(request, count, {"dvn:batch": request.lease_id})
        return sorted(found, key=lambda machine: machine.index)

    def _run(
        self, request: LaunchRequest, count: int, marks: Mapping[str, str]
    ) -> Sequence[Machine]:
        named = {
            "Name": request.name,
            **marks,
            "dvn:pool": request.pool,
            "dvn:tenant": request.tenant,
            "dvn:site": self.config.site,
        }
        tags = [{"Key": key, "Value": value} for key, value in named.items()]
        parameters: dict[str, Any] = {
            "ImageId": self.config.image,
            "InstanceType": request.type,
            "MinCount": 1,
            "MaxCount": count,
            "ClientToken": request.lease_id,
            "UserData": request.user_data,  # boto3 encodes it
            "InstanceInitiatedShutdownBehavior": "terminate",
            "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
            "NetworkInterfaces": [
                {
                    "DeviceIndex": 0,
                    "SubnetId": self.config.subnet,
                    "Groups": list(self.config.security_groups),
                    "AssociatePublicIpAddress": self.config.public_address,
                    "DeleteOnTermination": True,
                }
            ],
            "TagSpecifications": [
                {"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")
            ],
        }
        if request.spot:
            parameters["InstanceMarketOptions"] = self._market(request)
        if self.config.key_name:
            parameters["KeyName"] = self.config.key_name
        self._pace.take("RunInstances", count)
        try:
            with mapped():
                reply = self._ec2().run_instances(**parameters)
        except ProviderError as error:
            if str(error).startswith("IdempotentParameterMismatch"):
                return self._launched_before(marks, count, error)
            raise
        return tuple(self._machine(instance) for instance in reply["Instances"])

    def _market(self, request: LaunchRequest) -> dict[str, Any]:
        """A spot machine that is charged at most what was reserved for it: EC2 takes it back
        before its price rises above `MaxPrice` ("Spot Instance pricing history")."""
        options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
        if request.max_price is not None:
            most = (request.max_price / self.config.rate).quantize(_GRAIN, ROUND_FLOOR)
            options["MaxPrice"] = f"{most:f}"
        return {"MarketType": "spot", "SpotOptions": options}

    def machines(self) -> Sequence[Machine]:
        """All instances of this site by tag, in every state EC2 still lists."""
        return self._listed([("tag:dvn:site", self.config.site)])

    def terminate(self, machine_ids: Sequence[str]) -> None:
        """TerminateInstances in batches; an id EC2 no longer knows is no error."""
        names = list(dict.fromkeys(machine_ids))
        for start in range(0, len(names), TERMINATE_AT_ONCE):
            self._terminate(names[start : start + TERMINATE_AT_ONCE])

    def _terminate(self, names: list[str]) -> None:
        self._pace.take("TerminateInstances", len(names))
        try:
            with mapped():
                self._ec2().terminate_instances(InstanceIds=names)
        except Misconfigured as error:
            if not str(error).startswith("InvalidInstanceID"):
                raise
            # One unknown id makes EC2 refuse them all.
            if len(names) > 1:
                for name in names:
                    self._terminate([name])

    def _launched_before(
        self, marks: Mapping[str, str], count: int, error: ProviderError
    ) -> Sequence[Machine]:
        """The token was used with other parameters: machines exist, or existed. Some of them may
        not be listed yet; when the first is so old that all must be, these are all."""
        found = self._listed([(f"tag:{key}", value) for key, value in marks.items()])
        young = [m for m in found if m.launched and self._clock() - m.launched < _ALL_LISTED]
        if not found or (len(found) < count and young):
            raise Unreachable(f"{error}; its machines are not listed yet")
        return found

    def _listed(self, filters: Sequence[tuple[str, str]]) -> tuple[Machine, ...]:
        wanted = [{"Name": name, "Values": [value]} for name, value in filters]
        with mapped():
            pages = (
                self._ec2()
                .get_paginator("describe_instances")
                .paginate(
                    Filters=wanted,
                    PaginationConfig={"PageSize": 1000},
                )
            )
            return tuple(
                self._machine(instance)
                for page in pages
                for reservation in page["Reservations"]
                for instance in reservation["Instances"]
            )

    def _machine(self, instance: Mapping[str, Any]) -> Machine:
        tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}
        state = _STATES.get(str(instance["State"]["Name"]), MachineState.PENDING)
        ended = _ENDED_AT.search(instance.get("StateTransitionReason", ""))
        leaving = state in (MachineState.STOPPING, MachineState.TERMINATED)
        return Machine(
            id=instance["InstanceId"],
            provider=self.name,
            lease_id=tags.get("dvn:lease", ""),
            batch=tags.get("dvn:batch", ""),
            index=int(instance.get("AmiLaunchIndex", 0)),
            state=state,
            type=instance["InstanceType"],
            zone=instance.get("Placement", {}).get("AvailabilityZone", ""),
            private_address=instance.get("PrivateIpAddress", ""),
            public_address=instance.get("PublicIpAddress", ""),
            launched=instance.get("LaunchTime"),
            # EC2 names the whole second that had begun: what was begun is billed.
            ended=_instant(ended[1]) + timedelta(seconds=1) if ended and leaving else None,
        )

    def _learn_shapes(self, names: Sequence[str]) -> None:
        with mapped():
            pages = (
                self._ec2()
                .get_paginator("describe_instance_types")
                .paginate(InstanceTypes=list(names))
            )
            for page in pages:
                for kind in page["InstanceTypes"]:
                    self._shapes[str(kind["InstanceType"])] = _Shape(
                        kind["VCpuInfo"]["DefaultVCpus"], kind["MemoryInfo"]["SizeInMiB"]
                    )
        unknown = [name for name in names if name not in self._shapes]
        if unknown:
            raise Misconfigured(f"region {self.config.region} has no {', '.join(unknown)}")

    def _learn_zone(self) -> str:
        with mapped():
            found = self._ec2().describe_subnets(SubnetIds=[self.config.subnet])["Subnets"]
        return found[0].get("AvailabilityZone", "") if found else ""

    def _ec2(self) -> Any:
        changed = self._credentials_changed()
        if self._client is None or (changed != self._read_at and not self._given):
            self._read_at = changed
            self._client = self._connect("ec2", self.config.region)
        return self._client

    def client(self) -> Any:
        """boto3's client, for who only looks (`dvn doctor`). Raises Misconfigured."""
        return self._ec2()

    def _price_list(self) -> Any:
        if self._pricing is None:
            # The price list is served in a few regions only; it knows the prices of all.
            region = self.config.region if self.config.endpoint else "us-east-1"
            self._pricing = self._connect("pricing", region)
        return self._pricing

    def _credentials_changed(self) -> int | None:
        if self.config.credentials is None or self._given:
            return None
        path = Path(self.config.credentials)
        try:
            return path.stat().st_mtime_ns
        except OSError as error:
            raise Misconfigured(f"credentials file {path}: {error.strerror}") from error

    def _connect(self, service: str, region: str) -> Any:
        import boto3
        from botocore.config import Config

        key = self._credentials()
        config = self.config
        session = boto3.session.Session(
            aws_access_key_id=key.get("aws_access_key_id"),
            aws_secret_access_key=key.get("aws_secret_access_key"),
            aws_session_token=key.get("aws_session_token"),
            region_name=region,
        )
        make: Callable[..., Any] = session.client
        return make(
            service,
            endpoint_url=config.endpoint,
            config=Config(
                connect_timeout=config.connect_timeout.total_seconds(),
                read_timeout=config.read_timeout.total_seconds(),
                # The burst loop backs off by itself, and says so; botocore would only hide it.
                retries={"total_max_attempts": 1, "mode": "standard"},
            ),
        )

    def _credentials(self) -> dict[str, str]:
        if self.config.credentials is None:
            return {}
        path, profile = Path(self.config.credentials), self.config.profile
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(path.read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise Misconfigured(f"credentials file {path}: {error.strerror}") from error
        except configparser.Error as error:
            raise Misconfigured(f"credentials file {path}: {error}") from error
        names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
        section = dict(parser.items(profile)) if parser.has_section(profile) else {}
        found = {name: section[name].strip() for name in names if name in section}
        if not {"aws_access_key_id", "aws_secret_access_key"} <= found.keys():
            raise Misconfigured(
                f"credentials file {path}: section [{profile}] needs aws_access_key_id and "
                "aws_secret_access_key"
            )
        return found


def _instant(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)


@contextmanager
def mapped() -> Iterator[None]:
    """Turn botocore's exceptions into ours."""
    from botocore import exceptions as aws

    try:
        yield
    except aws.ClientError as error:
        said = error.response.get("Error", {})
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise provider_error(said.get("Code", "?"), said.get("Message", ""), status) from error
    except (aws.HTTPClientError, aws.ConnectionError) as error:
        raise Unreachable(f"no answer from EC2: {error}") from error
    except aws.BotoCoreError as error:
        raise Misconfigured(f"{type(error).__name__}: {error}") from error
