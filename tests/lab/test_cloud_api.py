"""The lab EC2's API against boto3, with machines that exist only on paper."""

from __future__ import annotations

import functools
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from lab.cloud.api import Api
from lab.cloud.backend import MotoEc2
from lab.cloud.faults import Faults, Throttle
from lab.cloud.machines import Launch
from lab.cloud.network import Vpc
from lab.cloud.pool import AddressPool
from lab.cloud.server import WsgiServer
from lab.cloud.throttle import Throttler

REGION = "eu-south-1"
KEY, SECRET = "AKIALAB0000000000000", "lab-secret"


@functools.cache
def session() -> Any:
    """One for all tests: it reads the service's model once."""
    import boto3

    return boto3.Session()


@dataclass
class PaperMachines:
    """Remembers what it was told; `boot` and `die` are what a hypervisor would report."""

    on: list[Launch] = field(default_factory=list)
    off: list[str] = field(default_factory=list)

    def power_on(self, launch: Launch) -> None:
        self.on.append(launch)

    def power_off(self, instance_id: str) -> None:
        self.off.append(instance_id)

    def console(self, instance_id: str) -> str:
        return f"console of {instance_id}\n"


@dataclass
class PaperNetwork:
    seen: list[tuple[Vpc, ...]] = field(default_factory=list)

    def sync(self, vpcs: tuple[Vpc, ...]) -> None:
        self.seen.append(vpcs)

    def vpc(self, vpc_id: str) -> Vpc:
        return next(v for v in self.seen[-1] if v.id == vpc_id)


@dataclass
class Clock:
    now: datetime = datetime(2025, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class Cloud:
    url: str
    backend: MotoEc2
    machines: PaperMachines
    network: PaperNetwork
    faults: Faults
    clock: Clock
    api: Api
    ec2: Any = None
    vpc: str = ""
    subnet: str = ""
    group: str = ""
    image: str = ""

    def client(
        self, key: str = KEY, secret: str = SECRET, region: str = REGION, **options: Any
    ) -> Any:
        from botocore.config import Config

        config = Config(retries={"total_max_attempts": 1}, **options)
        return session().client(
            "ec2",
            region_name=region,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            endpoint_url=self.url,
            config=config,
        )

    def run(self, **changes: Any) -> list[dict[str, Any]]:
        options: dict[str, Any] = {
            "ImageId": self.image,
            "InstanceType": "c5.large",
            "MinCount": 1,
            "MaxCount": 1,
            "SubnetId": self.subnet,
            "SecurityGroupIds": [self.group],
            **changes,
        }
        return list(
            self.ec2.run_instances(**{k: v for k, v in options.items() if v is not None})[
                "Instances"
            ]
        )

    def listed(self, **query: Any) -> dict[str, dict[str, Any]]:
        answer = self.ec2.describe_instances(**query)
        return {i["InstanceId"]: i for r in answer["Reservations"] for i in r["Instances"]}

    def state(self, instance: str) -> str:
        return str(self.listed(InstanceIds=[instance])[instance]["State"]["Name"])

    def lab(self, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"{self.url}/_lab/{path}", data, timeout=10) as answer:
            return json.load(answer)


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    faults, clock, machines, network = Faults(), Clock(), PaperMachines(), PaperNetwork()
    backend = MotoEc2(
        region=REGION,
        machines=machines,
        network=network,
        publics=AddressPool("203.0.113.0/24", reserved=["203.0.113.250"]),
        faults=faults,
        clock=clock,
    )
    backend.load()
    api = Api(
        backend,
        faults,
        credentials={KEY: SECRET},
        clock=clock,
        throttler=Throttler({}),
        interrupt=lambda i, s: backend.interrupt(i, clock() + timedelta(seconds=s)),
    )
    listener = socket.create_server(("127.0.0.1", 0))
    with WsgiServer(api, listener) as server:
        cloud = Cloud(server.url, backend, machines, network, faults, clock, api)
        ec2 = cloud.ec2 = cloud.client()
        cloud.vpc = ec2.create_vpc(CidrBlock="10.20.0.0/16")["Vpc"]["VpcId"]
        cloud.subnet = ec2.create_subnet(VpcId=cloud.vpc, CidrBlock="10.20.1.0/24")["Subnet"][
            "SubnetId"
        ]
        cloud.group = ec2.create_security_group(GroupName="g", Description="g", VpcId=cloud.vpc)[
            "GroupId"
        ]
        cloud.image = ec2.register_image(Name="debian-12")["ImageId"]
        yield cloud
        faults.clear()  # whoever holds an answer back lets go
    backend.close()


def refused(call: Callable[[], object], code: str) -> str:
    with pytest.raises(ClientError) as caught:
        call()
    assert caught.value.response["Error"]["Code"] == code
    return str(caught.value.response["Error"]["Message"])


def open_to_internet(cloud: Cloud) -> str:
    gateway = cloud.ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    cloud.ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=cloud.vpc)
    table = cloud.ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [cloud.vpc]}])
    cloud.ec2.create_route(
        RouteTableId=table["RouteTables"][0]["RouteTableId"],
        DestinationCidrBlock="0.0.0.0/0",
        GatewayId=gateway,
    )
    return str(gateway)


