"""EC2 as its client sees it: what boto3 would answer, by EC2's rules, in virtual time.

Kept are the rules a launch can trip over: a ClientToken is known for good and with its parameters
(AWS: "Ensuring idempotency in Amazon EC2 API requests"), lists lag behind and are not the same each
time ("Eventual consistency"), request and resource buckets ("Request throttling for the Amazon EC2
API"), MinCount and MaxCount, one unknown id fails a whole TerminateInstances, a terminated instance
stays listed for a while, and an instance that shuts itself down does what it was launched with.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError, ConnectTimeoutError, ReadTimeoutError

from burst.policy import money
from lab.cloud.throttle import Throttler
from lab.simulated.faults import Broken
from lab.simulated.site import CORES, EPOCH, MEMORY, PRICES

if TYPE_CHECKING:
    from lab.simulated.world import World

LISTED_AFTER_END = timedelta(minutes=15)  # AWS: about an hour
SHUTTING_DOWN = timedelta(seconds=10)
SPOT_NOTICE = timedelta(seconds=120)


@dataclass(slots=True)
class Instance:
    """One machine as the provider knows it; the guest in it is `guests.Guest`."""

    id: str
    token: str
    index: int
    type: str
    tags: dict[str, str]
    user_data: str
    on_shutdown: str
    launched: datetime
    listed: datetime  # from when lists have it
    runs: datetime
    address: str
    price: Decimal
    ended: datetime | None = None  # when it stopped costing money
    why: str = ""
    taken_back: datetime | None = None  # the announced instant of a spot interruption

    def state(self, now: datetime) -> str:
        if self.ended is not None and now >= self.ended:
            return "terminated" if now >= self.ended + SHUTTING_DOWN else "shutting-down"
        return "running" if now >= self.runs else "pending"

    def living(self, now: datetime) -> bool:
        return self.ended is None or now < self.ended

    def bill(self, now: datetime) -> Decimal:
        return money.billed(self.price, self.launched, self.ended or now)


@dataclass(slots=True)
class _Request:
    parameters: dict[str, Any]
    instances: list[Instance] = field(default_factory=list)


class Ec2:
    """The account; `client(...)` is what a `burst.providers.ec2.Ec2Provider` is given."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.instances: dict[str, Instance] = {}
        self.calls: dict[str, int] = {}
        self.away_until = EPOCH
        self._requests: dict[str, _Request] = {}
        self._throttler = Throttler()
        self._numbers = itertools.count(1)

    # -- what the client calls -------------------------------------------------------------------

    def run_instances(self, **parameters: Any) -> Mapping[str, Any]:
        most = int(parameters["MaxCount"])
        found = self._call(
            "RunInstances", lambda: self._run(parameters), resources=most, about=f"{most} machines"
        )
        return {"Instances": [self._view(one, self.world.now) for one in found]}

    def terminate_instances(self, InstanceIds: Sequence[str]) -> Mapping[str, Any]:  # noqa: N803
        names = list(InstanceIds)
        self._call(
            "TerminateInstances",
            lambda: self._terminate(names),
            resources=len(names),
            about=" ".join(names),
        )
        return {}

    def create_tags(self, **_parameters: Any) -> Mapping[str, Any]:
        self._call("CreateTags", lambda: None)
        return {}

    def describe_subnets(self, **_parameters: Any) -> Mapping[str, Any]:
        self._call("DescribeSubnets", lambda: None)
        return {"Subnets": [{"AvailabilityZone": "a"}]}

    def get_paginator(self, name: str) -> _Paginator:
        pages = {
            "describe_instances": self._describe,
            "describe_instance_types": self._types,
        }[name]
        return _Paginator(pages)

    # -- the provider's side -----------------------------------------------------------------------

    def _run(self, parameters: Mapping[str, Any]) -> list[Instance]:
        world, now = self.world, self.world.now
        token = str(parameters["ClientToken"])
        known = self._requests.get(token)
        if known is not None:
            if known.parameters != parameters:
                raise _refused("IdempotentParameterMismatch", "RunInstances")
            return known.instances
        least, most = int(parameters["MinCount"]), int(parameters["MaxCount"])
        free = most
        if world.chance(world.faults.no_capacity):
            free = 0
        elif most > 1 and world.chance(world.faults.partial):
            free = world.rng.randint(0, most)
        if free < least:
            raise _refused("InsufficientInstanceCapacity", "RunInstances")
        request = _Request(dict(parameters))
        for index in range(min(free, most)):
            one = self._new(parameters, token, index, now)
            self.instances[one.id] = one
            request.instances.append(one)
            world.started(one)
        self._requests[token] = request
        return request.instances

    def _new(
        self, parameters: Mapping[str, Any], token: str, index: int, now: datetime
    ) -> Instance:
        number, rng = next(self._numbers), self.world.rng
        lag = 0.0 if self.world.calm else self.world.faults.lag_s
        return Instance(
            id=f"i-{number:04x}",
            token=token,
            index=index,
            type=parameters["InstanceType"],
            tags={
                tag["Key"]: tag["Value"]
                for given in parameters["TagSpecifications"]
                if given["ResourceType"] == "instance"
                for tag in given["Tags"]
            },
            user_data=parameters["UserData"],
            on_shutdown=parameters.get("InstanceInitiatedShutdownBehavior", "stop"),
            launched=now,
            listed=now + timedelta(seconds=rng.uniform(0, lag)),
            runs=now + timedelta(seconds=rng.uniform(5, 30)),
            address=f"198.51.{100 + number // 250}.{number % 250 + 1}",
            price=PRICES[parameters["InstanceType"]],
        )

    def _terminate(self, names: Sequence[str]) -> None:
        now = self.world.now
        unknown = [n for n in names if n not in self.instances or not self._listed(n, now)]
        if unknown:
            raise _refused("InvalidInstanceID.NotFound", "TerminateInstances", " ".join(unknown))
        for name in names:
            one = self.instances[name]
            if one.living(now):
                self.world.returned(one)
                self.end(one, "User initiated")

    def end(self, one: Instance, why: str) -> None:
        """It costs nothing from now on."""
        if one.ended is None:
            one.ended, one.why = self.world.now, why
            self.world.tell(f"ec2: {one.id} ends: {why}")

    def shut_down(self, one: Instance) -> None:
        """From inside the guest."""
        if one.on_shutdown != "terminate":
            raise Broken(f"{one.id} was launched to be kept, and paid for, when it shuts down")
        self.end(one, "Client.InstanceInitiatedShutdown")

    def interrupt(self, one: Instance) -> None:
        one.taken_back = self.world.now + SPOT_NOTICE
        self.world.tell(f"ec2: {one.id} will be taken back in {SPOT_NOTICE.seconds} s")

    def live(self, now: datetime) -> None:
        for one in self.instances.values():
            if one.taken_back is not None and one.ended is None and now >= one.taken_back:
                self.end(one, "Server.SpotInstanceTermination")

    def living(self) -> list[Instance]:
        now = self.world.now
        return [one for one in self.instances.values() if one.living(now)]

    def bill(self, tenant: str) -> Decimal:
        now = self.world.now
        mine = (o for o in self.instances.values() if o.tags.get("dvn:tenant") == tenant)
        return sum((one.bill(now) for one in mine), Decimal(0))

    # -- lists -------------------------------------------------------------------------------------

    def _listed(self, name: str, now: datetime) -> bool:
        return now >= self.instances[name].listed

    def _describe(self, parameters: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        wanted = [(f["Name"].removeprefix("tag:"), f["Values"]) for f in parameters["Filters"]]

        def look() -> list[Mapping[str, Any]]:
            world = self.world
            lag = 0.0 if world.calm else world.faults.lag_s
            seen = world.now - timedelta(seconds=world.rng.uniform(0, lag))  # a list of then
            return [
                self._view(one, max(seen, one.launched))
                for one in self.instances.values()
                if one.listed <= seen or (one.listed <= world.now and lag == 0.0)
                if one.ended is None or world.now - one.ended < LISTED_AFTER_END
                if all(one.tags.get(key) in values for key, values in wanted)
            ]

        found = self._call("DescribeInstances", look)
        return [{"Reservations": [{"Instances": found}]}]

    def _types(self, parameters: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        self._call("DescribeInstanceTypes", lambda: None)
        kinds = [
            {
                "InstanceType": name,
                "VCpuInfo": {"DefaultVCpus": CORES[name]},
                "MemoryInfo": {"SizeInMiB": MEMORY[name]},
            }
            for name in parameters["InstanceTypes"]
        ]
        return [{"InstanceTypes": kinds}]

    def _view(self, one: Instance, at: datetime) -> Mapping[str, Any]:
        state = one.state(at)
        view: dict[str, Any] = {
            "InstanceId": one.id,
            "State": {"Name": state},
            "InstanceType": one.type,
            "Placement": {"AvailabilityZone": "a"},
            "Tags": [{"Key": key, "Value": value} for key, value in one.tags.items()],
            "LaunchTime": one.launched,
            "ClientToken": one.token,
            "AmiLaunchIndex": one.index,
        }
        if state == "running":
            view["PublicIpAddress"] = one.address
        if one.ended is not None and state in ("shutting-down", "terminated"):
            when = f"{one.ended:%Y-%m-%d %H:%M:%S} GMT"
            view["StateTransitionReason"] = f"{one.why} ({when})"
        return view

    # -- what can go wrong with any call -----------------------------------------------------------

    def _call(
        self, action: str, act: Callable[[], Any], *, resources: int = 0, about: str = ""
    ) -> Any:
        world, faults = self.world, self.world.faults
        self.calls[action] = self.calls.get(action, 0) + 1
        where = "https://ec2.simulated"
        world.takes_time()
        world.may_die(f"before {action}")
        if world.chance(faults.outage):
            self.away_until = world.now + timedelta(seconds=world.rng.uniform(10, 60))
        if world.now < self.away_until or world.fails(action, faults.lost_before):
            world.tell(f"ec2: {action} {about}: no connection")
            raise ConnectTimeoutError(endpoint_url=where)
        throttled = world.fails(f"{action} throttled", faults.throttle)
        if throttled or not self._throttler.allows(action, world.now, None, resources):
            world.tell(f"ec2: {action} {about}: throttled")
            raise _refused("RequestLimitExceeded", action)
        try:
            answer = act()
            if world.chance(faults.duplicate):
                answer = act()
        except ClientError as error:
            world.tell(f"ec2: {action} {about}: {error.response['Error']['Code']}")
            raise
        if not action.startswith("Describe"):
            world.tell(f"ec2: {action} {about}: done")
        world.takes_time()
        world.may_die(f"after {action}")
        if world.fails(f"{action} answered", faults.lost_after):
            world.tell(f"ec2: {action} {about}: the answer is lost")
            raise ReadTimeoutError(endpoint_url=where)
        return answer


@dataclass(frozen=True, slots=True)
class _Paginator:
    pages: Callable[[Mapping[str, Any]], list[Mapping[str, Any]]]

    def paginate(self, **parameters: Any) -> Iterator[Mapping[str, Any]]:
        return iter(self.pages(parameters))


def _refused(code: str, action: str, message: str = "simulated") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, action)
