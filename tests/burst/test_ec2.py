"""The EC2 provider against moto's EC2, and against each error EC2 may answer."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from burst.model import FailureClass, MachineState
from burst.providers.base import (
    LaunchRequest,
    Misconfigured,
    NoCapacity,
    ProviderError,
    QuotaExceeded,
    Throttled,
    Unreachable,
)
from burst.providers.ec2 import TERMINATE_AT_ONCE, Ec2Config, Ec2Provider

REGION = "eu-south-1"
LEASE = "0123456789abcdef" * 2


def request(lease_id: str = LEASE, user_data: str = "#!/bin/bash\n") -> LaunchRequest:
    return LaunchRequest(lease_id, "cms", "cms-aws", "c5.large", "", "cms-aws-01234567", user_data)


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        yield boto3.client("ec2", region_name=REGION)


CONFIG = Ec2Config(
    region=REGION,
    image="ami-12c6146b",  # one that moto knows
    subnet="subnet-1",
    security_groups=("sg-1",),
    types=("c5.large", "c5.xlarge"),
    site="cnaf",
    prices={"c5.large": Decimal("0.101"), "c5.xlarge": Decimal("0.202")},
)


@pytest.fixture
def config(cloud: Any) -> Ec2Config:
    vpc = cloud.create_vpc(CidrBlock="10.20.0.0/16")["Vpc"]["VpcId"]
    subnet = cloud.create_subnet(VpcId=vpc, CidrBlock="10.20.1.0/24")["Subnet"]["SubnetId"]
    group = cloud.create_security_group(GroupName="dvn", Description="dvn", VpcId=vpc)["GroupId"]
    return dataclasses.replace(CONFIG, subnet=subnet, security_groups=(group,))


@pytest.fixture
def provider(config: Ec2Config) -> Ec2Provider:
    return Ec2Provider("aws", config)


def instance(cloud: Any, name: str) -> dict[str, Any]:
    found: dict[str, Any] = cloud.describe_instances(InstanceIds=[name])["Reservations"][0]
    one: dict[str, Any] = found["Instances"][0]
    return one


def test_a_launched_machine_is_tagged_closed_and_found_again(
    cloud: Any, provider: Ec2Provider, config: Ec2Config
) -> None:
    machine = provider.launch(request())
    assert (machine.provider, machine.lease_id, machine.type) == ("aws", LEASE, "c5.large")
    assert machine.launched is not None
    assert machine.launched.tzinfo is not None
    made = instance(cloud, machine.id)
    assert {tag["Key"]: tag["Value"] for tag in made["Tags"]} == {
        "Name": "cms-aws-01234567",
        "dvn:lease": LEASE,
        "dvn:pool": "cms-aws",
        "dvn:tenant": "cms",
        "dvn:site": "cnaf",
    }
    assert made["SubnetId"] == config.subnet
    (card,) = made["NetworkInterfaces"]
    assert [group["GroupId"] for group in card["Groups"]] == list(config.security_groups)
    assert made["MetadataOptions"]["HttpTokens"] == "required"
    assert made["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    listed = provider.machines()
    assert [one.id for one in listed] == [machine.id]
    assert listed[0].state is MachineState.RUNNING
    assert listed[0].public_address, "the gateway needs an address to send packets to"


def test_what_is_asked_of_run_instances() -> None:
    asked = Recorder()
    Ec2Provider("aws", CONFIG, client=asked).launch(request(user_data="hello"))
    assert asked.last["ClientToken"] == LEASE
    assert len(asked.last["ClientToken"]) <= 64
    assert (asked.last["MinCount"], asked.last["MaxCount"]) == (1, 1)
    assert asked.last["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert asked.last["UserData"] == "hello"
    (card,) = asked.last["NetworkInterfaces"]
    assert card["AssociatePublicIpAddress"] is True
    assert card["SubnetId"] == CONFIG.subnet
    assert {tags["ResourceType"] for tags in asked.last["TagSpecifications"]} == {
        "instance",
        "volume",
    }


def test_another_sites_machines_are_not_ours(config: Ec2Config, provider: Ec2Provider) -> None:
    provider.launch(request())
    other = Ec2Provider("aws", dataclasses.replace(config, site="bari"))
    assert other.machines() == ()


def test_terminated_machines_say_when_they_ended_and_unknown_ones_are_no_error(
    provider: Ec2Provider,
) -> None:
    machine = provider.launch(request())
    provider.terminate([machine.id, "i-0123456789abcdef0"])
    (listed,) = provider.machines()
    assert listed.state is MachineState.TERMINATED
    assert listed.ended is not None
    assert abs(datetime.now(UTC) - listed.ended) < timedelta(minutes=1)


def test_offers_have_size_zone_and_price(provider: Ec2Provider) -> None:
    small, large = provider.offers()
    assert (small.type, small.cores, small.memory_mb) == ("c5.large", 2, 4096)
    assert (large.cores, large.price_per_hour) == (4, Decimal("0.202"))
    assert small.zone.startswith(REGION)


def test_a_price_that_is_not_given_comes_from_the_price_list(config: Ec2Config) -> None:
    entry = (
        '{"terms": {"OnDemand": {"a": {"priceDimensions": {"b": '
        '{"pricePerUnit": {"USD": "0.1010000000"}}}}}}}'
    )
    given = dataclasses.replace(config, types=("c5.large",), prices={})
    provider = Ec2Provider("aws", given, pricing=PriceList([entry]))
    assert provider.offers()[0].price_per_hour == Decimal("0.101")
    empty = Ec2Provider("aws", given, pricing=PriceList([]))
    with pytest.raises(Misconfigured, match="`prices`"):
        empty.offers()


def test_a_type_that_does_not_exist_is_named(config: Ec2Config) -> None:
    wrong = dataclasses.replace(config, types=("c5.gigantic",))
    with pytest.raises(Misconfigured, match=r"c5\.gigantic"):
        Ec2Provider("aws", wrong).offers()


def test_many_machines_go_in_batches() -> None:
    asked = Recorder()
    names = [f"i-{n}" for n in range(2 * TERMINATE_AT_ONCE + 1)]
    Ec2Provider("aws", CONFIG, client=asked).terminate([*names, names[0]])
    batches = [call["InstanceIds"] for call in asked.calls]
    assert [len(batch) for batch in batches] == [TERMINATE_AT_ONCE, TERMINATE_AT_ONCE, 1]
    assert sorted(name for batch in batches for name in batch) == sorted(names)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("RequestLimitExceeded", Throttled),
        ("Throttling", Throttled),
        ("ThrottlingException", Throttled),
        ("EC2ThrottledException", Throttled),
        ("InsufficientInstanceCapacity", NoCapacity),
        ("InsufficientFreeAddressesInSubnet", NoCapacity),
        ("Unsupported", NoCapacity),
        ("InstanceLimitExceeded", QuotaExceeded),
        ("VcpuLimitExceeded", QuotaExceeded),
        ("MaxSpotInstanceCountExceeded", Misconfigured),
        ("AddressLimitExceeded", QuotaExceeded),
        ("UnauthorizedOperation", Misconfigured),
        ("AuthFailure", Misconfigured),
        ("InvalidAMIID.NotFound", Misconfigured),
        ("InvalidParameterValue", Misconfigured),
        ("InternalError", Unreachable),
        ("Unavailable", Unreachable),
    ],
)
def test_each_error_is_of_its_class(code: str, kind: type[ProviderError]) -> None:
    provider = Ec2Provider("aws", CONFIG, client=Recorder(code))
    calls = (
        lambda: provider.launch(request()),
        provider.machines,
        lambda: provider.terminate(["i-1"]),
    )
    for call in calls:
        with pytest.raises(kind, match=code):
            call()


def test_throttling_is_not_no_capacity() -> None:
    assert Throttled.kind is not NoCapacity.kind
    assert Unreachable.kind is FailureClass.LOST


def test_a_token_used_with_other_parameters_finds_its_machine(
    config: Ec2Config, provider: Ec2Provider
) -> None:
    machine = provider.launch(request())
    again = Recorder("IdempotentParameterMismatch", behind=provider)
    assert Ec2Provider("aws", config, client=again).launch(request()).id == machine.id
    with pytest.raises(Unreachable, match="are not listed yet"):
        Ec2Provider("aws", config, client=again).launch(request("f" * 32))


def test_nobody_answers(tmp_path: Path) -> None:
    with closing(socket.socket()) as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    silent = Ec2Provider("aws", offline(tmp_path, endpoint))
    with pytest.raises(Unreachable, match="no answer"):
        silent.machines()


def offline(directory: Path, endpoint: str) -> Ec2Config:
    path = directory / "credentials"
    path.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    return dataclasses.replace(
        CONFIG, endpoint=endpoint, credentials=path, connect_timeout=timedelta(seconds=2)
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file"),
        ("", r"section \[default\]"),
        ("[default]\naws_access_key_id = a\n", "aws_secret_access_key"),
        ("what is this", "no section headers"),
    ],
)
def test_wrong_credentials_files_are_named(text: str | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    if text is not None:
        path.write_text(text)
    with pytest.raises(Misconfigured, match=says) as caught:
        Ec2Provider("aws", dataclasses.replace(CONFIG, credentials=path)).machines()
    assert str(path) in str(caught.value)


class Recorder:
    """Stands for boto3's client: notes what it is asked, and refuses with `code` if given."""

    def __init__(self, code: str = "", behind: Ec2Provider | None = None) -> None:
        self.code = code
        self.behind = behind
        self.calls: list[dict[str, Any]] = []

    @property
    def last(self) -> dict[str, Any]:
        return self.calls[-1]

    def _asked(self, operation: str, arguments: dict[str, Any]) -> None:
        self.calls.append(arguments)
        if self.code:
            error = {"Error": {"Code": self.code, "Message": "as told"}}
            raise ClientError(error, operation)  # type: ignore[arg-type]

    def run_instances(self, **arguments: Any) -> dict[str, Any]:
        self._asked("RunInstances", arguments)
        one = {"InstanceId": "i-1", "State": {"Name": "pending"}, "InstanceType": "c5.large"}
        return {"Instances": [one]}

    def terminate_instances(self, **arguments: Any) -> None:
        self._asked("TerminateInstances", arguments)

    def get_paginator(self, name: str) -> Any:
        if self.behind is not None:
            return self.behind._ec2().get_paginator(name)
        return self

    def paginate(self, **arguments: Any) -> list[Any]:
        self._asked("DescribeInstances", arguments)
        return []


class PriceList:
    """The Price List Query API, with these products."""

    def __init__(self, entries: list[str]) -> None:
        self.entries = entries

    def get_products(self, **_arguments: Any) -> dict[str, Any]:
        return {"PriceList": self.entries}