# -- the life of an instance -----------------------------------------------------------------------


def test_states_follow_the_machine(cloud: Cloud) -> None:
    (instance,) = cloud.run()
    name = instance["InstanceId"]
    assert instance["State"]["Name"] == "pending"
    assert cloud.state(name) == "pending"
    cloud.clock.advance(3600)
    assert cloud.state(name) == "pending"  # time alone does not boot a machine
    cloud.backend.powered_on(name)
    assert cloud.state(name) == "running"
    (change,) = cloud.ec2.terminate_instances(InstanceIds=[name])["TerminatingInstances"]
    assert change["PreviousState"]["Name"] == "running"
    assert change["CurrentState"] == {"Code": 32, "Name": "shutting-down"}
    assert cloud.machines.off == [name]
    assert cloud.state(name) == "shutting-down"
    cloud.backend.powered_off(name)
    assert cloud.state(name) == "terminated"


def test_terminating_twice_is_no_error_and_one_power_off(cloud: Cloud) -> None:
    name = cloud.run()[0]["InstanceId"]
    cloud.ec2.terminate_instances(InstanceIds=[name])
    cloud.ec2.terminate_instances(InstanceIds=[name, name])
    cloud.backend.powered_off(name)
    (change,) = cloud.ec2.terminate_instances(InstanceIds=[name])["TerminatingInstances"]
    assert change["CurrentState"]["Name"] == "terminated"
    assert cloud.machines.off == [name]


def test_terminate_is_all_or_nothing(cloud: Cloud) -> None:
    name = cloud.run()[0]["InstanceId"]
    unknown = "i-0123456789abcdef0"
    refused(
        lambda: cloud.ec2.terminate_instances(InstanceIds=[name, unknown]),
        "InvalidInstanceID.NotFound",
    )
    assert cloud.machines.off == []


def test_protected_instance_is_not_terminated(cloud: Cloud) -> None:
    name = cloud.run(DisableApiTermination=True)[0]["InstanceId"]
    refused(lambda: cloud.ec2.terminate_instances(InstanceIds=[name]), "OperationNotPermitted")
    cloud.ec2.modify_instance_attribute(InstanceId=name, DisableApiTermination={"Value": False})
    cloud.ec2.terminate_instances(InstanceIds=[name])
    assert cloud.machines.off == [name]


def test_terminate_while_pending_and_late_boot(cloud: Cloud) -> None:
    name = cloud.run()[0]["InstanceId"]
    cloud.ec2.terminate_instances(InstanceIds=[name])
    cloud.backend.powered_on(name)  # the boot was under way
    assert cloud.state(name) == "shutting-down"
    cloud.backend.powered_off(name)
    assert cloud.state(name) == "terminated"
    assert cloud.backend.ledger.cost(cloud.clock()) == 0


