"""A real Grid Engine 8.1.9 cell (Debian bookworm) on lab hosts: qmaster on the head, one execution
host of the site's own in all.q, and borrowed machines in burst.q by a host group."""

from __future__ import annotations

import subprocess
from typing import Protocol

from burst.join.gridengine import machine_script
from burst.lrms.gridengine import GridEngine
from lab.farm.ground import USER, WAIT_PATH, RealGround
from lab.farm.trees import WHOLE, Tree, TreeHost

TREE = Tree(
    "bookworm",
    ("gridengine-master", "gridengine-exec", "gridengine-client", *WHOLE),
    seeds=(
        "gridengine-common shared/gridengineconfig boolean true",
        "gridengine-common shared/gridenginecell string default",
        "gridengine-common shared/gridenginemaster string head",
    ),
    broken=("gridengine-master",),  # its daemon is not started in a tree, and it minds
)
ROOT = "/var/lib/gridengine"
_SPOOL = "/var/spool/gridengine"
_CELL = f"""\
for d in {_SPOOL} {_SPOOL}/qmaster {_SPOOL}/qmaster/job_scripts {_SPOOL}/spooldb \\
         {ROOT}/default/common /run/gridengine; do
  mkdir -p $d; chown sgeadmin:sgeadmin $d
done
chown -R sgeadmin:sgeadmin {ROOT}/default {_SPOOL}
echo head > {ROOT}/default/common/act_qmaster
echo '-q all.q' > {ROOT}/default/common/sge_request
if [ ! -e /root/.initialised ]; then
  rm -rf {_SPOOL}/spooldb/*
  setpriv --reuid=sgeadmin --regid=sgeadmin --clear-groups \\
    /usr/share/gridengine/scripts/init_cluster {ROOT} default {_SPOOL}/spooldb sgeadmin
  touch /root/.initialised
fi
SGEROOT={ROOT} SGE_CELL=default sge_qmaster
"""
_MANAGER = """\
qconf -as head
qconf -Ahgrp /tmp/allhosts; qconf -Ahgrp /tmp/burst
qconf -Ap /tmp/pe
qconf -Aq /tmp/all.q
qconf -Aq /tmp/burst.q
qconf -Msconf /tmp/sconf
"""
_SCHEDULER = {"schedule_interval": "0:0:1", "flush_submit_sec": "1", "flush_finish_sec": "1"}
_PE = """\
pe_name            smp
slots              999
user_lists         NONE
xuser_lists        NONE
start_proc_args    /bin/true
stop_proc_args     /bin/true
allocation_rule    $pe_slots
control_slaves     FALSE
job_is_first_task  TRUE
urgency_slots      min
accounting_summary FALSE
qsort_args         NONE
"""


class Machine(Protocol):
    """A host with the tree's files: `lab.host.Host`, or `lab.farm.trees.TreeHost`."""

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]: ...

    def script(self, text: str, *arguments: str) -> subprocess.CompletedProcess[str]: ...

    def write(self, path: str, text: str) -> None: ...


def start_qmaster(head: Machine) -> None:
    """Start it, with a new cell if there is none; `answers` says when it is up."""
    head.script(_CELL)


def answers(head: Machine) -> bool:
    return (
        head.run("qconf", "-sql", check=False).returncode in (0, 1)
        and "qmaster" not in head.run("qconf", "-sh", check=False).stderr
    )


def configure(head: Machine, *, slots: int, lost_s: int) -> None:
    """Queues all.q and burst.q, each with its host group. lost_s: after so many seconds without a
    word from a host its jobs are queued again."""
    for name in ("allhosts", "burst"):
        head.write(f"/tmp/{name}", f"group_name @{name}\nhostlist NONE\n")
    head.write("/tmp/pe", _PE)
    template = head.run("qconf", "-sq").stdout
    for queue, group in (("all.q", "@allhosts"), ("burst.q", "@burst")):
        settings = {
            "qname": queue, "hostlist": group, "slots": str(slots), "rerun": "TRUE",
            "load_thresholds": "NONE", "pe_list": "smp", "shell_start_mode": "unix_behavior",
        }  # fmt: skip
        head.write(f"/tmp/{queue}", _changed(template, settings))
    sconf = head.run("qconf", "-ssconf").stdout
    head.write("/tmp/sconf", _changed(sconf, _SCHEDULER))
    head.script(_MANAGER)
    conf = head.run("qconf", "-sconf").stdout
    limit = f"{lost_s // 3600:02}:{lost_s // 60 % 60:02}:{lost_s % 60:02}"
    quick = {
        "max_unheard": limit, "load_report_time": "00:00:03", "reschedule_unknown": limit
    }  # fmt: skip
    head.write("/tmp/global", _changed(conf.split("\n", 1)[1], quick))
    head.script("qconf -Mconf /tmp/global; touch /root/.configured")


