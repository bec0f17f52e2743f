"""A real Grid Engine cell of a whole site: qmaster, names and /home on the head, execution hosts,
and the commands on the gateway, an administrative and (for qalter) submit host.

The hosts have the files of `lab.farm.gridengine.TREE`, but for the gateway.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Self

from lab.farm import clients, gridengine, machine, names, nfs
from lab.farm.config import hosts_file
from lab.farm.gridengine import TREE
from lab.farm.jobcomp import FinishedJob
from lab.farm.trees import ROOT as INNER
from lab.farm.treesite import TreeSite
from lab.host import Host, LabError

DAEMON_USER = "sgeadmin"  # a manager of the cell from its start
COMMANDS = ("qalter", "qconf", "qhost", "qmod", "qstat")
_ACCOUNTING = f"{gridengine.ROOT}/default/common/accounting"
_LOST_S = 120  # emulated hosts may be silent for long


class GridEngineSite(TreeSite):
    """The cell, up when the context is entered."""

    daemons = "sge_"

    def __enter__(self) -> Self:
        self._lay_ground(self._addresses)
        gridengine.start_qmaster(self.head)
        self.head.wait_for(
            lambda: gridengine.answers(self.head), 120, what="the qmaster", interval=1.0
        )
        gridengine.configure(self.head, slots=1, lost_s=_LOST_S)
        for host in self.workers:
            self._start_worker(host)
        self._furnish_gateway()
        self.head.wait_for(self._workers_up, 120, what="the execution hosts", interval=1.0)
        return self

    def finished(self) -> tuple[FinishedJob, ...]:
        """Every job that has ended, as the qmaster accounted for it; without a fork."""
        try:
            return parse(self.head.read(_ACCOUNTING))
        except LabError:
            return ()  # written when the first job ends

    def known_nodes(self) -> set[str]:
        """Every host that is an execution host, a member of a host group or of a queue."""
        listed = self.head.script(
            "qconf -sel || true\n"
            "for group in @allhosts @burst; do qconf -shgrp_resolved $group || true; done"
        )
        return {name for name in listed.stdout.split() if name != "NONE"}

    def _workers_up(self) -> bool:
        shown = self.head.run("qstat", "-f", check=False).stdout.splitlines()
        # The last column is the state: none, for a queue instance that takes jobs.
        ready = {
            line.split()[0].partition("@")[2]
            for line in shown
            if line.startswith("all.q@") and len(line.split()) == 5 and "-NA-" not in line
        }
        return ready >= {host.name for host in self.workers}

    def _start_worker(self, host: Host) -> None:
        gridengine.add_site_node(self.head, host.name, max(1, int(host.spec.cores or 1)))
        own, head = self._addresses[host.name], self._addresses[self.head.name]
        host.run(*nfs.mount_command(head, own))
        gridengine.start_execd(host)

    def _furnish_gateway(self) -> None:
        gateway = self.gateway
        gateway.write("/etc/hosts", hosts_file(self._addresses))
        gateway.write("/etc/resolv.conf", "")
        inner = clients.lay(gateway, TREE, COMMANDS, ("/etc/hosts", "/etc/resolv.conf"))
        inner.script(gridengine.client_script())
        owner = clients.account(TREE, DAEMON_USER)
        gateway.inside(lambda: machine.put_users((*self.users, owner)))
        gateway.inside(lambda: machine.put_users(self.users, root=INNER))
        self.head.script(
            f"qconf -ah {gateway.name}; qconf -as {gateway.name}; qconf -am {DAEMON_USER} || true"
        )
        head = self._addresses[self.head.name]
        names.serve(self.head, head, gateway, self._addresses[gateway.name])


def parse(text: str) -> tuple[FinishedJob, ...]:
    """Whole lines of accounting(5). ValueError: a line that is none."""
    whole = text[: text.rfind("\n") + 1]  # the last line may still be written
    return tuple(
        _line(line) for line in whole.splitlines() if line.strip() and not line.startswith("#")
    )


def _line(line: str) -> FinishedJob:
    fields = line.split(":")
    if len(fields) < 13:
        raise ValueError(f"accounting: {line!r} has only {len(fields)} fields")
    submitted, started, ended = (_moment(fields[n]) for n in (8, 9, 10))
    if submitted is None:
        raise ValueError(f"accounting: no submission time in {line!r}")
    failed, status = int(fields[11]), int(fields[12])
    return FinishedJob(
        id=fields[5],
        user=fields[3],
        name=fields[4],
        state="COMPLETED" if failed == 0 and status == 0 else f"FAILED {failed}:{status}",
        nodes=fields[1].partition(".")[0],
        submitted=submitted,
        started=started,
        ended=ended or submitted,
        exit_code=status,
    )


def _moment(text: str) -> datetime | None:
    """Seconds since 1970, or in some builds of 8.1 milliseconds."""
    number = int(text)
    if number > 10**11:
        number //= 1000
    return datetime.fromtimestamp(number, UTC) if number else None
