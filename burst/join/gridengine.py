"""What a borrowed machine needs to be a Grid Engine execution host.

The image has the package gridengine-exec. The gateway has declared the host to the qmaster before
(`burst.lrms.gridengine.GridEngine.announce`); both must resolve the other's name.
Sources: sge_execd(8), sge_act_qmaster(5), bootstrap(5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from burst.join.accounts import accounts, file_servers, host_lines, mounted
from burst.join.bundle import Bundle, Command, File, Mount, Program, Reach
from burst.model import Lease
from burst.policy.which import usable_memory_mb

_START = """\
if [ -d /run/systemd/system ]; then exec systemctl restart gridengine-exec; fi
exec sge_execd"""


@dataclass(frozen=True, slots=True)
class GridEngineJoin:
    """The site's cell, as its borrowed nodes must know it."""

    qmaster: str  # its name, as in act_qmaster
    qmaster_address: str  # in the tenant network
    cell: str = "default"
    qmaster_port: int = 6444
    execd_port: int = 6445
    job_users: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)
    install: str = ""
    reach_timeout: timedelta = timedelta(minutes=10)

    def bundle(self, lease: Lease, features: Sequence[str]) -> Bundle:
        """What the machine of `lease` gets; its queue is known to the qmaster alone."""
        users, groups = accounts((*self.job_users, "sgeadmin"))
        names = {self.qmaster: self.qmaster_address, **self.hosts, lease.node: lease.address}
        script = machine_script(self.qmaster, self.cell, self.qmaster_port, self.execd_port)
        return Bundle(
            node=lease.node,
            preflight=(Program("sge_execd", "gridengine-exec"),),
            install=self.install,
            users=users,
            groups=groups,
            files=(File("/etc/hosts", host_lines(names), merge=True),),
            reach=(
                Reach("sge_qmaster", self.qmaster_address, self.qmaster_port),
                *file_servers(self.mounts),
            ),
            reach_timeout=self.reach_timeout,
            mounts=mounted(self.mounts, lease.address),
            commands=(
                Command("hostname", ("hostname", lease.node)),
                Command("cell", ("sh", "-ec", script)),
                # The qmaster refuses a host until it has looked its name up again.
                Command("sge_execd", ("sh", "-c", _START), timedelta(minutes=2), attempts=5),
            ),
            memory_mb=usable_memory_mb(lease.memory_mb),
        )


def machine_script(qmaster: str, cell: str, qmaster_port: int, execd_port: int) -> str:
    """Shell lines that make the cell's files. common/ and act_qmaster belong to sgeadmin: the
    daemon becomes that user before it reads them."""
    common = f"/var/lib/gridengine/{cell}/common"
    return (
        f"mkdir -p {common} /var/spool/gridengine/execd /run/gridengine\n"
        f"echo {qmaster} > {common}/act_qmaster\n"
        f"[ -e {common}/bootstrap ] || "
        f"cp /usr/share/gridengine/default-bootstrap {common}/bootstrap\n"
        f"chown -R sgeadmin:sgeadmin /var/lib/gridengine/{cell} /var/spool/gridengine\n"
        "chown sgeadmin:sgeadmin /run/gridengine\n"
        f"for line in 'sge_qmaster {qmaster_port}/tcp' 'sge_execd {execd_port}/tcp'; do\n"
        '  grep -q "^${line% *}[[:space:]]" /etc/services || echo "$line" >> /etc/services\n'
        "done\n"
    )
