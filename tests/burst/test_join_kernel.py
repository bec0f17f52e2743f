"""User data on a real lab host behind a real 1:1 NAT: real GRE, real rules, real munge.

gw 198.51.100.1 --- internet --- nat (203.0.113.7 = 172.31.5.7) --- vm 172.31.5.7
   10.9.0.1  ================== gretap, key 7 ==================  dvn0 10.9.0.101
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from burst.join.bundle import Bundle, Group, Mount, Reach, User
from burst.join.slurm import SlurmJoin
from burst.join.userdata import JoinGateway, user_data
from burst.model import LeaseState
from gateway.enrol import EnrolServer
from gateway.tls import TlsIdentity
from gateway.tokens import SiteSecret, token_hash
from lab.farm import SlurmFarm, config, leave
from lab.host import Host
from lab.hosts import Lab
from lab.net import build
from lab.topology import Link, Machine, NatBox, Router, Topology
from tests.burst.join_sandbox import LEASE, Metadata
from tests.gateway.store_stand_in import Tokens

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

TOPOLOGY = Topology(
    nodes=(
        Machine("gw", {"wan0": "198.51.100.1/24"}, {"default": "198.51.100.254"}),
        Router("internet", {"site": "198.51.100.254/24", "cloud": "203.0.113.254/24"}),
        NatBox(
            "nat",
            {"inside": ("172.31.5.1/24", "169.254.169.254/32"), "outside": "203.0.113.1/24"},
            {"default": "203.0.113.254"},
            masquerade=False,
            one_to_one={"203.0.113.7": "172.31.5.7"},
        ),
        Machine("vm", {"eth0": "172.31.5.7/24"}, {"default": "172.31.5.1"}),
        Machine("wn1", {"eth0": "10.9.0.11/24"}),
    ),
    links=(
        Link("gw:wan0", "internet:site"),
        Link("gw:lan0", "wn1:eth0"),
        Link("internet:cloud", "nat:outside"),
        Link("nat:inside", "vm:eth0"),
    ),
)
BIN = {"PATH": "/run/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


class Story:
    """The hosts, the gateway's server, and a machine that boots."""

    def __init__(self, hosts: dict[str, Host], state: Path) -> None:
        self.gw, self.nat, self.vm, self.wn1 = (hosts[name] for name in ("gw", "nat", "vm", "wn1"))
        self.tokens, self.secret = Tokens(), SiteSecret.load_or_create(state)
        self.bundle = Bundle(LEASE.node)
        self.server = EnrolServer(
            address="198.51.100.1",
            port=8443,
            listener=self.gw.listen("198.51.100.1", 8443),
            identity=TlsIdentity.load_or_create(state, "198.51.100.1", datetime.now(UTC)),
            secret=self.secret,
            store=self.tokens,
            bundle=lambda _lease: self.bundle,
            clock=lambda: datetime.now(UTC),
        )
        self.server.start()
        self.gw.script(
            "ip link add br0 type bridge; ip address add 10.9.0.1/24 dev br0\n"
            "ip link add tun0 type gretap local 198.51.100.1 remote 203.0.113.7 key 7\n"
            "ip link set tun0 mtu 1458 master br0 up; ip link set lan0 master br0 up\n"
            "ip link set br0 mtu 1458 up"
        )
        self.service = self.gw.listen("10.9.0.1", 7000)
        self.metadata = Metadata(self.nat.listen("169.254.169.254", 80))
        threading.Thread(target=self.metadata.serve_forever, daemon=True).start()
        self.vm.write("/run/bin/shutdown", "#!/bin/sh\n", 0o755)

    def boot(self, lease_id: str) -> str:
        """Run user data for a lease; what the console shows."""
        lease = replace(LEASE, id=lease_id)
        token = self.secret.token(lease_id)
        self.tokens.states[lease_id] = LeaseState.BOOTING
        self.tokens.mint(lease_id, token_hash(token), datetime.now(UTC) + timedelta(minutes=20))
        gateway = JoinGateway("198.51.100.1", self.server.url, self.server.pin, 24)
        self.vm.write("/run/user-data", user_data(lease, gateway, token), 0o700)
        self.vm.script("rm -rf /run/dvn-join /var/lib/dvn-join")  # as a new machine
        return self.vm.run("/run/user-data", check=False, timeout=120, env=BIN).stdout

    def close(self) -> None:
        self.metadata.shutdown()
        self.metadata.server_close()
        self.service.close()
        self.server.stop()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with Lab() as lab:
        story = Story(build(lab, TOPOLOGY), tmp_path_factory.mktemp("state"))
        yield story
        story.close()


