"""Makes what borrowed machines need in an AWS account, once: a VPC with a public subnet, and a
security group that lets GRE in from the gateway and nothing else. Prints the lines for the site
file. Uses boto3's usual credentials; see docs/how-to/prepare-ec2.md.
"""

from __future__ import annotations

import argparse
import ipaddress
import sys
from typing import Any

GRE = "47"  # IP protocol number


def prepare(ec2: Any, gateway: str, vpc_prefix: str, subnet_prefix: str) -> dict[str, str]:
    """Make it all; `gateway` is the site's public address. Returns the ids."""

    def named(kind: str) -> list[dict[str, Any]]:
        return [{"ResourceType": kind, "Tags": [{"Key": "Name", "Value": "dvn"}]}]

    vpc = ec2.create_vpc(CidrBlock=vpc_prefix, TagSpecifications=named("vpc"))["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(
        VpcId=vpc, CidrBlock=subnet_prefix, TagSpecifications=named("subnet")
    )["Subnet"]["SubnetId"]
    internet = ec2.create_internet_gateway(TagSpecifications=named("internet-gateway"))
    internet_gateway = internet["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=internet_gateway, VpcId=vpc)
    tables = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])
    ec2.create_route(
        RouteTableId=tables["RouteTables"][0]["RouteTableId"],
        DestinationCidrBlock="0.0.0.0/0",
        GatewayId=internet_gateway,
    )
    # A new group lets everything out and nothing in.
    group = ec2.create_security_group(
        GroupName="dvn", Description="machines borrowed by dvn", VpcId=vpc
    )["GroupId"]
    from_gateway = {
        "IpProtocol": GRE,
        "FromPort": -1,
        "ToPort": -1,
        "IpRanges": [{"CidrIp": f"{gateway}/32"}],
    }
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[from_gateway])
    return {"vpc": vpc, "subnet": subnet, "security_group": group}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--region", required=True, help="such as eu-south-1")
    parser.add_argument("--gateway", required=True, help="the gateway's public IPv4 address")
    parser.add_argument("--vpc", default="10.20.0.0/16", help="its prefix (default 10.20.0.0/16)")
    parser.add_argument("--subnet", default="10.20.1.0/24", help="its prefix, in the VPC's")
    given = parser.parse_args()
    gateway = str(ipaddress.IPv4Address(given.gateway))

    import boto3

    ec2 = boto3.client("ec2", region_name=given.region)
    made = prepare(ec2, gateway, given.vpc, given.subnet)
    sys.stdout.write(
        f"region: {given.region}\nsubnet: {made['subnet']}\n"
        f"security_groups: [{made['security_group']}]\n"
    )


if __name__ == "__main__":
    main()