@pytest.mark.parametrize(("behavior", "after"), [("terminate", "terminated"), ("stop", "stopped")])
def test_shutdown_inside(cloud: Cloud, behavior: str, after: str) -> None:
    name = cloud.run(InstanceInitiatedShutdownBehavior=behavior)[0]["InstanceId"]
    cloud.backend.powered_on(name)
    cloud.backend.powered_off(name, by_guest=True)
    assert cloud.state(name) == after
    reason = cloud.listed()[name]["StateReason"]["Code"]
    assert reason == "Client.InstanceInitiatedShutdown"


def test_shutdown_behavior_can_be_changed_and_keeps_the_groups(cloud: Cloud) -> None:
    name = cloud.run()[0]["InstanceId"]
    cloud.ec2.modify_instance_attribute(
        InstanceId=name, InstanceInitiatedShutdownBehavior={"Value": "terminate"}
    )
    assert [g["GroupId"] for g in cloud.listed()[name]["SecurityGroups"]] == [cloud.group]
    cloud.backend.powered_on(name)
    cloud.backend.powered_off(name, by_guest=True)
    assert cloud.state(name) == "terminated"


def test_stop_and_start(cloud: Cloud) -> None:
    name = cloud.run()[0]["InstanceId"]
    cloud.backend.powered_on(name)
    cloud.ec2.stop_instances(InstanceIds=[name])
    assert cloud.state(name) == "stopping"
    refused(lambda: cloud.ec2.start_instances(InstanceIds=[name]), "IncorrectInstanceState")
    cloud.backend.powered_off(name)
    assert cloud.state(name) == "stopped"
    cloud.ec2.start_instances(InstanceIds=[name])
    assert [launch.first_boot for launch in cloud.machines.on] == [True, False]
    cloud.backend.powered_on(name)
    assert cloud.state(name) == "running"
    cloud.ec2.stop_instances(InstanceIds=[name])
    cloud.ec2.terminate_instances(InstanceIds=[name])  # overtakes the stop
    cloud.backend.powered_off(name)
    assert cloud.state(name) == "terminated"


def test_terminate_a_stopped_instance(cloud: Cloud) -> None:
    name = cloud.run()[0]["InstanceId"]
    cloud.ec2.stop_instances(InstanceIds=[name])
    cloud.backend.powered_off(name)
    cloud.ec2.terminate_instances(InstanceIds=[name])
    assert cloud.state(name) == "terminated"


def test_launch_tells_the_hypervisor_all(cloud: Cloud) -> None:
    name = cloud.run(InstanceType="c5.xlarge", UserData="#!/bin/sh\nid\n")[0]["InstanceId"]
    (launch,) = cloud.machines.on
    assert (launch.id, launch.type.vcpus, launch.type.memory_mb) == (name, 4, 8192)
    assert launch.subnet.cidr == "10.20.1.0/24"
    assert launch.nic.addresses[0].startswith("10.20.1.")
    assert launch.nic.groups == (cloud.group,)
    data = cloud.backend.metadata(cloud.vpc, launch.nic.addresses[0])
    assert data is not None
    assert data.user_data == b"#!/bin/sh\nid\n"
    assert data.token_required is False


def test_console(cloud: Cloud) -> None:
    name = cloud.run()[0]["InstanceId"]
    assert cloud.ec2.get_console_output(InstanceId=name)["Output"] == f"console of {name}\n"


def test_the_bill(cloud: Cloud) -> None:
    name = cloud.run()[0]["InstanceId"]
    cloud.clock.advance(100)  # booting is free
    cloud.backend.powered_on(name)
    cloud.clock.advance(1800)
    assert cloud.backend.ledger.cost(cloud.clock()) == Decimal("0.0505")
    cloud.ec2.terminate_instances(InstanceIds=[name])
    cloud.backend.powered_off(name)
    cloud.clock.advance(9999)
    assert cloud.backend.ledger.cost(cloud.clock()) == Decimal("0.0505")


# -- what a launch checks --------------------------------------------------------------------------


