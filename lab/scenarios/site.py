"""The lab's site: its topology, its addresses, and its site file.

  VLAN 101 (tenant cms: 10.9.0.0/24)
head .10 ──┐
wn1  .11 ──┼── tor ──802.1Q── gw1 ──198.51.100.0/24── internet ── lab EC2 (203.0.113.0/24)
wn2  .12 ──┘                  │ bridge 10.9.0.1                     │ 1:1 NAT
                              └──── gretap, one for each lease ─────┴── instances 10.9.0.101...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from lab.farm import names
from lab.host import PRIVATE
from lab.scenarios import pictures
from lab.topology import Access, Link, Machine, Router, Switch, Topology, Trunk

GATEWAY = "198.51.100.1"  # RFC 5737 TEST-NET-2: the site's public side
HEAD = "10.9.0.10"
WORKERS = {"wn1": "10.9.0.11", "wn2": "10.9.0.12"}
VLAN = 101
ENROL_PORT = 8443
SITE_FILE = "/etc/dvn/site.yaml"
CREDENTIALS = "/etc/dvn/aws-credentials"
MUNGE_KEY = "/etc/dvn/munge.key"
# Soft: a machine whose tunnel is gone must still be able to die (nfs(5)).
MOUNT_OPTIONS = "vers=4.2,soft,timeo=100,retrans=2,actimeo=1"


def topology(root: Path | None = None) -> Topology:
    """The site and the internet router; the cloud hangs itself on the router.

    root: the files of the farm's hosts (lab.host.HostSpec); none: the machine's own.
    """
    workers = tuple(
        Machine(
            name, {"eth0": f"{address}/24"}, {"default": "10.9.0.1"},
            cores=1, memory_mb=1024, root=root,
        )
        for name, address in WORKERS.items()
    )  # fmt: skip
    # Where the commands of another batch system go (lab.farm.clients).
    private = (*PRIVATE, "/usr/local/bin") if root else PRIVATE
    shown = (root,) if root else ()  # below /var, and overlays do not stack without end
    return Topology(
        nodes=(
            Machine("head", {"eth0": f"{HEAD}/24"}, {"default": "10.9.0.1"}, root=root),
            *workers,
            Switch(
                "tor",
                {"head": Access(VLAN), **{n: Access(VLAN) for n in WORKERS}, "gw1": Trunk((VLAN,))},
            ),
            Machine(
                "gw1",
                {"wan0": f"{GATEWAY}/24"},
                {"default": "198.51.100.254"},
                private=private,
                shown=shown,
            ),
            Router("internet", {"site": "198.51.100.254/24"}),
        ),
        links=(
            Link("head:eth0", "tor:head"),
            *(Link(f"{name}:eth0", f"tor:{name}") for name in WORKERS),
            Link("tor:gw1", "gw1:lan0"),
            Link("gw1:wan0", "internet:site"),
        ),
    )


LAB_POLICY: Mapping[str, object] = {
    "min_job_age": "1s",
    "expected_start_cost": "20s",
    "margin": "2s",
    "default_job_time": "60s",
    "idle_release": "8s",
    "request_timeout": "30s",
    "boot_timeout": "150s",
    "tunnel_timeout": "90s",
    "join_timeout": "120s",
    "lost_timeout": "30s",
    "silence_timeout": "2m",
    "drain_timeout": "5m",
    "return_time": "60s",
    "backoff_first": "2s",
    "backoff_limit": "20s",
    "failures_to_pause": 4,
    "pause": "10m",
    "orphan_age": "30s",
}

# For batch systems whose daemons take their time to start on an emulated processor.
PATIENT: Mapping[str, object] = {
    "boot_timeout": "6m",
    "tunnel_timeout": "5m",
    "join_timeout": "6m",
    "lost_timeout": "2m",
}


@dataclass(frozen=True, slots=True)
class CloudPlace:
    """Where in the cloud the site's machines go, as its administrator was told."""

    endpoint: str
    region: str
    image: str
    subnet: str
    security_group: str
    prices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """What the site file says of the batch system. daemon_user: may change every user's jobs."""

    lrms: Mapping[str, object]
    daemon_user: str
    partition: str
    local: tuple[str, ...]


SLURM = Batch(
    {"type": "slurm", "munge_key": MUNGE_KEY, "slurm_conf": "/etc/slurm/slurm.conf"},
    "slurm",  # SlurmUser
    "burst-cms",
    ("batch",),
)

