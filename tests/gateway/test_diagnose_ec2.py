"""What EC2 would drop is found: security groups, routes, the source/destination check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from dvn.diagnose.findings import Health, worst
from gateway.diagnose_ec2 import Account, check_account, check_gateway

GATEWAY = "198.51.100.1"


@pytest.fixture
def client() -> Iterator[Any]:
    import boto3
    from moto import mock_aws

    with mock_aws():
        yield boto3.client(
            "ec2", region_name="eu-south-1", aws_access_key_id="x", aws_secret_access_key="y"
        )


def allow(protocol: str, low: int = -1, high: int = -1, cidr: str = f"{GATEWAY}/32") -> Any:
    return {
        "IpProtocol": protocol,
        "FromPort": low,
        "ToPort": high,
        "IpRanges": [{"CidrIp": cidr}],
    }


@pytest.fixture
def account(client: Any) -> Account:
    """An account as the how-to says it must be."""
    vpc = client.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = client.create_subnet(VpcId=vpc, CidrBlock="10.0.1.0/24")["Subnet"]["SubnetId"]
    internet = client.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    client.attach_internet_gateway(InternetGatewayId=internet, VpcId=vpc)
    table = client.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    client.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=internet)
    client.associate_route_table(RouteTableId=table, SubnetId=subnet)
    group = client.create_security_group(GroupName="dvn", Description="dvn", VpcId=vpc)["GroupId"]
    client.authorize_security_group_ingress(GroupId=group, IpPermissions=[allow("47")])
    return Account("aws", client, "cnaf", subnet, (group,), GATEWAY, 8443)


def words(found: Any) -> list[str]:
    return [f.words for f in found if f.health is not Health.OK]


def test_an_account_as_it_must_be(account: Account) -> None:
    found = [*check_account(account)]
    assert worst(found) is Health.OK, words(found)


def test_a_security_group_that_lets_no_gre_in(account: Account) -> None:
    group = account.security_groups[0]
    account.client.revoke_security_group_ingress(GroupId=group, IpPermissions=[allow("47")])
    elsewhere = allow("47", cidr="203.0.113.0/24")
    account.client.authorize_security_group_ingress(GroupId=group, IpPermissions=[elsewhere])
    assert words(check_account(account)) == [
        f"{group} do not let protocol 47 (GRE) in from the gateway {GATEWAY}"
    ]


def test_a_security_group_that_lets_no_enrolment_out(account: Account) -> None:
    group = account.security_groups[0]
    everything = allow("-1", cidr="0.0.0.0/0")
    account.client.revoke_security_group_egress(GroupId=group, IpPermissions=[everything])
    rules = [allow("47"), allow("tcp", 443, 443)]
    account.client.authorize_security_group_egress(GroupId=group, IpPermissions=rules)
    assert words(check_account(account)) == [
        f"{group} do not let TCP 8443 (enrolment) out to the gateway {GATEWAY}"
    ]


def test_a_subnet_without_a_way_out(account: Account) -> None:
    vpc = account.client.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    subnet = account.client.create_subnet(VpcId=vpc, CidrBlock="10.1.1.0/24")["Subnet"]["SubnetId"]
    assert words(check_account(replace(account, subnet=subnet))) == [
        f"{subnet} has no route to the internet"
    ]


def test_machines_of_the_site_are_looked_at(account: Account) -> None:
    made = account.client.run_instances(
        ImageId="ami-12c6146b",
        MinCount=1,
        MaxCount=1,
        SubnetId=account.subnet,
        SecurityGroupIds=list(account.security_groups),
        TagSpecifications=[
            {"ResourceType": "instance", "Tags": [{"Key": "dvn:site", "Value": "cnaf"}]}
        ],
    )
    name = made["Instances"][0]["InstanceId"]
    account.client.modify_instance_attribute(InstanceId=name, SourceDestCheck={"Value": False})
    assert any("source/destination check" in text for text in words(check_account(account)))
    assert words(check_gateway(account.client, name, routed=["cms/farm"])) == []
    account.client.modify_instance_attribute(InstanceId=name, SourceDestCheck={"Value": True})
    [finding] = check_gateway(account.client, name, routed=["cms/farm"])
    assert finding.health is Health.FAIL
    assert "--no-source-dest-check" in finding.fix
    assert words(check_gateway(account.client, name, routed=[])) == []
