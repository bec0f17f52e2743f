"""EC2's state and answers by moto, with what moto leaves out. The only room that knows moto.

moto parses the requests, keeps the resources and writes the XML. Its backend's methods are replaced
one by one, on our own backend object, where EC2 does more than moto:

* RunInstances: ClientToken, MinCount and MaxCount, image, type, capacity, states that follow the
  real machine, public addresses from the lab's pool;
* instances come into view late (`Faults.hide_new_for`), tags too;
* TerminateInstances, StopInstances and StartInstances move real machines.

Calls are made one at a time, under `lock`.
"""

from __future__ import annotations

import base64
import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

from lab.cloud import errors, query, snapshot
from lab.cloud.addresses import PublicAddresses
from lab.cloud.errors import ApiError
from lab.cloud.faults import Faults
from lab.cloud.lean import lean_loading
from lab.cloud.ledger import Ledger
from lab.cloud.machines import Launch, Machines, Network
from lab.cloud.metadata import Metadata
from lab.cloud.network import Vpc
from lab.cloud.pool import AddressPool
from lab.cloud.query import Answer
from lab.cloud.spot import SpotMarket
from lab.cloud.types import TYPES

STATES = {
    "pending": 0,
    "running": 16,
    "shutting-down": 32,
    "terminated": 48,
    "stopping": 64,
    "stopped": 80,
}
LIVING = ("pending", "running", "shutting-down", "stopping")
_NOT_IN_FINGERPRINT = {"Action", "Version", "ClientToken", "DryRun"}
_TRANSITIONS = {
    "TerminateInstances": ("shutting-down", "terminated"),
    "StopInstances": ("stopping", "stopped"),
    "StartInstances": ("pending", "running"),
}