def test_tags_in_the_launch_are_filters_at_once(cloud: Cloud) -> None:
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "dvn:lease", "Value": "abc"}]}]
    name = cloud.run(TagSpecifications=tags)[0]["InstanceId"]
    cloud.run()
    assert set(cloud.listed(Filters=[{"Name": "tag:dvn:lease", "Values": ["abc"]}])) == {name}
    assert set(cloud.listed(Filters=[{"Name": "tag-key", "Values": ["dvn:lease"]}])) == {name}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"ImageId": "ami-0123456789abcdef0"}, "InvalidAMIID.NotFound"),
        ({"InstanceType": "x9.huge"}, "InvalidParameterValue"),
        ({"SubnetId": "subnet-0123456789abcdef0"}, "InvalidSubnetID.NotFound"),
        ({"SecurityGroupIds": ["sg-0123456789abcdef0"]}, "InvalidGroup.NotFound"),
        ({"MinCount": 0}, "InvalidParameterValue"),
        ({"MinCount": 3, "MaxCount": 2}, "InvalidParameterValue"),
        ({"MinCount": 300, "MaxCount": 300}, "InsufficientFreeAddressesInSubnet"),
        ({"DryRun": True}, "DryRunOperation"),
    ],
)
def test_wrong_launch_starts_nothing(cloud: Cloud, changes: dict[str, Any], code: str) -> None:
    refused(lambda: cloud.run(**changes), code)
    assert cloud.machines.on == []
    assert cloud.listed() == {}


# -- ClientToken -----------------------------------------------------------------------------------


def test_same_token_same_instance(cloud: Cloud) -> None:
    first = cloud.run(ClientToken="t1")
    again = cloud.run(ClientToken="t1")
    assert [i["InstanceId"] for i in again] == [i["InstanceId"] for i in first]
    assert len(cloud.machines.on) == 1
    assert cloud.run(ClientToken="t2")[0]["InstanceId"] != first[0]["InstanceId"]


@pytest.mark.parametrize(
    "changes",
    [
        {"InstanceType": "m5.large"},
        {"UserData": "#!/bin/sh\nother\n"},
        {"MaxCount": 2},
        {"TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "k", "Value": "v"}]}]},
    ],
)
def test_same_token_other_parameters(cloud: Cloud, changes: dict[str, Any]) -> None:
    cloud.run(ClientToken="t1")
    refused(lambda: cloud.run(ClientToken="t1", **changes), "IdempotentParameterMismatch")
    assert len(cloud.machines.on) == 1


def test_token_is_remembered_after_terminate(cloud: Cloud) -> None:
    name = cloud.run(ClientToken="t1")[0]["InstanceId"]
    cloud.ec2.terminate_instances(InstanceIds=[name])
    cloud.backend.powered_off(name)
    assert cloud.run(ClientToken="t1")[0]["InstanceId"] == name
    assert len(cloud.machines.on) == 1
    assert cloud.state(name) == "terminated"


def test_token_of_a_refused_launch_is_free(cloud: Cloud) -> None:
    cloud.faults.no_capacity("c5.large")
    refused(lambda: cloud.run(ClientToken="t1"), "InsufficientInstanceCapacity")
    cloud.faults.clear()
    cloud.run(ClientToken="t1")
    assert len(cloud.machines.on) == 1


def test_token_is_honoured_when_capacity_is_gone_or_the_instance_hidden(cloud: Cloud) -> None:
    cloud.faults.hide_new_for = 60
    first = cloud.run(ClientToken="t1")
    cloud.faults.no_capacity()
    assert cloud.run(ClientToken="t1")[0]["InstanceId"] == first[0]["InstanceId"]


def test_same_token_from_many_threads_at_once(cloud: Cloud) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(cloud.run(ClientToken="t")[0]["InstanceId"]), daemon=True
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len(cloud.machines.on) == 1


# -- counts and capacity ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capacity", "least", "most", "got"),
    [(10, 1, 4, 4), (3, 1, 4, 3), (3, 3, 3, 3), (1, 1, 9, 1), (2, 3, 4, None), (0, 1, 1, None)],
)
def test_as_many_as_there_are(
    cloud: Cloud, capacity: int, least: int, most: int, got: int | None
) -> None:
    cloud.faults.no_capacity("c5.large", f"{REGION}a", limit=capacity)
    if got is None:
        message = refused(
            lambda: cloud.run(MinCount=least, MaxCount=most), "InsufficientInstanceCapacity"
        )
        assert "c5.large" in message
        assert cloud.listed() == {}
    else:
        assert len(cloud.run(MinCount=least, MaxCount=most)) == got == len(cloud.machines.on)


