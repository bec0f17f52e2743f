"""What a borrowed machine needs to be a node of OpenPBS or Torque.

The image has the execution host's package. The gateway has declared the node to the server before
(`burst.lrms.pbs`); both must resolve the other's name. Made from the documentation; no machine has
joined a real server this way here.
Sources: pbs.conf(8B), pbs_mom(8B) of both, the Torque Administrator Guide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from burst.join.accounts import accounts, file_servers, host_lines, mounted
from burst.join.bundle import Bundle, Command, Directory, File, Mount, Program, Reach
from burst.model import Lease
from burst.policy.which import usable_memory_mb

_SERVER_PORT = 15001


@dataclass(frozen=True, slots=True)
class PbsJoin:
    """The site's server, as its borrowed nodes must know it."""

    kind: Literal["openpbs", "torque"]
    server: str  # its name
    server_address: str  # in the tenant network
    home: str  # PBS_HOME
    exec: str = "/opt/pbs"  # PBS_EXEC, OpenPBS only
    job_users: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)
    install: str = ""
    reach_timeout: timedelta = timedelta(minutes=10)

    def bundle(self, lease: Lease, features: Sequence[str]) -> Bundle:
        """What the machine of `lease` gets; its queue is known to the server alone."""
        users, groups = accounts(self.job_users)
        names = {self.server: self.server_address, **self.hosts, lease.node: lease.address}
        return Bundle(
            node=lease.node,
            preflight=(Program("pbs_mom", self._package),),
            install=self.install,
            users=users,
            groups=groups,
            directories=(
                Directory(f"{self.home}/mom_priv", 0o751),
                Directory(f"{self.home}/spool", 0o1777),
            ),
            files=(*self._files(), File("/etc/hosts", host_lines(names), merge=True)),
            reach=(
                Reach("pbs_server", self.server_address, _SERVER_PORT),
                *file_servers(self.mounts),
            ),
            reach_timeout=self.reach_timeout,
            mounts=mounted(self.mounts, lease.address),
            commands=(
                Command("hostname", ("hostname", lease.node)),
                Command("pbs_mom", ("sh", "-c", self._start), timedelta(minutes=2), attempts=3),
            ),
            memory_mb=usable_memory_mb(lease.memory_mb),
        )

    @property
    def _package(self) -> str:
        return "openpbs-execution" if self.kind == "openpbs" else "torque-mom"

    @property
    def _start(self) -> str:
        if self.kind == "openpbs":
            return f"PATH=$PATH:{self.exec}/sbin exec pbs_mom"
        return "exec pbs_mom -d " + self.home

    def _files(self) -> tuple[File, ...]:
        if self.kind == "openpbs":
            conf = {
                "PBS_SERVER": self.server,
                "PBS_START_SERVER": "0",
                "PBS_START_SCHED": "0",
                "PBS_START_COMM": "0",
                "PBS_START_MOM": "1",
                "PBS_EXEC": self.exec,
                "PBS_HOME": self.home,
                "PBS_CORE_LIMIT": "unlimited",
                "PBS_SCP": "/usr/bin/scp",
            }
            text = "".join(f"{name}={value}\n" for name, value in conf.items())
            return (
                File("/etc/pbs.conf", text.encode()),
                File(f"{self.home}/mom_priv/config", f"$clienthost {self.server}\n".encode()),
            )
        return (
            File(f"{self.home}/server_name", f"{self.server}\n".encode()),
            File(f"{self.home}/mom_priv/config", f"$pbsserver {self.server}\n".encode()),
        )
