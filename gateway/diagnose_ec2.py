"""Checks of the account that machines are borrowed from: what EC2 would drop. Only reading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from dvn.diagnose.findings import Finding, fail, ok, warn

_GRE = 47


@dataclass(frozen=True)
class Account:
    """What is asked about: a provider's name and client, its settings, and where the gateway is."""

    name: str
    client: Any
    site: str
    subnet: str
    security_groups: tuple[str, ...]
    gateway: str  # its address as EC2 sees it
    enrol_port: int


def check_account(account: Account) -> Iterator[Finding]:
    """Security groups, the way to the internet, and the machines that are there."""
    yield from _groups(account)
    yield from _route(account)
    yield from _machines(account)


def _groups(account: Account) -> Iterator[Finding]:
    answer = account.client.describe_security_groups(GroupIds=list(account.security_groups))
    groups = answer["SecurityGroups"]
    names = ", ".join(account.security_groups)
    check = f"{account.name}: security groups"
    into = [rule for group in groups for rule in group.get("IpPermissions", ())]
    out = [rule for group in groups for rule in group.get("IpPermissionsEgress", ())]
    before = len(account.security_groups)
    wrong = 0
    for rules, direction, protocol, port, fix in (
        (into, "in from", str(_GRE), None, "ingress"),
        (out, "out to", str(_GRE), None, "egress"),
        (out, "out to", "tcp", account.enrol_port, "egress"),
    ):
        if any(_allows(rule, protocol, port, account.gateway) for rule in rules):
            continue
        wrong += 1
        what = "protocol 47 (GRE)" if port is None else f"TCP {port} (enrolment)"
        ports = "" if port is None else f" --port {port}"
        yield fail(
            check,
            f"{names} do not let {what} {direction} the gateway {account.gateway}",
            f"aws ec2 authorize-security-group-{fix} --group-id {account.security_groups[0]} "
            f"--protocol {protocol}{ports} --cidr {account.gateway}/32",
        )
    if len(groups) < before:
        yield fail(check, f"not all of {names} are there", "write the ids that are")
    elif not wrong:
        yield ok(check, f"{names} let GRE and enrolment pass to and from {account.gateway}")


def _allows(rule: Mapping[str, Any], protocol: str, port: int | None, address: str) -> bool:
    if str(rule.get("IpProtocol")) not in ("-1", protocol):
        return False
    low, high = rule.get("FromPort", -1), rule.get("ToPort", -1)
    if port is not None and rule.get("IpProtocol") != "-1" and not low <= port <= high:
        return False
    ranges = [ip_network(one["CidrIp"], strict=False) for one in rule.get("IpRanges", ())]
    return any(ip_address(address) in network for network in ranges if network.version == 4)


def _route(account: Account) -> Iterator[Finding]:
    """GRE passes an internet gateway; a NAT gateway passes TCP, UDP and ICMP only."""
    check = f"{account.name}: route"
    tables = _tables(account, "association.subnet-id", account.subnet)
    if not tables:  # then the VPC's main table holds
        subnets = account.client.describe_subnets(SubnetIds=[account.subnet])["Subnets"]
        vpc = subnets[0]["VpcId"] if subnets else ""
        tables = _tables(account, "vpc-id", vpc, main=True)
    routes = [
        route
        for table in tables
        for route in table.get("Routes", ())
        if route.get("DestinationCidrBlock") == "0.0.0.0/0"
    ]
    if any(str(route.get("GatewayId", "")).startswith("igw-") for route in routes):
        yield ok(check, f"{account.subnet} reaches the internet by an internet gateway")
    elif any(route.get("NatGatewayId") for route in routes):
        yield fail(
            check,
            f"{account.subnet} reaches the internet by a NAT gateway, which passes no GRE",
            "use a subnet with a route to an internet gateway, and public addresses",
        )
    else:
        yield fail(
            check,
            f"{account.subnet} has no route to the internet",
            "add a default route to an internet gateway to its route table",
        )


def _tables(
    account: Account, filter_: str, value: str, *, main: bool = False
) -> Sequence[Mapping[str, Any]]:
    filters = [{"Name": filter_, "Values": [value]}]
    if main:
        filters.append({"Name": "association.main", "Values": ["true"]})
    found: Sequence[Mapping[str, Any]] = account.client.describe_route_tables(Filters=filters)[
        "RouteTables"
    ]
    return found


def _machines(account: Account) -> Iterator[Finding]:
    """What runs there of ours: its groups, and the source/destination check."""
    check = f"{account.name}: machines"
    filters = [
        {"Name": "tag:dvn:site", "Values": [account.site]},
        {"Name": "instance-state-name", "Values": ["pending", "running"]},
    ]
    count = 0
    for page in account.client.get_paginator("describe_instances").paginate(Filters=filters):
        for reservation in page["Reservations"]:
            for machine in reservation["Instances"]:
                count += 1
                yield from _machine(account, check, machine)
    yield ok(check, f"{count} of this site run there")


def _machine(account: Account, check: str, machine: Mapping[str, Any]) -> Iterator[Finding]:
    name = machine["InstanceId"]
    groups = {group["GroupId"] for group in machine.get("SecurityGroups", ())}
    if groups and not groups & set(account.security_groups):
        yield warn(
            check,
            f"{name} is in {', '.join(sorted(groups))}, not in the groups of the site file",
            "return it, or put it into the group that lets GRE pass",
        )
    if not machine.get("PublicIpAddress") and machine["State"]["Name"] == "running":
        yield fail(
            check,
            f"{name} has no public address: no tunnel can reach it through the internet",
            "public_address: true, or an Elastic IP",
        )
    if machine.get("SourceDestCheck") is False:
        yield warn(
            check,
            f"the source/destination check of {name} is off: it may send from any address",
            f"aws ec2 modify-instance-attribute --instance-id {name} --source-dest-check "
            "(tunnels work with it)",
        )


def check_gateway(client: Any, instance: str, *, routed: Sequence[str]) -> Iterator[Finding]:
    """Of a gateway that is itself an EC2 instance. `routed`: networks that leave it with their own
    addresses."""
    answer = client.describe_instance_attribute(InstanceId=instance, Attribute="sourceDestCheck")
    checked = answer["SourceDestCheck"]["Value"]
    check = "gateway: source/destination check"
    if checked and routed:
        yield fail(
            check,
            f"it is on, and EC2 drops what {', '.join(routed)} send untranslated",
            f"aws ec2 modify-instance-attribute --instance-id {instance} --no-source-dest-check",
        )
    else:
        yield ok(check, "on, and all that leaves has the gateway's address" if checked else "off")