def test_capacity_counts_what_runs_and_comes_back(cloud: Cloud) -> None:
    cloud.faults.no_capacity("c5.large", limit=2)
    name = cloud.run()[0]["InstanceId"]
    cloud.run()
    refused(cloud.run, "InsufficientInstanceCapacity")
    cloud.run(InstanceType="m5.large")  # another type is another matter
    cloud.ec2.terminate_instances(InstanceIds=[name])
    refused(cloud.run, "InsufficientInstanceCapacity")  # still shutting down
    cloud.backend.powered_off(name)
    cloud.run()


def test_capacity_of_another_zone(cloud: Cloud) -> None:
    cloud.faults.no_capacity("c5.large", f"{REGION}a")
    refused(cloud.run, "InsufficientInstanceCapacity")
    other = cloud.ec2.create_subnet(
        VpcId=cloud.vpc, CidrBlock="10.20.2.0/24", AvailabilityZone=f"{REGION}b"
    )["Subnet"]["SubnetId"]
    (instance,) = cloud.run(SubnetId=other)
    assert instance["Placement"]["AvailabilityZone"] == f"{REGION}b"


# -- eventual consistency --------------------------------------------------------------------------


def test_a_new_instance_comes_into_view_late(cloud: Cloud) -> None:
    old = cloud.run()[0]["InstanceId"]
    cloud.faults.hide_new_for = 5
    new = cloud.run()[0]["InstanceId"]
    assert set(cloud.listed()) == {old}
    refused(lambda: cloud.listed(InstanceIds=[new]), "InvalidInstanceID.NotFound")
    refused(lambda: cloud.ec2.terminate_instances(InstanceIds=[new]), "InvalidInstanceID.NotFound")
    cloud.clock.advance(4.9)
    assert set(cloud.listed()) == {old}
    cloud.clock.advance(0.2)
    assert set(cloud.listed()) == {old, new}


def test_a_new_tag_comes_into_view_late(cloud: Cloud) -> None:
    name = cloud.run()[0]["InstanceId"]
    cloud.faults.hide_new_for = 5
    cloud.ec2.create_tags(Resources=[name], Tags=[{"Key": "k", "Value": "v"}])
    by_tag = [{"Name": "tag:k", "Values": ["v"]}]
    assert cloud.listed(Filters=by_tag) == {}
    cloud.clock.advance(5)
    assert set(cloud.listed(Filters=by_tag)) == {name}


# -- throttling, credentials, an API that is away --------------------------------------------------


def test_throttle_fault_and_what_it_spares(cloud: Cloud) -> None:
    cloud.faults.throttle = Throttle(2, 1, actions=("RunInstances",))
    cloud.run()
    cloud.run()
    refused(cloud.run, "RequestLimitExceeded")
    cloud.listed()
    cloud.clock.advance(1)
    cloud.run()
    refused(cloud.run, "RequestLimitExceeded")
    cloud.faults.clear()
    cloud.run()


def test_the_account_has_aws_own_limits() -> None:
    throttler, now = Throttler(), datetime(2025, 1, 1, tzinfo=UTC)
    passed = [throttler.allows("RunInstances", now, instances=1) for _ in range(7)]
    assert passed == [True] * 5 + [False] * 2
    assert throttler.allows("DescribeInstances", now)
    later = now + timedelta(seconds=1)
    assert [throttler.allows("RunInstances", later) for _ in range(3)] == [True, True, False]
    assert not throttler.allows("RunInstances", later + timedelta(hours=1), instances=1001)


@pytest.mark.parametrize(
    ("key", "secret"), [("AKIALABWRONG00000000", SECRET), (KEY, "wrong"), (KEY, "")]
)
def test_wrong_credentials(cloud: Cloud, key: str, secret: str) -> None:
    refused(lambda: cloud.client(key, secret or "x").describe_instances(), "AuthFailure")


