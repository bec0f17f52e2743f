"""What a borrowed machine needs to be a dynamic host of LSF.

LSF itself and its configuration come from the site's shared file system, as they usually do; the
machine has its own copy of lsf.conf with its queue's resource. The site's lsf.conf has
LSF_DYNAMIC_HOST_WAIT_TIME and its lsf.cluster LSF_HOST_ADDR_RANGE. Made from the documentation.
Sources: the LSF Administrator's Guide, "Adding dynamic hosts"; lsf.conf(5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from burst.join.accounts import accounts, file_servers, host_lines, mounted
from burst.join.bundle import Bundle, BundleError, Command, File, Mount
from burst.lrms.lsf_parse import resource
from burst.model import Lease
from burst.policy.which import usable_memory_mb

_ENVDIR = "/etc/dvn-lsf"


@dataclass(frozen=True, slots=True)
class LsfJoin:
    """The site's cluster, as its borrowed nodes must know it."""

    conf: str  # the text of the site's lsf.conf
    mounts: tuple[Mount, ...]
    job_users: tuple[str, ...] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)
    install: str = ""
    reach_timeout: timedelta = timedelta(minutes=10)

    def bundle(self, lease: Lease, features: Sequence[str]) -> Bundle:
        """What the machine of `lease` gets; the first of `features` is its queue.

        Raises `BundleError` when lsf.conf does not name LSF_SERVERDIR.
        """
        places = dict(
            line.strip().partition("=")[::2] for line in self.conf.splitlines() if "=" in line
        )
        daemons = places.get("LSF_SERVERDIR", "").strip('"')
        if not daemons:
            raise BundleError("lsf.conf has no LSF_SERVERDIR: where would the daemons be?")
        own = [line for line in self.conf.splitlines() if not line.startswith("LSF_LOCAL_RES")]
        words = " ".join(f"[resource {resource(name)}]" for name in features)
        own.append(f'LSF_LOCAL_RESOURCES="{words}"')
        users, groups = accounts(self.job_users)
        start = "\n".join(
            f"LSF_ENVDIR={_ENVDIR} {daemons}/{name}" for name in ("lim", "res", "sbatchd")
        )
        return Bundle(
            node=lease.node,
            install=self.install,
            users=users,
            groups=groups,
            files=(
                File(f"{_ENVDIR}/lsf.conf", ("\n".join(own) + "\n").encode()),
                File(
                    "/etc/hosts", host_lines({**self.hosts, lease.node: lease.address}), merge=True
                ),
            ),
            reach=tuple(file_servers(self.mounts)),
            reach_timeout=self.reach_timeout,
            mounts=mounted(self.mounts, lease.address),
            commands=(
                Command("hostname", ("hostname", lease.node)),
                Command("lsf", ("sh", "-ec", start), timedelta(minutes=2)),
            ),
            memory_mb=usable_memory_mb(lease.memory_mb),
        )
