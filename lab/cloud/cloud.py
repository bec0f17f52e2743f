"""The lab EC2 as a whole: endpoint, hypervisor, network, switchboard, bill.

    with Lab() as lab:
        internet = lab.host("inet", sysctls={"net.ipv4.ip_forward": "1"})
        with LabCloud(lab, internet) as cloud:
            site = cloud.bootstrap()
            client = cloud.client()            # boto3, from this process
            client.run_instances(ImageId=site.image, SubnetId=site.subnet, ...)

Lab hosts that have a route to the internet router reach the API at `endpoint`.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab.cloud.api import Api
from lab.cloud.backend import MotoEc2
from lab.cloud.faults import Faults
from lab.cloud.instance import Hypervisor, InstanceHost
from lab.cloud.lean import remembered_models
from lab.cloud.pool import AddressPool
from lab.cloud.server import WsgiServer
from lab.cloud.throttle import Throttler
from lab.cloud.vpc import LINKS, Fabric
from lab.host import Host
from lab.hosts import Lab

ACCESS_KEY, SECRET_KEY = "AKIALAB0000000000000", "lab-secret-of-no-value"
NOTICE = timedelta(minutes=2)  # AWS: "Spot Instance interruption notices"


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class CloudSite:
    """What a site's administrator prepares in the cloud once; EC2 ids."""

    vpc: str
    subnet: str
    internet_gateway: str
    security_group: str
    image: str