def test_no_signature(cloud: Cloud) -> None:
    request = urllib.request.Request(cloud.url, b"Action=DescribeInstances&Version=2016-11-15")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert caught.value.code == 403
    assert b"MissingAuthenticationToken" in caught.value.read()


def test_changed_body_breaks_the_signature(cloud: Cloud) -> None:
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    body = b"Action=DescribeInstances&Version=2016-11-15"
    request = AWSRequest("POST", f"{cloud.url}/", data=body)
    SigV4Auth(Credentials(KEY, SECRET), "ec2", REGION).add_auth(request)
    headers = dict(request.headers)
    good = urllib.request.Request(f"{cloud.url}/", body, headers)
    with urllib.request.urlopen(good, timeout=10) as answer:  # positive control
        assert answer.status == 200
    bad = urllib.request.Request(f"{cloud.url}/", body + b"&MaxResults=5", headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(bad, timeout=10)
    assert b"AuthFailure" in caught.value.read()


def test_wrong_region(cloud: Cloud) -> None:
    refused(lambda: cloud.client(region="us-east-1").describe_instances(), "UnknownEndpoint")


def test_api_down(cloud: Cloud) -> None:
    cloud.faults.api_down = True
    with pytest.raises(ClientError) as caught:
        cloud.ec2.describe_instances()
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
    cloud.lab("faults", {"clear": True})  # the switchboard is not down
    cloud.ec2.describe_instances()


def test_launch_whose_answer_is_lost(cloud: Cloud) -> None:
    cloud.faults.launch_timeout_after_success = 1
    hurried = cloud.client(read_timeout=2)
    launch = {
        "ImageId": cloud.image,
        "InstanceType": "c5.large",
        "MinCount": 1,
        "MaxCount": 1,
        "SubnetId": cloud.subnet,
        "ClientToken": "t1",
    }
    with pytest.raises(ReadTimeoutError):
        hurried.run_instances(**launch)
    assert len(cloud.machines.on) == 1
    again = hurried.run_instances(**launch)["Instances"]
    assert [i["InstanceId"] for i in again] == [cloud.machines.on[0].id]
    assert len(cloud.machines.on) == 1


def test_unknown_action(cloud: Cloud) -> None:
    refused(cloud.ec2.describe_capacity_reservations, "InvalidAction")


# -- the switchboard over HTTP ---------------------------------------------------------------------


def test_faults_over_http(cloud: Cloud) -> None:
    shown = cloud.lab(
        "faults",
        {
            "hide_new_for": 3,
            "capacity": {"c5.large/*": 1},
            "throttle": {"capacity": 0, "refill_per_s": 0},
        },
    )
    assert cloud.faults.hide_new_for == 3.0
    assert cloud.faults.capacity == {("c5.large", "*"): 1}
    assert cloud.faults.throttle == Throttle(0, 0)
    assert shown == cloud.lab("faults")
    before = cloud.lab("faults", {"clear": True})
    cloud.faults.update(shown)
    assert cloud.faults.shown() == shown != before


@pytest.mark.parametrize(
    "wrong",
    [
        {"boot_newer": True},
        {"boot_never": "yes"},
        {"capacity": {"c5.large": "many"}},
        {"hide_new_for": "long"},
        {"throttle": {"size": 1}},
    ],
)
def test_wrong_fault_changes_nothing(cloud: Cloud, wrong: dict[str, Any]) -> None:
    before = cloud.lab("faults")
    with pytest.raises(urllib.error.HTTPError) as caught:
        cloud.lab("faults", {"hide_new_for": 9, **wrong})
    assert caught.value.code == 400
    assert json.load(caught.value)["error"]
    assert cloud.lab("faults") == before


def test_state_over_http(cloud: Cloud) -> None:
    name = cloud.run()[0]["InstanceId"]
    cloud.backend.powered_on(name)
    cloud.clock.advance(3600)
    state = cloud.lab("state")
    assert state["instances"] == {name: {"state": "running", "cost": "0.101000"}}
    cloud.lab("interrupt", {"instance": name, "notice_s": 120})
    data = cloud.backend.metadata(cloud.vpc, cloud.machines.on[0].nic.addresses[0])
    assert data is not None
    assert data.interrupted == cloud.clock() + timedelta(seconds=120)


# -- prices ----------------------------------------------------------------------------------------


def test_prices_by_boto3(cloud: Cloud) -> None:
    pricing = session().client(
        "pricing",
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        endpoint_url=cloud.url,
    )
    chosen = {
        "instanceType": "m5.large",
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "capacitystatus": "Used",
    }
    wanted = [{"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in chosen.items()]
    (entry,) = pricing.get_products(ServiceCode="AmazonEC2", Filters=wanted)["PriceList"]
    (term,) = json.loads(entry)["terms"]["OnDemand"].values()
    (dimension,) = term["priceDimensions"].values()
    assert dimension["pricePerUnit"] == {"USD": "0.1120000000"}


def test_instance_types_by_boto3(cloud: Cloud) -> None:
    from lab.cloud.types import TYPES

    found = cloud.ec2.describe_instance_types(InstanceTypes=sorted(TYPES))["InstanceTypes"]
    real = {
        t["InstanceType"]: (t["VCpuInfo"]["DefaultVCpus"], t["MemoryInfo"]["SizeInMiB"])
        for t in found
    }
    assert real == {t.name: (t.vcpus, t.memory_mb) for t in TYPES.values()}


# -- what the packet side is told ------------------------------------------------------------------


def test_protocol_47_with_and_without_ports(cloud: Cloud) -> None:
    gateway = [{"CidrIp": "198.51.100.1/32"}]
    for permission in (
        {"IpProtocol": "47", "IpRanges": gateway},
        {
            "IpProtocol": "47",
            "FromPort": -1,
            "ToPort": -1,
            "IpRanges": [{"CidrIp": "192.0.2.1/32"}],
        },
        {"IpProtocol": "icmp", "IpRanges": gateway},
    ):
        cloud.ec2.authorize_security_group_ingress(GroupId=cloud.group, IpPermissions=[permission])
    (group,) = [g for g in cloud.network.vpc(cloud.vpc).groups if g.id == cloud.group]
    found = {(p.protocol, p.cidr) for p in group.ingress}
    assert found == {("47", "198.51.100.1/32"), ("47", "192.0.2.1/32"), ("icmp", "198.51.100.1/32")}
    assert [(p.protocol, p.cidr) for p in group.egress] == [("-1", "0.0.0.0/0")]


@pytest.mark.parametrize(
    ("protocol", "ports"),
    [
        ("tcp", {}),
        ("udp", {"FromPort": 1}),
        ("tcp", {"FromPort": 9, "ToPort": 1}),
        ("tcp", {"FromPort": 1, "ToPort": 65536}),
        ("icmp", {"FromPort": 3, "ToPort": 4000}),
        ("256", {}),
        ("gre", {}),
    ],
)
def test_wrong_rules_are_refused(cloud: Cloud, protocol: str, ports: dict[str, int]) -> None:
    rule = {"IpProtocol": protocol, **ports, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    refused(
        lambda: cloud.ec2.authorize_security_group_ingress(
            GroupId=cloud.group, IpPermissions=[rule]
        ),
        "InvalidParameterValue",
    )
    (group,) = [g for g in cloud.network.vpc(cloud.vpc).groups if g.id == cloud.group]
    assert group.ingress == ()


def test_revoke_reaches_the_packets(cloud: Cloud) -> None:
    everything = [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
    cloud.ec2.revoke_security_group_egress(GroupId=cloud.group, IpPermissions=everything)
    (group,) = [g for g in cloud.network.vpc(cloud.vpc).groups if g.id == cloud.group]
    assert group.egress == ()


def test_source_dest_check_can_be_switched_off(cloud: Cloud) -> None:
    name = cloud.run()[0]["InstanceId"]
    assert cloud.network.vpc(cloud.vpc).interfaces[0].checked
    cloud.ec2.modify_instance_attribute(InstanceId=name, SourceDestCheck={"Value": False})
    assert not cloud.network.vpc(cloud.vpc).interfaces[0].checked
    cloud.ec2.modify_instance_attribute(InstanceId=name, SourceDestCheck={"Value": True})
    assert cloud.network.vpc(cloud.vpc).interfaces[0].checked


def test_auto_assigned_public_address(cloud: Cloud) -> None:
    cloud.ec2.modify_subnet_attribute(SubnetId=cloud.subnet, MapPublicIpOnLaunch={"Value": True})
    name = cloud.run()[0]["InstanceId"]
    address = cloud.listed()[name]["PublicIpAddress"]
    assert address.startswith("203.0.113.")
    assert cloud.network.vpc(cloud.vpc).interfaces[0].public == address
    cloud.ec2.terminate_instances(InstanceIds=[name])
    cloud.backend.powered_off(name)
    assert cloud.network.vpc(cloud.vpc).interfaces == ()
    assert "PublicIpAddress" not in cloud.listed()[name]


def test_elastic_address_moves(cloud: Cloud) -> None:
    open_to_internet(cloud)
    one, two = (cloud.run()[0]["InstanceId"] for _ in range(2))
    address = cloud.ec2.allocate_address(Domain="vpc")
    allocation = address["AllocationId"]

    def owners() -> list[str]:
        nics = cloud.network.vpc(cloud.vpc).interfaces
        return [n.instance for n in nics if n.public == address["PublicIp"]]

    cloud.ec2.associate_address(InstanceId=one, AllocationId=allocation)
    assert owners() == [one]
    refused(lambda: cloud.ec2.release_address(AllocationId=allocation), "InvalidIPAddress.InUse")
    cloud.ec2.associate_address(InstanceId=two, AllocationId=allocation, AllowReassociation=True)
    assert owners() == [two]
    cloud.ec2.terminate_instances(InstanceIds=[two])
    cloud.backend.powered_off(two)
    assert owners() == []
    cloud.ec2.release_address(AllocationId=allocation)
    assert cloud.ec2.describe_addresses()["Addresses"] == []


def test_elastic_address_replaces_the_automatic_one(cloud: Cloud) -> None:
    cloud.ec2.modify_subnet_attribute(SubnetId=cloud.subnet, MapPublicIpOnLaunch={"Value": True})
    name = cloud.run()[0]["InstanceId"]
    automatic = cloud.listed()[name]["PublicIpAddress"]
    address = cloud.ec2.allocate_address(Domain="vpc")
    cloud.ec2.associate_address(InstanceId=name, AllocationId=address["AllocationId"])
    assert cloud.listed()[name]["PublicIpAddress"] == address["PublicIp"] != automatic


def test_routes_and_nat_gateway(cloud: Cloud) -> None:
    open_to_internet(cloud)
    vpc = cloud.network.vpc(cloud.vpc)
    assert vpc.internet
    assert [(r.cidr, r.kind) for r in vpc.subnet(cloud.subnet).routes] == [
        ("0.0.0.0/0", "internet")
    ]
    private = cloud.ec2.create_subnet(VpcId=cloud.vpc, CidrBlock="10.20.9.0/24")["Subnet"][
        "SubnetId"
    ]
    address = cloud.ec2.allocate_address(Domain="vpc")
    nat = cloud.ec2.create_nat_gateway(SubnetId=cloud.subnet, AllocationId=address["AllocationId"])[
        "NatGateway"
    ]["NatGatewayId"]
    table = cloud.ec2.create_route_table(VpcId=cloud.vpc)["RouteTable"]["RouteTableId"]
    cloud.ec2.associate_route_table(RouteTableId=table, SubnetId=private)
    cloud.ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", NatGatewayId=nat)
    hop = cloud.run()[0]
    cloud.ec2.create_route(
        RouteTableId=table, DestinationCidrBlock="10.99.0.0/16", InstanceId=hop["InstanceId"]
    )
    vpc = cloud.network.vpc(cloud.vpc)
    assert {(r.cidr, r.kind) for r in vpc.subnet(private).routes} == {
        ("0.0.0.0/0", "nat"),
        ("10.99.0.0/16", "interface"),
    }
    assert vpc.nat_gateways[0].public == address["PublicIp"]