@pytest.fixture
def farm(story: Story) -> Iterator[SlurmFarm]:
    addresses = {"gw": "10.9.0.1", "wn1": "10.9.0.11"}
    with SlurmFarm(story.gw, [story.wn1], users=["alice"], addresses=addresses) as farm:
        yield farm
        leave(story.vm)  # while its file server still lives


def slurm_bundle(farm: SlurmFarm, directory: Path) -> Bundle:
    """What the gateway would build; the farm's accounts are not this test's own."""
    (directory / "munge.key").write_bytes(farm.munge_key)
    (directory / "slurm.conf").write_text(farm.slurm_conf.replace("SlurmUser=slurm\n", ""))
    (directory / "cgroup.conf").write_text(config.CGROUP_CONF)
    home = "10.9.0.1:/home /home nfs4 vers=4.2,soft,timeo=100,retrans=2"
    join = SlurmJoin(directory / "munge.key", directory / "slurm.conf", mounts=(Mount.parse(home),))
    alice = farm.users[0]
    bundle = join.bundle(LEASE, ["burst-cms"])
    files = tuple(
        replace(file, content=farm.slurm_conf.encode()) if "slurm.conf" in file.path else file
        for file in bundle.files
    )
    return replace(
        bundle,
        files=files,
        users=(User("alice", alice.uid, alice.uid, "/home/alice", "/bin/bash"),),
        groups=(Group("alice", alice.uid),),
    )


def test_a_machine_joins_slurm_through_the_nat(
    story: Story, farm: SlurmFarm, tmp_path: Path
) -> None:
    story.bundle = slurm_bundle(farm, tmp_path)

    console = story.boot("1" * 32)

    assert story.tokens.reports == [("1" * 32, "joined", True, LEASE.node)], console
    story.gw.run("ping", "-c1", "-W5", "-M", "do", "-s", "1430", "10.9.0.101")  # 1458 whole
    details = story.vm.run("ip", "-d", "link", "show", "dvn0").stdout
    assert "local 172.31.5.7" in details
    assert "remote 198.51.100.1" in details
    assert "ikey 0.0.0.7 okey 0.0.0.7" in details
    assert "02:00:0a:09:00:65" in details
    assert "alias dvn lease" in details
    assert "10.9.0.1 gw\n" in story.vm.read("/etc/hosts")

    farm.wait_nodes(lambda up: LEASE.node in up, what="the borrowed node")
    script = "#!/bin/sh\n(hostname; id -un) > /home/alice/where\n"
    job = farm.sbatch("alice", script, "-p", "burst-cms")
    (done,) = farm.wait_finished([job], timeout=60)
    assert done.state == "COMPLETED", farm.logs()
    assert story.gw.read("/home/alice/where") == f"{LEASE.node}\nalice\n"


def test_job_users_cannot_read_user_data(story: Story) -> None:
    url = "http://169.254.169.254/latest/api/token"
    ttl = "X-aws-ec2-metadata-token-ttl-seconds: 9"
    ask = ["curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}"]
    ask += ["-X", "PUT", "-H", ttl, url]

    assert story.vm.run(*ask).stdout == "200"  # root, the positive control
    assert story.vm.run(*ask, user="nobody", check=False).stdout == "000"


def test_running_it_again_keeps_one_tunnel(story: Story) -> None:
    story.bundle = Bundle(LEASE.node)
    story.boot("2" * 32)
    again = story.vm.run("/run/user-data", timeout=120, env=BIN)

    assert "joined" in again.stdout
    assert story.vm.run("ip", "-o", "link", "show", "type", "gretap").stdout.count("dvn0") == 1
    assert story.vm.run("ip", "rule", "show").stdout.count("169.254.169.254") == 1
    story.gw.run("ping", "-c1", "-W5", "10.9.0.101")


def test_without_protocol_47_the_machine_says_that_the_tunnel_is_dead(story: Story) -> None:
    story.bundle = replace(
        Bundle(LEASE.node),
        reach=(Reach("a service", "10.9.0.1", 7000),),
        reach_timeout=timedelta(seconds=4),
    )
    story.nat.run(
        "nft", "add table ip block { chain forward { type filter hook forward priority -10; "
        "meta l4proto gre drop; } ; }",
    )  # fmt: skip
    try:
        story.boot("3" * 32)
    finally:
        story.nat.run("nft", "delete table ip block")

    lease, kind, ok, detail = story.tokens.reports[-1]
    assert (lease, kind, ok) == ("3" * 32, "tunnel", False)
    assert "a service at 10.9.0.1 port 7000 does not answer through the tunnel" in detail

    story.boot("4" * 32)  # the positive control: the same without the block
    assert story.tokens.reports[-1][:3] == ("4" * 32, "joined", True)