def add_site_node(head: Machine, name: str, slots: int) -> None:
    """A host of the site's own: of all.q."""
    head.script(
        "qconf -ah $1; qconf -aattr hostgroup hostlist $1 @allhosts\n"
        "qconf -mattr queue slots $2 all.q@$1",
        name,
        str(slots),
    )


def client_script() -> str:
    """Shell lines that make the cell's files on a host that has only the commands."""
    return machine_script("head", "default", 6444, 6445)


def start_execd(host: Machine) -> None:
    host.script(client_script())
    host.script(f"SGEROOT={ROOT} SGE_CELL=default sge_execd")


class GridEngineCell(RealGround):
    tree = TREE
    local = "all.q"
    burst = "burst.q"
    keeps_drain_reason = False
    patience_s = 120.0

    def adapter(self) -> GridEngine:
        return GridEngine([self.burst], runner=self.runner(env={"TZ": "UTC"}))

    def start_head(self) -> None:
        first = not self._started()
        start_qmaster(self.head)
        self.head.host.wait_for(lambda: answers(self.head), 60, what="the qmaster")
        if first:
            configure(self.head, slots=2, lost_s=10)

    def _started(self) -> bool:
        found = self.head.run("test", "-e", "/root/.configured", check=False)
        return found.returncode == 0

    def stop_head(self) -> None:
        self.head.script(
            "qconf -km || true\n"
            "for n in $(seq 100); do pgrep -x sge_qmaster >/dev/null || exit 0; sleep 0.1; done\n"
            "pkill -9 sge_qmaster || true"
        )

    def start_site_node(self) -> None:
        add_site_node(self.head, "node1", 2)
        start_execd(self.hosts["node1"])

    def start_machine(self, host: TreeHost, node: str, cores: int) -> None:
        start_execd(host)

    def submit(self, *, cores: int = 1, held: bool = False, tasks: int = 0) -> list[str]:
        options = ["-terse", "-b", "y", "-N", "hn", "-l", "h_rt=0:20:0", "-o", "/dev/null"]
        options += ["-e", "/dev/null", "-r", "y"]
        options += ["-h"] if held else []
        options += ["-pe", "smp", str(cores)] if cores > 1 else []
        options += ["-t", f"1-{tasks}"] if tasks else []
        script = f"exec {WAIT_PATH} $JOB_ID$([ $SGE_TASK_ID = undefined ] || echo .$SGE_TASK_ID)"
        made = self.head.run(
            "qsub", *options, "/bin/sh", "-c", f"'{script}'",
            user=USER, cwd=f"/home/{USER}",
        )  # fmt: skip
        number = made.stdout.strip().partition(".")[0]
        return [f"{number}.{task}" for task in range(1, tasks + 1)] if tasks else [number]

    def cancel_all(self) -> None:
        self.head.run("qdel", "-f", "-u", "*", check=False)

    def operator_drain(self, node: str) -> None:
        self.head.run("qmod", "-d", f"burst.q@{node}")

    def forget(self, node: str) -> None:
        self.head.script(
            "qconf -dattr hostgroup hostlist $1 @burst || true\n"
            "qconf -purge queue '*' burst.q@$1 || true\n"
            "qconf -de $1 || true; qconf -dh $1 || true",
            node,
        )

    def logs(self) -> str:
        shown = self.head.run(
            "sh", "-c", f"qstat -f -u '*'; qhost -q; tail -n 20 {_SPOOL}/qmaster/messages"
        )
        return shown.stdout


def _changed(text: str, settings: dict[str, str]) -> str:
    """A Grid Engine listing (`name value` lines) with some values replaced."""
    lines = []
    for line in text.replace("\\\n", " ").splitlines():
        name = line.partition(" ")[0]
        lines.append(f"{name} {settings[name]}" if name in settings else line)
    return "\n".join(lines) + "\n"
