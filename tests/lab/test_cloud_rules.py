"""The pure parts of the lab EC2: rules as text, metadata, pools, bills, switches, connections."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.cloud import conntrack
from lab.cloud.errors import ApiError
from lab.cloud.faults import Faults, Throttle
from lab.cloud.imds import TOKEN_HEADER, TTL_HEADER, MetadataService
from lab.cloud.instance import cloud_init
from lab.cloud.ledger import Ledger
from lab.cloud.metadata import Metadata, lookup, tree
from lab.cloud.network import (
    Group,
    Interface,
    NatGateway,
    Permission,
    Route,
    Subnet,
    Vpc,
    compile_rules,
    hops,
    internet_targets,
    public_addresses,
)
from lab.cloud.pool import AddressPool, PoolEmptyError
from lab.cloud.query import with_ports
from lab.cloud.throttle import Bucket

NOW = datetime(2025, 1, 1, tzinfo=UTC)
OUT = Route("0.0.0.0/0", "internet")


def nic(number: int, subnet: str = "subnet-a", **changes: object) -> Interface:
    base = Interface(
        id=f"eni-{number:017x}",
        instance=f"i-{number}",
        subnet=subnet,
        mac=f"02:00:00:00:00:{number:02x}",
        addresses=(f"10.20.1.{number}",),
        groups=("sg-1",),
        public=f"203.0.113.{number}",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


PLAIN = Group("sg-1")


def vpc(*nics: Interface, group: Group = PLAIN, **changes: object) -> Vpc:
    base = Vpc(
        "vpc-1",
        ("10.20.0.0/16",),
        internet=True,
        subnets=(Subnet("subnet-a", "10.20.1.0/24", (OUT,)),),
        groups=(group,),
        interfaces=nics,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def chain(text: str, name: str) -> list[str]:
    """The rules of one chain."""
    lines = text.splitlines()
    start = lines.index(f"\tchain {name} {{")
    return [line.strip() for line in lines[start + 1 : lines.index("\t}", start)]]


# -- security group rules --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("permission", "rule"),
    [
        (Permission("-1", cidr="0.0.0.0/0"), "accept"),
        (Permission("-1", cidr="10.0.0.0/8"), "ip saddr 10.0.0.0/8 accept"),
        (Permission("-1", cidr="10.1.2.3/8"), "ip saddr 10.0.0.0/8 accept"),
        (
            Permission("47", -1, -1, "198.51.100.1/32"),
            "ip saddr 198.51.100.1/32 ip protocol 47 accept",
        ),
        (Permission("50", cidr="0.0.0.0/0"), "ip protocol 50 accept"),
        (Permission("tcp", 22, 22, "0.0.0.0/0"), "tcp dport 22 accept"),
        (Permission("6", 22, 22, "0.0.0.0/0"), "tcp dport 22 accept"),
        (Permission("tcp", 1, 9, "10.0.0.0/8"), "ip saddr 10.0.0.0/8 tcp dport 1-9 accept"),
        (Permission("udp", 0, 65535, "0.0.0.0/0"), "ip protocol udp accept"),
        (Permission("icmp", -1, -1, "0.0.0.0/0"), "ip protocol icmp accept"),
        (Permission("1", 8, -1, "0.0.0.0/0"), "icmp type 8 accept"),
        (Permission("icmp", 3, 4, "0.0.0.0/0"), "icmp type 3 icmp code 4 accept"),
        (Permission("-1", group="sg-1"), "ip saddr { 10.20.1.5, 10.20.1.6 } accept"),
    ],
)
def test_permission(permission: Permission, rule: str) -> None:
    text = compile_rules(vpc(nic(5), nic(6), group=Group("sg-1", ingress=(permission,))))
    assert [" ".join(r.split()) for r in chain(text, "sg_1_in")] == [rule]
    outward = compile_rules(vpc(nic(5), nic(6), group=Group("sg-1", egress=(permission,))))
    assert chain(outward, "sg_1_out") == [
        r.replace("saddr", "daddr") for r in chain(text, "sg_1_in")
    ]


def test_rule_that_names_an_empty_group_lets_nobody_in() -> None:
    text = compile_rules(vpc(group=Group("sg-1", ingress=(Permission("-1", group="sg-9"),))))
    assert chain(text, "sg_1_in") == []


def test_interface_without_groups_gets_nothing() -> None:
    text = compile_rules(vpc(nic(5, groups=("sg-unknown",))))
    device = nic(5).device
    assert chain(text, f"in_{device}") == chain(text, f"out_{device}") == []


def test_every_hook_that_forwards_is_closed_by_default() -> None:
    text = compile_rules(vpc(nic(5)))
    for name in ("arriving", "to_router", "sender_groups", "receiver_groups", "route_tables"):
        assert "policy drop;" in chain(text, name)[0]


def test_device_names_fit_and_differ() -> None:
    names = {nic(n << 20).device for n in range(1, 50)}
    assert len(names) == 49
    assert all(len(name) <= 15 for name in names)


# -- gateways --------------------------------------------------------------------------------------


def test_public_address_needs_a_gateway_and_a_route() -> None:
    assert internet_targets(vpc(nic(5))) == {"203.0.113.5": "10.20.1.5"}
    assert internet_targets(vpc(nic(5), internet=False)) == {}
    assert internet_targets(vpc(nic(5, public=None))) == {}
    closed = (Subnet("subnet-a", "10.20.1.0/24"),)
    assert internet_targets(vpc(nic(5), subnets=closed)) == {}


def nat_vpc(*, way_out: bool = True) -> Vpc:
    return vpc(
        nic(5, "subnet-b", public=None),
        subnets=(
            Subnet("subnet-a", "10.20.1.0/24", (OUT,) if way_out else ()),
            Subnet("subnet-b", "10.20.2.0/24", (Route("0.0.0.0/0", "nat", "nat-1"),)),
        ),
        nat_gateways=(NatGateway("nat-1", "subnet-a", "203.0.113.99"),),
    )


def test_nat_gateway_takes_three_protocols() -> None:
    text = compile_rules(nat_vpc())
    first, *rest = chain(text, "subnet_b_routes")
    assert first == "ip protocol { icmp, tcp, udp } meta mark set 0x10001 accept"
    assert set(rest) == {"drop"}
    assert 'oifname "igw" meta mark 0x10001 snat to 203.0.113.99' in chain(text, "to_internet")
    assert public_addresses(nat_vpc()) == {"203.0.113.99"}


def test_nat_gateway_in_a_closed_subnet_is_of_no_use() -> None:
    assert public_addresses(nat_vpc(way_out=False)) == frozenset()
    assert set(chain(compile_rules(nat_vpc(way_out=False)), "subnet_b_routes")) == {"drop"}


def test_longest_prefix_first() -> None:
    routes = (OUT, Route("192.0.2.0/24", "blackhole"))
    text = compile_rules(vpc(nic(5), subnets=(Subnet("subnet-a", "10.20.1.0/24", routes),)))
    assert chain(text, "subnet_a_routes")[:2] == [
        "ip daddr 192.0.2.0/24 drop",
        "ip saddr @addressed accept",
    ]


def test_route_to_an_interface() -> None:
    routes = (OUT, Route("10.99.0.0/16", "interface", nic(6).id))
    with_hop = vpc(nic(5), nic(6), subnets=(Subnet("subnet-a", "10.20.1.0/24", routes),))
    (hop,) = hops(with_hop)
    assert (hop.device, hop.address) == (nic(6).device, "10.20.1.6")
    assert chain(compile_rules(with_hop), "steering")[-1].endswith(
        f"ip daddr 10.99.0.0/16 meta mark set {hop.mark:#x}"
    )
    assert hops(replace(with_hop, interfaces=(nic(5),))) == ()  # its instance is gone


def _needs_nft() -> None:
    if os.geteuid() != 0 or not shutil.which("nft") or not shutil.which("unshare"):
        pytest.skip("needs root, nft and unshare")


def _aws_takes(permission: Permission) -> bool:
    try:
        with_ports(
            {
                "Action": "AuthorizeSecurityGroupIngress",
                "IpPermissions.1.IpProtocol": permission.protocol,
                "IpPermissions.1.FromPort": str(permission.from_port),
                "IpPermissions.1.ToPort": str(permission.to_port),
            }
        )
    except ApiError:
        return False
    return True


permissions = st.builds(
    Permission,
    st.sampled_from(["-1", "47", "50", "tcp", "udp", "icmp", "6", "1"]),
    st.sampled_from([-1, 0, 8, 22]),
    st.sampled_from([-1, 22, 4000, 65535]),
    st.sampled_from(["0.0.0.0/0", "198.51.100.1/32", "10.0.0.0/8"]),
).filter(_aws_takes)
some_groups = st.lists(permissions, max_size=4).map(tuple)
targets = st.sampled_from(
    [OUT, Route("0.0.0.0/0", "nat", "nat-1"), Route("10.99.0.0/16", "interface", nic(6).id),
     Route("192.0.2.0/24", "blackhole")]
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some_groups, some_groups, st.lists(targets, max_size=3), st.booleans(), st.integers(0, 3))
def test_the_kernel_takes_every_ruleset(
    ingress: tuple[Permission, ...],
    egress: tuple[Permission, ...],
    routes: list[Route],
    internet: bool,
    count: int,
) -> None:
    _needs_nft()
    made = vpc(
        *(nic(n, checked=n % 2 == 0, public=None if n == 6 else nic(n).public)
          for n in range(5, 5 + count)),
        group=Group("sg-1", ingress, egress),
        internet=internet,
        subnets=(Subnet("subnet-a", "10.20.1.0/24", tuple(routes)),
                 Subnet("subnet-b", "10.20.2.0/24", (OUT,))),
        nat_gateways=(NatGateway("nat-1", "subnet-b", "203.0.113.99"),),
    )  # fmt: skip
    checked = subprocess.run(
        ["unshare", "--net", "nft", "--check", "--file", "-"],
        input=compile_rules(made),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


# -- metadata --------------------------------------------------------------------------------------

ME = Metadata(
    instance="i-1",
    type="c5.large",
    image="ami-1",
    zone="eu-south-1a",
    hostname="ip-127-0-0-1.eu-south-1.compute.internal",
    mac="02:00:00:00:00:01",
    private_address="127.0.0.1",
    public_address="203.0.113.5",
    user_data=b"#!/bin/sh\n\xff\n",
)


def test_metadata_tree() -> None:
    items = tree(ME)
    assert lookup(items, "meta-data/local-ipv4") == b"127.0.0.1"
    assert lookup(items, "meta-data/public-ipv4") == b"203.0.113.5"
    assert lookup(items, "meta-data/placement/region") == b"eu-south-1"
    assert lookup(items, "meta-data/public-keys/") == b""
    assert lookup(items, "user-data") == ME.user_data
    assert lookup(items, "meta-data/spot/instance-action") is None
    assert lookup(items, "") == b"dynamic/\nmeta-data/\nuser-data"
    listing = (lookup(items, "meta-data/") or b"").decode().split("\n")
    assert {"instance-id", "placement/", "network/", "local-ipv4"} <= set(listing)
    bare = tree(replace(ME, user_data=None, public_address=None))
    assert lookup(bare, "user-data") is None
    assert lookup(bare, "meta-data/public-ipv4") is None
    warned = tree(replace(ME, interrupted=NOW))
    assert b"2025-01-01T00:00:00Z" in (lookup(warned, "meta-data/spot/instance-action") or b"")


class Service:
    """A metadata service on the loopback, told who asks and what time it is."""

    def __init__(self) -> None:
        self.data: Metadata | None = ME
        self.now = NOW
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.server = MetadataService(listener, lambda _: self.data, lambda: self.now)

    def ask(self, method: str, path: str, **headers: str) -> tuple[int, bytes]:
        named = {k.replace("_", "-"): v for k, v in headers.items()}
        request = urllib.request.Request(f"{self.url}{path}", method=method, headers=named)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def token(self, seconds: int = 60) -> str:
        status, body = self.ask("PUT", "/latest/api/token", **{TTL_HEADER: str(seconds)})
        assert status == 200
        return body.decode()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.server.close()


def test_imds_needs_a_token(service: Service) -> None:
    assert service.ask("GET", "/latest/meta-data/instance-id")[0] == 401
    token = service.token()
    path = "/latest/meta-data/instance-id"
    assert service.ask("GET", path, **{TOKEN_HEADER: token}) == (200, b"i-1")
    assert service.ask("GET", path, **{TOKEN_HEADER: token + "x"})[0] == 401
    assert service.ask("GET", "/latest/user-data", **{TOKEN_HEADER: token}) == (200, ME.user_data)
    assert service.ask("GET", "/latest/nothing", **{TOKEN_HEADER: token})[0] == 404
    service.now += timedelta(seconds=61)
    assert service.ask("GET", path, **{TOKEN_HEADER: token})[0] == 401


def test_imds_version_1_only_where_it_is_allowed(service: Service) -> None:
    service.data = replace(ME, token_required=False)
    assert service.ask("GET", "/latest/meta-data/instance-id") == (200, b"i-1")
    service.data = replace(ME, enabled=False)
    assert service.ask("GET", "/latest/meta-data/instance-id")[0] == 403
    service.data = None
    assert service.ask("GET", "/latest/meta-data/instance-id")[0] == 403


@pytest.mark.parametrize("seconds", ["", "0", "21601", "-1", "many"])
def test_imds_token_lifetime(service: Service, seconds: str) -> None:
    assert service.ask("PUT", "/latest/api/token", **{TTL_HEADER: seconds})[0] == 400


def test_imds_token_of_another_instance_and_of_a_proxy(service: Service) -> None:
    token = service.token()
    service.data = replace(ME, instance="i-2")
    path = "/latest/meta-data/instance-id"
    assert service.ask("GET", path, **{TOKEN_HEADER: token})[0] == 401
    forwarded = {TTL_HEADER: "60", "X-Forwarded-For": "10.0.0.1"}
    assert service.ask("PUT", "/latest/api/token", **forwarded)[0] == 403


def test_cloud_init_is_a_script_the_shell_takes() -> None:
    for fails in (False, True):
        text = cloud_init(fails=fails)
        subprocess.run(["sh", "-n"], input=text, text=True, check=True, timeout=30)
        assert "FAULT" not in text
        assert "/var/log/cloud-init-output.log" in text


# -- pool, bill, buckets, switches -----------------------------------------------------------------


def test_pool_gives_the_longest_unused() -> None:
    pool = AddressPool("203.0.113.0/29", reserved=["203.0.113.3"])
    assert [pool.take() for _ in range(3)] == ["203.0.113.1", "203.0.113.2", "203.0.113.4"]
    pool.give_back("203.0.113.1")
    pool.give_back("198.51.100.1")  # not ours
    assert [pool.take() for _ in range(3)] == ["203.0.113.5", "203.0.113.6", "203.0.113.1"]
    with pytest.raises(PoolEmptyError):
        pool.take()
    with pytest.raises(PoolEmptyError):
        pool.take("203.0.113.3")


def test_bill_by_the_second_with_a_minute_at_least() -> None:
    ledger = Ledger()
    ledger.start("i-1", "c5.large", Decimal("0.36"), NOW)
    assert ledger.cost(NOW + timedelta(seconds=1)) == Decimal("0.006")
    assert ledger.cost(NOW + timedelta(seconds=600)) == Decimal("0.06")
    ledger.end("i-1", NOW + timedelta(seconds=600))
    ledger.end("i-1", NOW + timedelta(seconds=900))
    ledger.end("i-never", NOW)
    ledger.start("i-1", "c5.large", Decimal("0.36"), NOW + timedelta(hours=1))  # started again
    assert ledger.cost(NOW + timedelta(hours=1), "i-1") == Decimal("0.066")
    assert ledger.cost(NOW + timedelta(hours=2), "i-2") == 0


@given(
    st.integers(1, 20),
    st.floats(0, 10),
    st.lists(st.floats(0, 5), min_size=1, max_size=60),
)
def test_bucket_never_gives_more_than_it_may(size: int, refill: float, gaps: list[float]) -> None:
    now, bucket = NOW, Bucket(Throttle(size, refill), NOW)
    given_out = 0
    for gap in gaps:
        now += timedelta(seconds=gap)
        given_out += bucket.take(now)
        elapsed = (now - NOW) / timedelta(seconds=1)
        assert given_out <= size + elapsed * refill + 1e-3


def test_capacity_limits_add_up() -> None:
    faults = Faults()
    faults.no_capacity("c5.large", limit=3)
    faults.no_capacity("*", "zone-a", limit=4)
    used = {("c5.large", "zone-a"): 1, ("m5.large", "zone-a"): 2, ("c5.large", "zone-b"): 1}
    assert faults.free_capacity("c5.large", "zone-a", used) == 1
    assert faults.free_capacity("c5.large", "zone-b", used) == 1
    assert faults.free_capacity("m5.large", "zone-a", used) == 1
    assert faults.free_capacity("m5.large", "zone-b", used) > 1000


def test_clear_wakes_who_holds_an_answer_back() -> None:
    faults = Faults(launch_timeout_after_success=1)
    assert faults.take_lost_answer()
    assert not faults.take_lost_answer()
    woken = threading.Event()
    started = threading.Event()

    def hold() -> None:
        with faults.changed:
            started.set()
            if faults.changed.wait(30):
                woken.set()

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert started.wait(30)
    faults.clear()
    assert woken.wait(30)


# -- tracked connections ---------------------------------------------------------------------------


def attribute(kind: int, content: bytes) -> bytes:
    size = 4 + len(content)
    return struct.pack("HH", size, kind) + content + b"\0" * (-len(content) % 4)


def connection(source: str, target: str) -> bytes:
    ends = attribute(1, socket.inet_aton(source)) + attribute(2, socket.inet_aton(target))
    protocol = attribute(2 | 0x8000, attribute(1, b"\x2f"))
    return attribute(1 | 0x8000, ends) + protocol


def test_addresses_of_a_connection() -> None:
    entry = (
        attribute(1 | 0x8000, connection("198.51.100.1", "203.0.113.5"))
        + attribute(2 | 0x8000, connection("10.20.1.5", "198.51.100.1"))
        + attribute(3, struct.pack(">I", 8))
        + attribute(12, struct.pack(">I", 77))
    )
    assert conntrack.addresses(entry) == {"198.51.100.1", "203.0.113.5", "10.20.1.5"}
    assert conntrack.addresses(b"") == set()
    kinds = [kind for kind, _, _ in conntrack.attributes(entry)]
    assert kinds == [1, 2, 3, 12]
