"""The lab EC2 on packets: what EC2 would pass passes, what EC2 would drop is dropped.

The first site: the gateway `gw` 198.51.100.1 - internet router - VPC 10.20.0.0/16.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from lab.cloud import CloudSite, LabCloud
from lab.host import Host
from lab.hosts import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

GATEWAY = "198.51.100.1"
ANYWHERE = [{"CidrIp": "0.0.0.0/0"}]


def until(condition: Callable[[], object], what: str, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout:g} s for {what}"
        time.sleep(0.05)


def pings(host: Host, address: str, *options: str, count: int = 2) -> bool:
    """Whether any of `count` echo requests is answered within 1 s."""
    command = ("ping", "-n", "-q", "-c", str(count), "-i", "0.2", "-W", "1", *options, address)
    return host.run(*command, check=False).returncode == 0


def echoes(host: Host) -> int:
    """ICMP echo requests that reached the host (/proc/net/snmp)."""
    names, values = (
        line.split() for line in host.read("/proc/1/net/snmp").splitlines() if "Icmp:" in line
    )
    return int(values[names.index("InEchos")])


@dataclass
class World:
    cloud: LabCloud
    gw: Host
    inet: Host
    site: CloudSite
    ec2: Any

    def launch(self, **changes: Any) -> str:
        options: dict[str, Any] = {
            "ImageId": self.site.image,
            "InstanceType": "t3.micro",
            "MinCount": 1,
            "MaxCount": 1,
            "SubnetId": self.site.subnet,
            "SecurityGroupIds": [self.site.security_group],
            **changes,
        }
        (instance,) = self.ec2.run_instances(**options)["Instances"]
        return str(instance["InstanceId"])

    def running(self, **changes: Any) -> str:
        name = self.launch(**changes)
        until(lambda: self.state(name) == "running", f"{name} to run")
        return name

    def described(self, name: str) -> dict[str, Any]:
        answer = self.ec2.describe_instances(InstanceIds=[name])
        found: dict[str, Any] = answer["Reservations"][0]["Instances"][0]
        return found

    def state(self, name: str) -> str:
        """Not by boto3: a loop that asks it would take the machine from those who boot."""
        return self.cloud.backend.states()[name]

    def host(self, name: str) -> Host:
        host = self.cloud.instances[name].host
        assert host is not None
        return host

    def public(self, name: str) -> str:
        return str(self.described(name)["PublicIpAddress"])

    def private(self, name: str) -> str:
        return str(self.described(name)["PrivateIpAddress"])

    def end(self, *names: str) -> None:
        self.ec2.terminate_instances(InstanceIds=list(names))
        until(lambda: all(self.state(n) == "terminated" for n in names), "the instances to end")

    def tunnel(self, name: str, number: int, remote: str) -> str:
        """gretap between the instance (.2) and the gateway (.1); returns the prefix."""
        inner = f"10.9.{number}"
        for host, device, local, peer, last in (
            (self.host(name), "dvn0", self.private(name), GATEWAY, 2),
            (self.gw, f"t{number}", GATEWAY, remote, 1),
        ):
            host.script(
                f"ip link add {device} type gretap local {local} remote {peer} key {number}\n"
                f"ip address add {inner}.{last}/24 dev {device}\nip link set {device} up"
            )
        return inner

    def group(self, *ingress: dict[str, Any]) -> str:
        """A security group with everything out and this in."""
        number = len(self.ec2.describe_security_groups()["SecurityGroups"])
        group = self.ec2.create_security_group(
            GroupName=f"test-{number}", Description="test", VpcId=self.site.vpc
        )["GroupId"]
        if ingress:
            self.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=list(ingress))
        return str(group)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab(core_share=0.5) as lab:
        inet = lab.host("inet", sysctls={"net.ipv4.ip_forward": "1"})
        gw = lab.host("gw")
        lab.link(gw, "wan0", inet, "gw")
        gw.script(
            "ip address add 198.51.100.1/24 dev wan0; ip route add default via 198.51.100.254"
        )
        inet.run("ip", "address", "add", "198.51.100.254/24", "dev", "gw")
        with LabCloud(lab, inet) as cloud:
            site = cloud.bootstrap()
            yield World(cloud, gw, inet, site, cloud.client())
            assert cloud.leftovers() == [], "a test left instances behind"
        assert set(lab.hosts) == {"inet", "gw", "ec2"}


ECHO_IN = {"IpProtocol": "icmp", "FromPort": 8, "ToPort": -1, "IpRanges": ANYWHERE}
GRE_IN = {"IpProtocol": "47", "IpRanges": [{"CidrIp": f"{GATEWAY}/32"}]}


def test_boot_user_data_and_metadata(world: World) -> None:
    script = """#!/bin/bash
