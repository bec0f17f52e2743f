"""A real HTCondor pool of a whole site: collector, negotiator, schedd and /home on the head,
startds on the workers, and the tools on the gateway, which speaks to the head by a token.

The hosts have the files of `lab.farm.htcondor.TREE`, but for the gateway.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Self

from lab.farm import clients, machine, nfs
from lab.farm.config import hosts_file
from lab.farm.htcondor import DOMAIN, TREE, common_config, head_config, site_node_config
from lab.farm.jobcomp import FinishedJob
from lab.farm.trees import ROOT
from lab.farm.treesite import TreeSite
from lab.host import Host, LabError

DAEMON_USER = "condor"  # a queue super user by default (QUEUE_SUPER_USERS)
COMMANDS = (
    "condor_advertise", "condor_drain", "condor_history", "condor_off", "condor_q", "condor_qedit",
    "condor_reschedule", "condor_status", "condor_token_create", "condor_vacate_job",
)  # fmt: skip
_SECRETS = "/etc/condor/dvn"  # of the gateway's user
_ATTRIBUTES = (
    "ClusterId,ProcId,Owner,JobStatus,LastRemoteHost,QDate,JobCurrentStartDate,CompletionDate,"
    "ExitCode,Arguments"
)
_WORDS = {3: "REMOVED", 4: "COMPLETED"}
_HEAD = """\
mkdir -p -m 700 /etc/condor/passwords.d /etc/condor/tokens.d
head -c 32 /dev/urandom | base64 > /etc/condor/passwords.d/POOL
chmod 600 /etc/condor/passwords.d/POOL
condor_master
"""
_SUBMIT = """\
executable = /bin/sh
arguments = $(script) $(Cluster).$(Process)
environment = HOME=/home/$ENV(USER)
initialdir = /home/$ENV(USER)
transfer_executable = false
should_transfer_files = NO
request_memory = 100
request_disk = 1
+MaxRuntime = 600
queue
"""
SUBMIT_FILE = "/etc/condor/lab.submit"


class HtCondorSite(TreeSite):
    """The pool, up when the context is entered."""

    daemons = "condor_"

    def __enter__(self) -> Self:
        self._lay_ground(self._names())
        address = self._addresses[self.head.name]
        self.head.write(SUBMIT_FILE, _SUBMIT)
        self.head.write("/etc/condor/config.d/90-lab", head_config(address))
        self.head.script(_HEAD)
        self.head.wait_for(
            lambda: self.head.run("condor_q", "-allusers", check=False).returncode == 0,
            120,
            what="the schedd",
            interval=1.0,
        )
        for host in self.workers:
            self._start_worker(host)
        self._furnish_gateway()
        names = {host.name for host in self.workers}
        self.head.wait_for(
            lambda: names <= self.known_nodes(), 120, what="the workers' startds", interval=1.0
        )
        return self

    def finished(self) -> tuple[FinishedJob, ...]:
        """Every job that has ended; the last run of each."""
        done = self.head.run("condor_history", "-json", "-attributes", _ATTRIBUTES, check=False)
        found = json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else []
        return tuple(finished_job(ad) for ad in found)

    def known_nodes(self) -> set[str]:
        """Every machine with an ad in the collector, without the pool's domain."""
        shown = self.head.run("condor_status", "-af", "Machine", check=False).stdout
        return {name.partition(".")[0] for name in shown.split()}

    def _names(self) -> Mapping[str, str]:
        return {f"{name}.{DOMAIN} {name}": at for name, at in self._addresses.items()}

    def _start_worker(self, host: Host) -> None:
        address, head = self._addresses[host.name], self._addresses[self.head.name]
        cores, memory = max(1, int(host.spec.cores or 1)), host.spec.memory_mb or 512
        text = site_node_config(head, cores, memory)
        host.write("/etc/condor/config.d/90-lab", f"{text}NETWORK_INTERFACE = {address}\n")
        host.write("/etc/condor/tokens.d/lab", self._token(host.name), 0o600)
        host.script('"$@"\nexec condor_master', *nfs.mount_command(head, address))

    def _token(self, who: str) -> str:
        """Of an identity of the pool's own; who: for the error only."""
        made = self.head.run("condor_token_create", "-identity", f"condor@{DOMAIN}")
        if not made.stdout.strip():
            raise LabError(f"no token for {who}: {made.stderr}")
        return made.stdout

    def _furnish_gateway(self) -> None:
        """Tools, the pool's key to sign machines' tokens with, and a token to speak to the head."""
        self.gateway.write("/etc/hosts", hosts_file(self._names()))
        self.gateway.write("/etc/resolv.conf", "")
        inner = clients.lay(self.gateway, TREE, COMMANDS, ("/etc/hosts", "/etc/resolv.conf"))
        owner = clients.account(TREE, DAEMON_USER)
        self.gateway.inside(lambda: machine.put_users((*self.users, owner)))
        self.gateway.inside(lambda: machine.put_users(self.users, root=ROOT))
        address = self._addresses[self.head.name]
        inner.write(
            "/etc/condor/config.d/90-lab",
            f"{common_config(address)}SCHEDD_HOST = {self.head.name}.{DOMAIN}\n"
            f"SEC_TOKEN_DIRECTORY = {_SECRETS}/tokens\nSEC_PASSWORD_DIRECTORY = {_SECRETS}/keys\n"
            "SEC_CLIENT_AUTHENTICATION_METHODS = IDTOKENS\n",
        )
        inner.write(f"{_SECRETS}/tokens/head", self._token("gw1"), 0o600)
        inner.write(f"{_SECRETS}/keys/POOL", self.head.read("/etc/condor/passwords.d/POOL"), 0o600)
        inner.script(
            f"chown -R {DAEMON_USER}:{DAEMON_USER} {_SECRETS}; find {_SECRETS} -type d -exec "
            "chmod 700 {} +"
        )


def finished_job(ad: Mapping[str, Any]) -> FinishedJob:
    """One ad of condor_history(1)."""
    host = str(ad.get("LastRemoteHost", "")).rpartition("@")[2]
    return FinishedJob(
        id=f"{ad['ClusterId']}.{ad['ProcId']}",
        user=str(ad["Owner"]),
        name=str(ad.get("Arguments", "")).partition(" ")[0],
        state=_WORDS.get(ad["JobStatus"], f"status {ad['JobStatus']}"),
        nodes=host.partition(".")[0],
        submitted=datetime.fromtimestamp(ad["QDate"], UTC),
        started=_moment(ad.get("JobCurrentStartDate")),
        ended=_moment(ad.get("CompletionDate")) or datetime.now(UTC),
        exit_code=int(ad.get("ExitCode", -1)),
    )


def _moment(seconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None