class LabCloud:
    """A context manager. `internet` is the lab's internet router; it must forward.

    The API and the public addresses come out of `publics`; the router gets a route for each that is
    in use, the others lead nowhere. root: the files that instances boot from (lab.host.HostSpec);
    none: the machine's own.
    """

    def __init__(
        self,
        lab: Lab,
        internet: Host,
        *,
        region: str = "eu-south-1",
        publics: str = "203.0.113.0/24",
        address: str = "203.0.113.250",
        port: int = 4566,
        credentials: Mapping[str, str] | None = None,
        clock: Callable[[], datetime] = _utc_now,
        throttler: Throttler | None = None,
        root: Path | None = None,
    ) -> None:
        self.lab = lab
        self.region = region
        self.endpoint = f"http://{address}:{port}"
        self.local_endpoint = ""  # the same API on this process's own loopback
        self.credentials = dict(credentials or {ACCESS_KEY: SECRET_KEY})
        self.faults = Faults()
        self._internet = internet
        self._publics = publics
        self._address = address
        self._port = port
        self._clock = clock
        self._loaded = threading.Event()
        self._problem: BaseException | None = None
        self._stack = ExitStack()
        self._timers: list[threading.Timer] = []
        pool = AddressPool(publics, reserved=[address])
        self.fabric = Fabric(lab, internet, publics=publics, find=self._find, clock=clock)
        self._hypervisor = Hypervisor(lab, self.fabric, self.faults, root)
        self.backend = MotoEc2(
            region=region,
            machines=self._hypervisor,
            network=self.fabric,
            publics=pool,
            faults=self.faults,
            clock=clock,
        )
        self._hypervisor.on = self.backend.powered_on
        self.backend.on_spot_start = self._spot_started
        self._hypervisor.gone = self._gone
        self.api = Api(
            self.backend,
            self.faults,
            credentials=self.credentials,
            clock=clock,
            throttler=throttler,
            ready=self.wait_until_ready,
            interrupt=lambda i, s: self.interrupt(i, timedelta(seconds=s)),
        )

    def __enter__(self) -> Self:
        host = self.lab.host("ec2")
        self.lab.link(host, "eth0", self._internet, "ec2")
        last = LINKS.num_addresses - 4
        theirs, ours = LINKS[last + 1], LINKS[last + 2]
        host.run(
            "ip",
            "-batch",
            "-",
            input=f"address add {ours}/30 dev eth0\naddress add {self._address}/32 dev lo\n"
            f"link set lo up\nroute replace default via {theirs} src {self._address}\n",
        )
        self._internet.run(
            "ip",
            "-batch",
            "-",
            input=f"address add {theirs}/30 dev ec2\nroute replace {self._address}/32 via {ours}\n"
            f"route replace blackhole {self._publics}\n",
        )
        remote = host.listen(self._address, self._port)
        local = socket.create_server(("127.0.0.1", 0))
        self.local_endpoint = f"http://127.0.0.1:{local.getsockname()[1]}"
        # Requests that come before moto is there wait in the sockets' queues.
        threading.Thread(
            target=self._load, args=(remote, local), name="load-moto", daemon=True
        ).start()
        return self

    def _load(self, *listeners: socket.socket) -> None:
        try:
            self.backend.load()
            for listener in listeners:
                self._stack.enter_context(WsgiServer(self.api, listener))
        except Exception as error:  # noqa: BLE001 - raised by wait_until_ready, in who waits
            self._problem = error
        self._loaded.set()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for timer in self._timers:
            timer.cancel()
        self.faults.clear()  # whoever holds an answer back lets go
        self._loaded.wait()
        self._stack.close()
        self._hypervisor.close()
        self.fabric.close()
        self.backend.close()

    def wait_until_ready(self, timeout: float = 900) -> None:
        """Wait until the API answers: moto needs seconds to load. Raises what loading raised."""
        if not self._loaded.wait(timeout):
            raise TimeoutError(f"the lab EC2 was not ready after {timeout:g} s")
        if self._problem is not None:
            raise RuntimeError("the lab EC2 could not start") from self._problem

    # -- for who drives the lab ------------------------------------------------------------------

    @property
    def instances(self) -> Mapping[str, InstanceHost]:
        """The instances that are powered on, by EC2 id."""
        return dict(self._hypervisor.instances)

    def client(self, **options: Any) -> Any:
        """A boto3 EC2 client for this process, as the site's administrator."""
        import boto3

        key, secret = next(iter(self.credentials.items()))
        self.wait_until_ready()
        session = boto3.Session(key, secret, region_name=self.region)
        with remembered_models(self.backend.models):
            return session.client("ec2", endpoint_url=self.local_endpoint, **options)

    def bootstrap(
        self,
        client: Any = None,
        *,
        gateway: str = "198.51.100.1/32",
        gre: bool = True,
        vpc: str = "10.20.0.0/16",
        subnet: str = "10.20.1.0/24",
    ) -> CloudSite:
        """What the site's administrator would do: VPC, subnet, way to the internet, rules, image.

        The security group lets the instances open TCP, UDP and ICMP to anywhere, and, with `gre`,
        protocol 47 from and to the gateway. It has no rule "everything out": security groups track
        GRE by address and protocol, so an instance that may send it lets the answers in too, rule
        or not (AWS: "Security group connection tracking").
        """
        ec2 = client or self.client()
        vpc_id = ec2.create_vpc(CidrBlock=vpc)["Vpc"]["VpcId"]
        subnet_id = ec2.create_subnet(
            VpcId=vpc_id, CidrBlock=subnet, AvailabilityZone=f"{self.region}a"
        )["Subnet"]["SubnetId"]
        ec2.modify_subnet_attribute(SubnetId=subnet_id, MapPublicIpOnLaunch={"Value": True})
        igw = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
        ec2.attach_internet_gateway(InternetGatewayId=igw, VpcId=vpc_id)
        tables = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc_id]}])
        ec2.create_route(
            RouteTableId=tables["RouteTables"][0]["RouteTableId"],
            DestinationCidrBlock="0.0.0.0/0",
            GatewayId=igw,
        )
        group = ec2.create_security_group(
            GroupName="dvn-burst", Description="borrowed machines", VpcId=vpc_id
        )["GroupId"]
        anywhere = [{"CidrIp": "0.0.0.0/0"}]
        ec2.revoke_security_group_egress(
            GroupId=group, IpPermissions=[{"IpProtocol": "-1", "IpRanges": anywhere}]
        )
        out: list[dict[str, Any]] = [
            {"IpProtocol": p, "FromPort": low, "ToPort": high, "IpRanges": anywhere}
            for p, low, high in (("tcp", 0, 65535), ("udp", 0, 65535), ("icmp", -1, -1))
        ]
        if gre:
            rule = {"IpProtocol": "47", "IpRanges": [{"CidrIp": gateway}]}
            ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
            out.append(rule)
        ec2.authorize_security_group_egress(GroupId=group, IpPermissions=out)
        image = ec2.register_image(Name="debian-12-amd64")["ImageId"]
        return CloudSite(vpc_id, subnet_id, igw, group, image)

    def interrupt(self, instance_id: str, notice: timedelta = NOTICE) -> None:
        """Take a spot instance back: metadata says so at once, it ends after `notice`."""
        self.backend.interrupt(instance_id, self._clock() + notice)
        self._later(notice, self.backend.take_back, instance_id)

    def _spot_started(self, instance_id: str) -> None:
        after = self.faults.interrupt_spot_after
        if after > 0:
            notice = timedelta(seconds=self.faults.interruption_notice)
            self._later(timedelta(seconds=after), self._take_if_there, instance_id, notice)

    def _take_if_there(self, instance_id: str, notice: timedelta) -> None:
        if self.backend.states().get(instance_id) == "running":
            self.interrupt(instance_id, notice)

    def _later(self, after: timedelta, act: Callable[..., None], *arguments: Any) -> None:
        timer = threading.Timer(after / timedelta(seconds=1), act, arguments)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def console(self, instance_id: str) -> str:
        """What an instance, also an ended one, wrote to its console: cloud-init's output."""
        return self._hypervisor.console(instance_id)

    def cost(self, instance_id: str | None = None) -> Decimal:
        """What was spent until now, in all or for one instance."""
        return self.backend.ledger.cost(self._clock(), instance_id)

    def leftovers(self) -> list[str]:
        """The instances that are not terminated."""
        return sorted(i for i, state in self.backend.states().items() if state != "terminated")

    # -- glue ------------------------------------------------------------------------------------

    def _find(self, vpc_id: str, address: str) -> Any:
        return self.backend.metadata(vpc_id, address)

    def _gone(self, instance_id: str, by_guest: bool) -> None:
        self.backend.powered_off(instance_id, by_guest=by_guest)