imds=http://169.254.169.254/latest
t=$(curl -sf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' $imds/api/token)
for p in instance-id local-ipv4 public-ipv4 instance-type placement/availability-zone; do
  echo "$p=$(curl -sf -H "X-aws-ec2-metadata-token: $t" $imds/meta-data/$p)"
done
echo "v1=$(curl -s -o /dev/null -w '%{http_code}' $imds/meta-data/instance-id)"
echo "none=$(curl -s -o /dev/null -w '%{http_code}' -H "X-aws-ec2-metadata-token: $t" \
    $imds/meta-data/spot/instance-action)"
echo "user=$(id -un) host=$(hostname)"
sleep 300 & disown
"""
    name = world.running(
        UserData=script, MetadataOptions={"HttpTokens": "required"}, InstanceType="c5.large"
    )
    machine = world.cloud.instances[name]
    until(lambda: "user data ended with" in machine.console(), "user data to end")
    told = machine.console()
    seen = dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
    address = world.private(name)
    assert seen["instance-id"] == name
    assert seen["local-ipv4"] == address
    assert seen["public-ipv4"] == world.public(name)
    assert seen["instance-type"] == "c5.large"
    assert seen["placement/availability-zone"] == "eu-south-1a"
    assert seen["v1"] == "401"
    assert seen["none"] == "404"
    assert seen["user"] == f"root host=ip-{address.replace('.', '-')}"
    assert "ended with 0" in told
    # what the script left in the background lives on
    assert world.host(name).run("pgrep", "-f", "sleep 300", check=False).returncode == 0

    world.cloud.interrupt(name, timedelta(seconds=2))
    until(lambda: world.state(name) == "terminated", "the interruption to be carried out")
    described = world.described(name)
    assert described["State"]["Name"] == "terminated"
    assert "ended with 0" in world.cloud.console(name)  # kept for who wonders
    assert described["StateReason"]["Code"] == "Server.SpotInstanceTermination"


def test_metadata_hop_limit(world: World) -> None:
    """A container behind the instance gets no token unless the limit lets it."""
    name = world.running()
    host = world.host(name)
    host.script(
        """
        ip netns add box
        ip link add c0 type veth peer name c1 netns box
        ip address add 172.17.0.1/24 dev c0; ip link set c0 up
        ip -n box address add 172.17.0.2/24 dev c1; ip -n box link set c1 up
        ip -n box route add default via 172.17.0.1
        echo 1 > /proc/sys/net/ipv4/ip_forward
        nft add table ip nat
        nft 'add chain ip nat post { type nat hook postrouting priority srcnat; }'
        nft add rule ip nat post oifname ens5 masquerade
        """
    )
    token = "curl -sf -m 3 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "
    token += "http://169.254.169.254/latest/api/token"
    inside = ("nsenter", "--net=/run/netns/box", "sh", "-c", token)
    assert host.run("sh", "-c", token).stdout  # positive control: the instance itself
    assert host.run(*inside, check=False).returncode == 28  # curl's time-out
    world.ec2.modify_instance_metadata_options(InstanceId=name, HttpPutResponseHopLimit=2)
    assert host.run(*inside).stdout
    world.end(name)


def test_security_group_and_mtu_toward_the_internet(world: World) -> None:
    group = world.group()
    name = world.running(SecurityGroupIds=[group])
    host, public = world.host(name), world.public(name)
    assert pings(host, GATEWAY, "-M", "do", "-s", "1472")  # out, and the answers in: tracked
    result = host.run("ping", "-n", "-c2", "-W1", "-M", "do", "-s", "1473", GATEWAY, check=False)
    assert result.returncode == 1
    assert "mtu = 1500" in result.stdout or "mtu=1500" in result.stdout + result.stderr
    assert not pings(world.gw, public)
    world.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[ECHO_IN])
    assert pings(world.gw, public)
    world.ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[ECHO_IN])
    assert not pings(world.gw, public)
    world.end(name)


def test_gre_needs_the_rule_and_passes_one_to_one_nat(world: World) -> None:
    """An instance that is silent itself, and may not send GRE: only the rule lets it in."""
    with_rule = world.running()
    silent = world.group(ECHO_IN)
    everything = [{"IpProtocol": "-1", "IpRanges": ANYWHERE}]
    world.ec2.revoke_security_group_egress(GroupId=silent, IpPermissions=everything)
    without = world.running(SecurityGroupIds=[silent])
    for number, (name, expected) in enumerate([(with_rule, True), (without, False)], start=1):
        inner = world.tunnel(name, number, world.public(name))
        assert pings(world.gw, f"{inner}.2", count=3) is expected
        assert pings(world.host(name), f"{inner}.1", count=3) is expected
    world.ec2.authorize_security_group_ingress(GroupId=silent, IpPermissions=[GRE_IN])
    assert pings(world.gw, "10.9.2.2", count=3)
    world.end(with_rule, without)


def test_between_instances(world: World) -> None:
    """A rule that names a group lets in that group's members and nobody else; MTU 9001."""
    clients = world.group()
    servers = world.group({**ECHO_IN, "IpRanges": [], "UserIdGroupPairs": [{"GroupId": clients}]})
    client = world.running(SecurityGroupIds=[clients])
    server = world.running(SecurityGroupIds=[servers])
    other = world.running()
    address = world.private(server)
    assert pings(world.host(client), address, "-M", "do", "-s", str(9001 - 28))
    assert not pings(world.host(other), address)
    assert not pings(world.host(server), world.private(client))

    # Source check: the receiver would take the packet, had it come.
    world.ec2.authorize_security_group_ingress(GroupId=servers, IpPermissions=[ECHO_IN])
    assert pings(world.host(other), address)
    sender = world.host(client)
    sender.run("ip", "address", "add", "10.99.0.1/32", "dev", "lo")
    before = echoes(world.host(server))
    assert not pings(sender, address, "-I", "10.99.0.1")
    assert echoes(world.host(server)) == before
    world.ec2.modify_instance_attribute(InstanceId=client, SourceDestCheck={"Value": False})
    assert not pings(sender, address, "-I", "10.99.0.1")  # nobody knows a way back
    assert echoes(world.host(server)) == before + 2

    # No broadcast, and nobody answers ARP for an address that no instance has.
    assert not pings(sender, "10.20.1.255", "-b")
    assert echoes(world.host(server)) == before + 2
    nobody = sender.run("ping", "-n", "-c1", "-W3", "10.20.1.200", check=False)
    assert nobody.returncode == 1
    neighbours = sender.run("ip", "neigh", "show", "10.20.1.200").stdout
    assert "lladdr" not in neighbours
    world.end(client, server, other)


def test_destination_check_and_a_route_to_an_instance(world: World) -> None:
    """A route table that names an instance works only when its check is off."""
    group = world.group(ECHO_IN)
    middle = world.running(SecurityGroupIds=[group])
    other = world.running(SecurityGroupIds=[group])
    world.host(middle).run("ip", "address", "add", "10.99.1.1/32", "dev", "lo")
    tables = world.ec2.describe_route_tables(
        Filters=[{"Name": "vpc-id", "Values": [world.site.vpc]}]
    )
    table = tables["RouteTables"][0]["RouteTableId"]
    route = {"RouteTableId": table, "DestinationCidrBlock": "10.99.1.0/24"}
    world.ec2.create_route(**route, InstanceId=middle)
    assert not pings(world.host(other), "10.99.1.1")
    assert echoes(world.host(middle)) == 0
    world.ec2.modify_instance_attribute(InstanceId=middle, SourceDestCheck={"Value": False})
    assert pings(world.host(other), "10.99.1.1")
    world.ec2.delete_route(**route)
    assert not pings(world.host(other), "10.99.1.1")
    world.end(middle, other)


def test_elastic_address_moves_with_its_connections(world: World) -> None:
    group = world.group(ECHO_IN, GRE_IN)
    one, two = (world.running(SecurityGroupIds=[group]) for _ in range(2))
    address = world.ec2.allocate_address(Domain="vpc")
    public, allocation = address["PublicIp"], address["AllocationId"]
    assert not pings(world.gw, public)
    for name in (one, two):
        world.ec2.associate_address(
            InstanceId=name, AllocationId=allocation, AllowReassociation=True
        )
        before = {n: echoes(world.host(n)) for n in (one, two)}
        # the same echo id each time: a tracked connection would still lead to the former owner
        assert pings(world.gw, public, "-e", "77")
        assert {n: echoes(world.host(n)) - before[n] for n in (one, two)} == {
            n: 2 if n == name else 0 for n in (one, two)
        }
    world.end(one, two)
    assert not pings(world.gw, public)
    world.ec2.release_address(AllocationId=allocation)
    assert public not in world.inet.run("ip", "route").stdout


def test_nat_gateway_passes_icmp_and_tcp_but_not_gre(world: World) -> None:
    ec2 = world.ec2
    subnet = ec2.create_subnet(VpcId=world.site.vpc, CidrBlock="10.20.2.0/24")["Subnet"]["SubnetId"]
    address = ec2.allocate_address(Domain="vpc")
    nat = ec2.create_nat_gateway(SubnetId=world.site.subnet, AllocationId=address["AllocationId"])[
        "NatGateway"
    ]["NatGatewayId"]
    table = ec2.create_route_table(VpcId=world.site.vpc)["RouteTable"]["RouteTableId"]
    ec2.associate_route_table(RouteTableId=table, SubnetId=subnet)
    group = world.group(ECHO_IN, GRE_IN)
    private = world.running(SubnetId=subnet, SecurityGroupIds=[group])
    public = world.running(SecurityGroupIds=[group])
    assert not pings(world.host(private), GATEWAY)  # no way out yet
    ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", NatGatewayId=nat)
    assert pings(world.host(private), GATEWAY)
    assert pings(world.host(private), world.private(public))  # inside, the router routes
    reach = "exec 3<>/dev/tcp/203.0.113.250/4566"
    world.host(private).run("bash", "-c", reach, timeout=10)
    for number, (name, expected) in enumerate([(public, True), (private, False)], start=11):
        remote = world.public(name) if name == public else address["PublicIp"]
        inner = world.tunnel(name, number, remote)
        assert pings(world.host(name), f"{inner}.1", count=3) is expected
    world.end(private, public)


def test_no_route_no_internet(world: World) -> None:
    """A subnet whose table has no route out is closed, public address or not."""
    ec2 = world.ec2
    subnet = ec2.create_subnet(VpcId=world.site.vpc, CidrBlock="10.20.3.0/24")["Subnet"]["SubnetId"]
    table = ec2.create_route_table(VpcId=world.site.vpc)["RouteTable"]["RouteTableId"]
    ec2.associate_route_table(RouteTableId=table, SubnetId=subnet)
    ec2.modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": True})
    name = world.running(SubnetId=subnet, SecurityGroupIds=[world.group(ECHO_IN)])
    assert not pings(world.host(name), GATEWAY)
    assert not pings(world.gw, world.public(name))
    ec2.create_route(
        RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=world.site.internet_gateway
    )
    assert pings(world.host(name), GATEWAY)
    assert pings(world.gw, world.public(name))
    world.end(name)


@pytest.mark.parametrize("command", ["shutdown -h now", "kill"])
def test_shutdown_from_inside_terminates(world: World, command: str) -> None:
    name = world.running(InstanceInitiatedShutdownBehavior="terminate")
    host = world.host(name)
    if command == "kill":
        host.kill()  # its pid 1 dies, as in a crash
    else:
        host.run(*command.split())
    until(lambda: world.state(name) == "terminated", "the instance to end")
    assert host.name not in world.cloud.lab.hosts
    assert not host.alive
    assert name not in world.cloud.instances


def test_shutdown_from_inside_stops_and_start_does_not_repeat_user_data(world: World) -> None:
    name = world.running(
        InstanceInitiatedShutdownBehavior="stop", UserData="#!/bin/sh\nshutdown -h now\n"
    )
    until(lambda: world.state(name) == "stopped", "the instance to stop")
    world.ec2.start_instances(InstanceIds=[name])
    until(lambda: world.state(name) == "running", "the instance to run again")
    assert pings(world.host(name), GATEWAY)
    world.end(name)


def test_terminate_leaves_nothing(world: World) -> None:
    name = world.running()
    host, public = world.host(name), world.public(name)
    assert public in world.inet.run("ip", "route").stdout
    spent = world.cloud.cost(name)
    assert spent > 0
    world.end(name)
    assert host.name not in world.cloud.lab.hosts
    assert public not in world.inet.run("ip", "route").stdout
    assert world.cloud.cost(name) == spent  # within the first minute: charged as one
    router = world.cloud.fabric.router(world.site.vpc).host
    links = [line.split("@")[0] for line in router.run("ip", "-br", "link").stdout.splitlines()]
    assert [link for link in links if link.startswith("v")] == []


def test_terminate_at_once(world: World) -> None:
    names = [world.launch() for _ in range(2)]
    world.end(*names)
    assert not any(name.startswith("ip-") for name in world.cloud.lab.hosts)


def test_faults_of_the_boot(world: World) -> None:
    faults = world.cloud.faults
    faults.boot_never = True
    never = world.launch()
    faults.clear()
    faults.user_data_fails = True
    fails = world.running(UserData="#!/bin/sh\ntouch /root/ran\n")
    until(lambda: "ended with 1" in world.cloud.instances[fails].console(), "user data to fail")
    faults.clear()
    faults.guest_hangs = True
    hangs = world.running(UserData="#!/bin/sh\ntouch /root/ran\n")
    faults.clear()
    fine = world.running(UserData="#!/bin/sh\ntouch /root/ran\n")
    until(lambda: "ended with 0" in world.cloud.instances[fine].console(), "user data to run")
    ran = ("test", "-e", "/root/ran")
    assert world.host(fine).run(*ran, check=False).returncode == 0
    assert world.host(fails).run(*ran, check=False).returncode == 1
    assert world.host(hangs).run(*ran, check=False).returncode == 1
    assert world.state(never) == "pending"
    world.end(never, fails, hangs, fine)


def test_other_hosts_reach_the_api(world: World) -> None:
    probe = f"curl -s -m 20 -o /dev/null -w '%{{http_code}}' {world.cloud.endpoint}/_lab/state"
    assert world.gw.run("sh", "-c", probe).stdout == "200"