class MotoEc2:
    """One account in one region. `load` first: it imports moto, which takes seconds."""

    def __init__(
        self,
        *,
        region: str,
        machines: Machines,
        network: Network,
        publics: AddressPool,
        faults: Faults,
        clock: Callable[[], datetime],
    ) -> None:
        self.region = region
        self.faults = faults
        self.ledger = Ledger()
        self.market = SpotMarket(region)
        self._spot_prices: dict[str, Decimal] = {}  # of the instances rented at one
        self.lock = threading.RLock()
        self.account = "".join(secrets.choice("123456789") for _ in range(12))
        self._machines = machines
        self._network = network
        self._publics = publics
        self._clock = clock
        self._params: Mapping[str, str] = {}
        self._instances: dict[str, Any] = {}
        self._tokens: dict[str, tuple[object, Any]] = {}
        self._visible_from: dict[str, datetime] = {}
        self._late_tags: list[tuple[datetime, list[str], dict[str, str]]] = []
        self._after_off: dict[str, str] = {}  # instance -> state once the machine is off
        self._interrupted: dict[str, datetime] = {}
        self._rebalance: dict[str, datetime] = {}
        self.on_spot_start: Callable[[str], None] = lambda _instance: None
        self._backend: Any = None
        self.models: dict[str, Any] = {}  # botocore's descriptions, read once

    # -- moto ------------------------------------------------------------------------------------

    def load(self) -> None:
        """Import moto, make the account, and have every lazy part of it loaded."""
        with lean_loading(self.region, TYPES, self.models):
            self._load()

    def _load(self) -> None:
        # moto's switch for its list of a thousand images; ours are registered by who uses them
        os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
        from moto.ec2.models import ec2_backends
        from moto.ec2.responses import EC2Response  # noqa: F401

        backend: Any = ec2_backends[self.account][self.region]
        self._backend = backend
        self._all_reservations = backend.all_reservations
        self._run = backend.run_instances
        self._create_tags = backend.create_tags
        backend.all_reservations = self._seen_reservations
        backend.run_instances = self._run_instances
        backend.create_tags = self._tag
        self._addresses = PublicAddresses(backend, self._publics)
        self.call({"Action": "DescribeVpcs", "Version": "2016-11-15"})  # loads botocore's model

    def close(self) -> None:
        """Forget the account."""
        if self._backend is not None:
            from moto.ec2.models import ec2_backends

            ec2_backends.pop(self.account, None)

    def call(self, params: Mapping[str, str]) -> Answer:
        """Do one EC2 action. Raises `ApiError` for what our side refuses."""
        with self.lock:
            action = params.get("Action", "")
            if action == "CreateSubnet" and not _chooses_zone(params):
                # moto would take a random zone
                params = {**params, "AvailabilityZone": f"{self.region}a"}
            self._params = params
            self._settle()
            if action in _TRANSITIONS and not query.true(params.get("DryRun")):
                answer = self._transition(action, query.listed(params, "InstanceId"))
            elif "InstanceInitiatedShutdownBehavior.Value" in params:
                answer = self._shutdown_behavior(params)
            elif action == "GetConsoleOutput":
                answer = self._console(params)
            elif action == "DescribeSpotPriceHistory":
                answer = self.market.describe(params, self._clock())
            else:
                answer = self._ask_moto(params)
            self._settle()
            if not action.startswith(("Describe", "Get", "List")):
                self._network.sync(self.network())
            return answer

    def _ask_moto(self, params: Mapping[str, str]) -> Answer:
        from moto.core.request import Request
        from moto.ec2.responses import EC2Response

        credential = f"LAB/0/{self.region}/ec2/aws4_request"  # moto reads the region from it
        request = Request.from_primitives(
            "POST",
            f"http://ec2.{self.region}.amazonaws.com/",
            {
                "Content-Type": "application/x-www-form-urlencoded; charset=utf-8",
                "x-moto-account-id": self.account,
                "Authorization": f"AWS4-HMAC-SHA256 Credential={credential}",
            },
            urlencode(params).encode(),
        )
        try:
            status, headers, body = EC2Response.dispatch(request)
        except NotImplementedError as error:
            name = params.get("Action", "")
            raise ApiError(
                "InvalidAction", f"The action {name} is not in the lab: {error}"
            ) from error
        content = body if isinstance(body, bytes) else str(body).encode()
        return Answer(int(status), content, {k: str(v) for k, v in headers.items()})

    # -- what moto leaves out --------------------------------------------------------------------

    def _seen_reservations(self, filters: Any = None) -> list[Any]:
        """moto's list without what is not visible yet."""
        now = self._clock()
        found = []
        for reservation in self._all_reservations(filters):
            seen = [i for i in reservation.instances if self._visible_from.get(i.id, now) <= now]
            if seen:
                reservation.instances = seen
                found.append(reservation)
        return found

    def _tag(self, resource_ids: list[str], tags: dict[str, str]) -> bool:
        if self._params.get("Action") == "CreateTags" and self.faults.hide_new_for > 0:
            due = self._clock() + timedelta(seconds=self.faults.hide_new_for)
            self._late_tags.append((due, resource_ids, tags))
            return True
        return bool(self._create_tags(resource_ids, tags))

    def _run_instances(
        self, image_id: str, count: int, user_data: Any, groups: list[str], **kwargs: Any
    ) -> Any:
        params = self._params
        token = params.get("ClientToken", "")
        fingerprint = frozenset(
            (k, v) for k, v in params.items() if k.split(".")[0] not in _NOT_IN_FINGERPRINT
        )
        if token in self._tokens:
            known, reservation = self._tokens[token]
            if known != fingerprint:
                raise errors.token_mismatch()
            return reservation
        least, most = query.counts(params)
        self._backend.describe_images(ami_ids=[image_id])  # InvalidAMIID.NotFound
        type_name = kwargs["instance_type"]
        if type_name not in TYPES:
            raise errors.invalid(f"The lab has no instance type {type_name!r}; it has: {_types()}")
        subnet_id = kwargs.get("subnet_id") or next(
            (n["SubnetId"] for n in kwargs.get("nics") or () if "SubnetId" in n), None
        )
        zone = kwargs.get("placement") or f"{self.region}a"
        if subnet_id:
            subnet = self._backend.get_subnet(subnet_id)
            if kwargs.get("placement") not in (None, subnet.availability_zone):
                raise errors.invalid(f"The subnet {subnet_id} is not in the zone {zone}")
            zone = subnet.availability_zone
            most = min(most, subnet.available_ip_address_count)
            if most < least:
                raise ApiError(
                    "InsufficientFreeAddressesInSubnet", f"{subnet_id} has not enough addresses"
                )
        spot_price: Decimal | None = None
        if params.get("InstanceMarketOptions.MarketType") == "spot":
            spot_price = self.market.admitted(params, type_name, zone, self._clock())
        most = min(most, self.faults.free_capacity(type_name, zone, self._running()))
        if most < least:
            raise errors.insufficient_capacity(type_name, zone)
        reservation = self._run(image_id, most, user_data, groups, **kwargs)
        now = self._clock()
        for instance in reservation.instances:
            self._instances[instance.id] = instance
            if spot_price is not None:
                self._spot_prices[instance.id] = spot_price
            _state(instance, "pending")
            instance.disable_api_termination = query.true(params.get("DisableApiTermination"))
            if self.faults.hide_new_for > 0:
                self._visible_from[instance.id] = now + timedelta(seconds=self.faults.hide_new_for)
        if token:
            self._tokens[token] = (fingerprint, reservation)
        self._settle()
        # the fabric must know the interfaces before a machine hangs on it
        self._network.sync(self.network())
        for instance in reservation.instances:
            self._machines.power_on(self._launch(instance, first_boot=True))
        return reservation

    def _running(self) -> Counter[tuple[str, str]]:
        living = (i for i in self._instances.values() if i.state in LIVING)
        return Counter((i.instance_type, i.availability_zone) for i in living)

    def _launch(self, instance: Any, *, first_boot: bool) -> Launch:
        vpc = next(v for v in self.network() if v.id == instance.vpc_id)
        nic = next(n for n in vpc.interfaces if n.instance == instance.id)
        kind = TYPES[instance.instance_type]
        return Launch(instance.id, kind, nic, vpc.subnet(nic.subnet), vpc.id, first_boot)

    def _shutdown_behavior(self, params: Mapping[str, str]) -> Answer:
        """moto would take this attribute for an empty list of security groups."""
        wanted = params["InstanceInitiatedShutdownBehavior.Value"]
        if wanted not in ("stop", "terminate"):
            raise errors.invalid(f"{wanted!r}: use stop or terminate")
        instance = self._known([params.get("InstanceId", "")])[0]
        instance.instance_initiated_shutdown_behavior = wanted
        return query.answer("ModifyInstanceAttribute", "<return>true</return>")

    def _console(self, params: Mapping[str, str]) -> Answer:
        instance = self._known([params.get("InstanceId", "")])[0]
        text = base64.b64encode(self._machines.console(instance.id).encode()).decode()
        now = self._clock().strftime("%Y-%m-%dT%H:%M:%S.000Z")
        content = f"<instanceId>{instance.id}</instanceId><timestamp>{now}</timestamp>"
        return query.answer("GetConsoleOutput", f"{content}<output>{text}</output>")

    # -- states ----------------------------------------------------------------------------------

    def _known(self, instance_ids: Iterable[str]) -> list[Any]:
        now = self._clock()
        ids = list(instance_ids)
        missing = [
            i for i in ids if i not in self._instances or self._visible_from.get(i, now) > now
        ]
        if missing:
            raise errors.invalid(
                f"The instance IDs '{', '.join(missing)}' do not exist",
                "InvalidInstanceID.NotFound",
            )
        return [self._instances[i] for i in ids]

    def _transition(self, action: str, instance_ids: list[str]) -> Answer:
        """All of them, or none when one is unknown or protected."""
        if not instance_ids:
            raise errors.invalid("No instances specified", "InvalidParameterCombination")
        instances = self._known(instance_ids)
        for instance in instances:
            if action == "TerminateInstances" and query.true(str(instance.disable_api_termination)):
                raise errors.invalid(
                    f"The instance '{instance.id}' may not be terminated. Modify its "
                    "'disableApiTermination' instance attribute and try again.",
                    "OperationNotPermitted",
                )
            allowed = {"StartInstances": ("stopped",), "StopInstances": ("pending", "running")}
            idle = {"StartInstances": LIVING[:2], "StopInstances": ("stopping", "stopped")}
            if action in allowed and instance.state not in allowed[action] + idle[action]:
                raise errors.invalid(
                    f"The instance '{instance.id}' is {instance.state}.", "IncorrectInstanceState"
                )
        rows = []
        for instance in instances:
            before = instance.state
            self._move(instance, action)
            rows.append(
                f"<item><instanceId>{instance.id}</instanceId>"
                f"{_state_xml('currentState', instance.state)}{_state_xml('previousState', before)}"
                "</item>"
            )
        return query.answer(action, f"<instancesSet>{''.join(rows)}</instancesSet>")

    def _move(self, instance: Any, action: str) -> None:
        during, after = _TRANSITIONS[action]
        state = instance.state
        if action == "StartInstances":
            if state == "stopped":
                instance.start()
                _state(instance, during)
                self._settle()
                self._network.sync(self.network())
                self._machines.power_on(self._launch(instance, first_boot=False))
        elif state in ("shutting-down", "terminated", during, after):
            return
        elif state == "stopped":
            self._finish(instance, after)
        else:
            _state(instance, during)
            self._after_off[instance.id] = after
            if state != "stopping":
                self._machines.power_off(instance.id)

    def powered_on(self, instance_id: str) -> None:
        """The machine runs now."""
        with self.lock:
            instance = self._instances[instance_id]
            if instance.state == "pending":
                _state(instance, "running")
                kind = TYPES[instance.instance_type]
                now = self._clock()
                price = self._spot_prices.get(instance_id, kind.price_per_hour)
                self.ledger.start(instance_id, kind.name, price, now)
                if instance.lifecycle == "spot":
                    self.on_spot_start(instance_id)

    def powered_off(self, instance_id: str, *, by_guest: bool = False) -> None:
        """The machine is off and gone, by our will, by the guest's, or because it broke."""
        with self.lock:
            instance = self._instances[instance_id]
            behavior = instance.instance_initiated_shutdown_behavior
            wanted = {"terminate": "terminated", "stop": "stopped"}[behavior]
            if instance.state == "pending" and not by_guest:
                wanted = "terminated"  # the machine could not be made
            after = self._after_off.pop(instance_id, wanted)
            if instance.state not in ("stopped", "terminated"):
                self._finish(instance, after)
                if by_guest:
                    instance.state_reason.code = "Client.InstanceInitiatedShutdown"
                    instance.state_reason.message = (
                        "Client.InstanceInitiatedShutdown: Instance initiated shutdown"
                    )
            self._network.sync(self.network())

    def _finish(self, instance: Any, after: str) -> None:
        self.ledger.end(instance.id, self._clock())
        if after == "terminated":
            self._addresses.disassociate(instance)
            instance.terminate()
        else:
            instance.stop()
        _state(instance, after)
        if instance.id in self._interrupted:
            code = "Server.SpotInstanceTermination"
            instance.state_reason.code = code
            instance.state_reason.message = f"{code}: Instance terminated due to no capacity"
        self._settle()

    def interrupt(self, instance_id: str, at: datetime) -> None:
        """Announce, in the metadata, that the machine will be taken away."""
        with self.lock:
            self._known([instance_id])
            self._interrupted[instance_id] = at

    def recommend_rebalance(self, instance_id: str) -> None:
        """Say, in the metadata, that the machine is more likely than others to be taken away."""
        with self.lock:
            self._known([instance_id])
            self._rebalance[instance_id] = self._clock()

    def take_back(self, instance_id: str) -> None:
        """End an interrupted instance, as EC2 does when the notice is over."""
        with self.lock:
            self._move(self._instances[instance_id], "TerminateInstances")

    def _settle(self) -> None:
        """What follows by itself: late tags, and public addresses out of the lab's pool."""
        now = self._clock()
        for due, resource_ids, tags in [t for t in self._late_tags if t[0] <= now]:
            self._create_tags(resource_ids, tags)
            self._late_tags.remove((due, resource_ids, tags))
        self._addresses.settle(self._instances.values())

    # -- what others may ask ---------------------------------------------------------------------

    def network(self) -> tuple[Vpc, ...]:
        """The network as it shall be enforced now."""
        with self.lock:
            living = [i for i in self._instances.values() if i.state in LIVING]
            return snapshot.read(self._backend, living)

    def states(self) -> dict[str, str]:
        """Every instance there ever was -> its state."""
        with self.lock:
            return {i.id: i.state for i in self._instances.values()}

    def metadata(self, vpc_id: str, address: str) -> Metadata | None:
        """What the metadata service tells the machine with this address."""
        with self.lock:
            for instance in self._instances.values():
                if instance.state not in LIVING or instance.vpc_id != vpc_id:
                    continue
                nic = instance.nics[0]
                if nic.private_ip_address == address:
                    return snapshot.metadata(
                        instance,
                        self._interrupted.get(instance.id),
                        self._rebalance.get(instance.id),
                    )
        return None


def _chooses_zone(params: Mapping[str, str]) -> bool:
    return "AvailabilityZone" in params or "AvailabilityZoneId" in params


def _types() -> str:
    return ", ".join(sorted(TYPES))


def _state(instance: Any, name: str) -> None:
    instance._state.name = name
    instance._state.code = STATES[name]


def _state_xml(element: str, name: str) -> str:
    return f"<{element}><code>{STATES[name]}</code><name>{name}</name></{element}>"
