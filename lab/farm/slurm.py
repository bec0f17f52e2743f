"""A real Slurm cluster on lab hosts: head, workers, hosts that only submit, and joining nodes."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Self

from burst.lrms.command import Result
from burst.lrms.slurm import Slurm
from lab.farm import clients, config, jobcomp, machine, nfs
from lab.farm.config import Timing, User, Worker
from lab.farm.trees import Tree
from lab.host import Host, LabError

FIRST_UID = 2001  # of the lab's users
COMMANDS = ("sbatch", "scancel", "scontrol", "sinfo", "squeue")

_SUBMITTED = re.compile(r"Submitted batch job (\d+)")


class SlurmFarm:
    """The cluster, up when the context is entered.

    addresses: each host's address in the farm's network, by host name; a host not named is asked
    for its own. network: the prefix that may mount /home. The hosts must be linked already; a
    submit host may get its address later (a gateway's is made by the first `dvn apply`). clients:
    the tree whose Slurm commands the submit hosts get; none: the machine's own.
    """

    def __init__(
        self,
        head: Host,
        workers: Sequence[Host],
        *,
        submit_hosts: Sequence[Host] = (),
        users: Sequence[str] = ("alice", "bob"),
        addresses: Mapping[str, str] | None = None,
        network: str = "10.9.0.0/24",
        burst_partitions: Sequence[str] = ("burst-cms",),
        timing: Timing | None = None,
        cgroup_conf: str = config.CGROUP_CONF,
        clients: Tree | None = None,
    ) -> None:
        self.head = head
        self.workers = tuple(workers)
        self.submit_hosts = tuple(submit_hosts)
        self.users = tuple(User(name, FIRST_UID + n) for n, name in enumerate(users))
        self.network = network
        self.munge_key = os.urandom(128)
        self._addresses = dict(addresses or {})
        self._partitions = tuple(burst_partitions)
        self._timing = timing or Timing()
        self._cgroup_conf = cgroup_conf
        self._clients = clients
        self._joined: list[Host] = []
        self.slurm_conf = ""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start every daemon; returns when all workers are idle. LabError says what did not."""
        for host in (self.head, *self.workers):
            self._addresses.setdefault(host.name, _address_of(host))
        head_address = self._addresses[self.head.name]
        self.slurm_conf = config.slurm_conf(
            cluster="lab",
            head=self.head.name,
            head_address=head_address,
            workers=[_worker(host, self._addresses[host.name]) for host in self.workers],
            burst_partitions=self._partitions,
            timing=self._timing,
        )
        with ThreadPoolExecutor(max_workers=4) as side:  # they wait for programs most of the time
            home = side.submit(nfs.serve, self.head, network=self.network, users=self.users)
            control = side.submit(self._start_head)
            others = [
                *(side.submit(self._start_munged, host) for host in self.workers),
                *(side.submit(self._start_submit_host, host) for host in self.submit_hosts),
            ]
            for started in (home, control, *others):
                started.result()
            nodes = [
                side.submit(self._start_slurmd, host, f"-N {host.name}") for host in self.workers
            ]
            for started in nodes:
                started.result()
        names = {host.name for host in self.workers}
        self.wait_nodes(lambda up: names <= up, what="the workers in sinfo")

    def stop(self) -> None:
        """Let go of /home everywhere before the server dies: an NFS client without its server
        holds its host for half a minute. The daemons end with their hosts."""
        for host in (*self._joined, *self.workers):
            if host.alive:
                with suppress(LabError):
                    leave(host)
        if self.head.alive:
            with suppress(LabError):
                nfs.stop(self.head)

    # Jobs

    def sbatch(self, user: str, script: str, *options: str) -> str:
        """Submit as an ordinary user, on the head, in the home directory; the job's id."""
        result = self.head.run("sbatch", *options, user=user, input=script, cwd=f"/home/{user}")
        return _job_id(result.stdout)

    def sbatch_many(self, user: str, script: str, options: Sequence[Sequence[str]]) -> list[str]:
        """Submit one script several times, each with its own options; ids in the same order."""
        lines = ['cat > "$1"']
        lines += [" ".join(["sbatch", *map(_quoted, one), '"$1"']) for one in options]
        done = self.head.script(
            "\n".join(lines),
            f"/home/{user}/.flash-{time.monotonic_ns()}.sh",
            user=user,
            input=script,
            timeout=60 + 5 * len(options),
        )
        ids = _SUBMITTED.findall(done.stdout)
        if len(ids) != len(options):
            raise LabError(f"sbatch: {len(options)} jobs wanted, said {done.stdout!r}")
        return ids

    def finished(self) -> tuple[jobcomp.FinishedJob, ...]:
        """Every job that has ended, as slurmctld logged it; without a fork."""
        try:
            return jobcomp.parse(self.head.read(config.JOB_COMPLETIONS))
        except LabError:
            return ()  # slurmctld writes the file when the first job ends

    def wait_finished(self, ids: Iterable[str], timeout: float) -> list[jobcomp.FinishedJob]:
        """Wait until all of them have ended; the last line of each, in the order of ids."""
        wanted = list(ids)
        last: dict[str, jobcomp.FinishedJob] = {}

        def done() -> bool:
            last.update((job.id, job) for job in self.finished())
            return all(job in last for job in wanted)

        self.head.wait_for(done, timeout, what=f"the end of jobs {' '.join(wanted)}")
        return [last[job] for job in wanted]

    # Nodes

    def join(
        self,
        host: Host,
        *,
        name: str,
        features: Sequence[str],
        cores: int = 1,
        memory_mb: int = 256,
    ) -> None:
        """Do on a host what a borrowed machine's join bundle does, and wait for the node."""
        address = self._addresses.setdefault(host.name, _address_of(host))
        host.run("hostname", name)
        self._start_munged(host)
        self._joined.append(host)
        conf = (
            f"NodeAddr={address} CPUs={cores} RealMemory={memory_mb} Feature={','.join(features)}"
        )
        self._start_slurmd(host, f"-Z -N {_quoted(name)} --conf {_quoted(conf)}")
        self.wait_nodes(lambda up: name in up, what=f"node {name} in sinfo")

    def wait_nodes(
        self, condition: Callable[[set[str]], bool], *, timeout: float = 60, what: str = "nodes"
    ) -> None:
        """Wait until the set of nodes that can take jobs satisfies the condition."""

        def enough() -> bool:
            return condition(self.nodes_up())

        try:
            self.head.wait_for(enough, timeout, what=what)
        except LabError as error:
            raise LabError(f"{error}\n{self.logs()}") from error

    def known_nodes(self) -> set[str]:
        """Every node of the cluster, whatever its state."""
        return set(self.head.run("sinfo", "-h", "-N", "-o", "%N").stdout.split())

    def nodes_up(self) -> set[str]:
        """The nodes that are up and answer (sinfo(1): --responding)."""
        shown = self.head.run("sinfo", "-h", "-N", "-r", "-o", "%N %T", check=False).stdout
        rows = [line.split() for line in shown.splitlines()]
        return {
            row[0] for row in rows if len(row) == 2 and row[1] in ("idle", "mixed", "allocated")
        }

    def lrms(self, host: Host | None = None) -> Slurm:
        """The adapter of production, its commands run on a host of the lab (the head) as slurm."""
        where = host or self.head

        def run(argv: Sequence[str], given: str, timeout: timedelta) -> Result:
            done = where.run(
                *argv,
                user="slurm",
                env={"SLURM_BITSTR_LEN": "0"},
                input=given,
                timeout=timeout.total_seconds(),
                check=False,
            )
            return Result(done.returncode, done.stdout, done.stderr)

        return Slurm(runner=run)

    def logs(self, lines: int = 15) -> str:
        """The end of every daemon's log, for the text of an error."""
        parts = []
        for host in (self.head, *self.workers, *self._joined):
            for name in ("slurmctld", "slurmd"):
                with suppress(LabError):
                    text = host.read(f"/var/log/slurm/{name}.log").splitlines()[-lines:]
                    parts.append("\n".join([f"-- {host.name} {name}.log", *text]))
        return "\n".join(parts)

    # Details

    def _prepare(self, host: Host) -> None:
        hosts = config.hosts_file(self._addresses)
        files = machine.Files(self.munge_key, self.slurm_conf, hosts, self.users, self._cgroup_conf)
        machine.prepare(host, files)

    def _start_head(self) -> None:
        self._prepare(self.head)
        # The completion log has times without a zone: UTC, as lab.farm.jobcomp reads them.
        self.head.script(machine.MUNGED + "TZ=UTC exec slurmctld")
        self._wait_listening(self.head, config.SLURMCTLD_PORT)

    def _start_munged(self, host: Host) -> None:
        self._prepare(host)
        host.script(machine.MUNGED)

    def _start_submit_host(self, host: Host) -> None:
        self._start_munged(host)
        if self._clients is not None:
            shared = ("/etc/passwd", "/etc/group", "/etc/hosts", "/etc/slurm", "/run/munge")
            clients.lay(host, self._clients, COMMANDS, shared)

    def _start_slurmd(self, host: Host, arguments: str) -> None:
        own = self._addresses[host.name]
        mount = nfs.mount_command(self._addresses[self.head.name], own)
        host.script(f'"$@"\nexec slurmd {arguments}', *mount)

    def _wait_listening(self, host: Host, port: int) -> None:
        address = self._addresses[host.name]

        def listening() -> bool:
            try:
                host.connect(address, port, timeout=2).close()
            except OSError:
                return False
            return True

        try:
            host.wait_for(listening, 30, what=f"TCP port {port}")
        except LabError as error:
            raise LabError(f"{error}\n{self.logs()}") from error


def leave(host: Host) -> None:
    """What a machine that leaves does last: no slurmd, no jobs, no /home."""
    host.script(
        "[ ! -e /run/slurmd.pid ] || kill $(cat /run/slurmd.pid) || true\n"
        "! mountpoint -q /home || umount -f -l /home\n"
    )


def _worker(host: Host, address: str) -> Worker:
    cores, memory = host.spec.cores, host.spec.memory_mb
    return Worker(host.name, address, max(1, int(cores or 1)), memory or 512)


def _address_of(host: Host) -> str:
    shown = json.loads(host.run("ip", "-j", "-4", "address", "show", "scope", "global").stdout)
    for link in shown:
        for address in link.get("addr_info", ()):
            return str(address["local"])
    raise LabError(f"host {host.name} has no IPv4 address: link it and give it one first")


def _job_id(said: str) -> str:
    found = _SUBMITTED.search(said)
    if found is None:
        raise LabError(f"sbatch did not name a job: {said!r}")
    return found[1]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