HTCONDOR = Batch(
    {
        "type": "htcondor",
        "central_manager": HEAD,
        "domain": "lab",
        "config": "DEFAULT_DOMAIN_NAME = lab\nRUNBENCHMARKS = False\n",
    },
    "condor",
    "burst-cms",
    ("vanilla",),
)
GRID_ENGINE = Batch(
    {
        "type": "gridengine",
        "qmaster": "head",
        "qmaster_address": HEAD,
        "name_command": names.COMMAND,
    },
    "sgeadmin",
    "burst.q",
    ("all.q",),
)


def site_file(
    cloud: CloudPlace,
    *,
    max_machines: int = 4,
    types: Sequence[str] = ("c5.large",),
    policy: Mapping[str, object] = LAB_POLICY,
    budget: str = "5.00",
    period: str = "day",
    users: Sequence[str] = ("alice",),
    spot: str = "no",
    watchdog: str = "3m",
    batch: Batch = SLURM,
) -> str:
    """The site file of the lab, as its administrator would have written it."""
    content = {
        "site": "cnaf",
        "host": "gw1",
        "underlay": {"interface": "wan0", "address": GATEWAY},
        "tenants": {
            "cms": {
                "networks": {
                    "farm": {
                        "prefix": "10.9.0.0/24",
                        "vlan": {"id": VLAN, "uplink": "lan0"},
                        "access": "open",
                        "nat": {"snat": GATEWAY},
                    }
                }
            }
        },
        "gateway": {
            "state": "sqlite:////var/lib/dvn/gateway.sqlite",
            "user": batch.daemon_user,
            "interval": "1s",
            "answer_timeout": "45s",  # boto3 alone takes long to load on an emulated processor
            "enrol": {
                "address": GATEWAY,
                "port": ENROL_PORT,
                "heartbeat": "5s",
                "watchdog": watchdog,
            },
        },
        "burst": {
            "lrms": {
                **batch.lrms,
                "job_users": list(users),
                "mounts": [f"{HEAD}:/home /home nfs4 {MOUNT_OPTIONS}"],
                "hosts": {"head": HEAD},
            },
            "providers": {
                "aws": {
                    "type": "ec2",
                    "region": cloud.region,
                    "endpoint": cloud.endpoint,
                    "image": cloud.image,
                    "subnet": cloud.subnet,
                    "security_groups": [cloud.security_group],
                    "credentials": CREDENTIALS,
                    "spot": spot,
                    **({"prices": dict(cloud.prices)} if cloud.prices else {}),
                }
            },
            "pools": {
                "cms-aws": {
                    "tenant": "cms",
                    "network": "farm",
                    "provider": "aws",
                    "partition": batch.partition,
                    "from": list(batch.local),
                    "users": list(users),
                    "types": list(types),
                    "max_machines": max_machines,
                    "addresses": "10.9.0.101-10.9.0.150",
                }
            },
            "budgets": {"cms": {"limit": budget, "period": period}},
            "policy": dict(policy),
        },
    }
    return yaml.safe_dump(content, sort_keys=False)


def picture(machines: Sequence[tuple[str, str]]) -> str:
    """The lab's topology as SVG; machines: (name, inner address) of every borrowed one."""
    green, orange = "#e3f1e3", "#fdebd7"
    boxes = [
        pictures.Box("head", f"slurmctld, /home, {HEAD}", 0, 0, green),
        *(
            pictures.Box(name, f"one core, {address}", 0, row, green)
            for row, (name, address) in enumerate(WORKERS.items(), start=1)
        ),
        pictures.Box("tor", f"switch, VLAN {VLAN}", 1, 1, green),
        pictures.Box("gw1", f"dvn gateway, {GATEWAY}", 2, 1, green),
        pictures.Box("internet", "router", 3, 1, "#eeeeee"),
        pictures.Box("VPC", "1:1 NAT, 203.0.113.0/24", 4, 1, orange),
        *(
            pictures.Box(name, address, 5, row, orange)
            for row, (name, address) in enumerate(machines)
        ),
    ]
    wires = [
        pictures.Wire("head", "tor"),
        *(pictures.Wire(name, "tor") for name in WORKERS),
        pictures.Wire("tor", "gw1", "802.1Q"),
        pictures.Wire("gw1", "internet", "wan0"),
        pictures.Wire("internet", "VPC"),
        *(pictures.Wire("VPC", name) for name, _ in machines),
        *(pictures.Wire("gw1", name, "GRE", tunnel=True) for name, _ in machines),
    ]
    return pictures.topology(tuple(boxes), tuple(wires))
