"""Cores of one Slurm node, held by reservations: one for each lease.

What was tried with Slurm 22.05: `CoreSpecCount` and `CPUSpecList` are read when slurmd starts and
cannot be changed while it runs. A reservation of cores (`CoreCnt=`, needs cons_tres) can be made
while jobs run: slurmctld grants it out of idle cores only, at once and as a whole, or refuses
("Requested nodes are busy"); jobs then leave these cores alone; deleting it gives them back. It
cannot be changed ("Core-based reservation can not be updated"), so each lease has its own, named
after it; a second of the same name is refused. It outlives a restart of slurmctld. `UNLIMITED` is
a year. Memory cannot be reserved this way: see `docs/how-to/mixed-mode.md`.
Sources: reservations.html of Slurm's documentation, scontrol(1), and what it really answered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta

from burst.lrms.base import LrmsError, LrmsUnavailable
from burst.lrms.command import Result, Runner
from burst.lrms.slurm import run
from burst.mixed.ledger import Cores
from burst.providers.base import NoCapacity

PREFIX = "dvn-"
TIMEOUT = timedelta(seconds=30)

_OURS = re.compile(r"dvn-([0-9a-f]{32})")
_LEASE = re.compile(r"[0-9a-f]{32}")
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SILENT = (
    "unable to contact slurm controller",
    "timed out",
    "connection refused",
    "connection failure",
    "connect failure",
    "zero bytes were transmitted",
    "standby mode",
    "unable to establish control",
)


class SlurmShare:
    """`burst.mixed.share.Share` for the node of one hypervisor. Must run as root or SlurmUser."""

    def __init__(self, node: str, *, runner: Runner = run) -> None:
        if not _NODE.fullmatch(node):
            raise LrmsError(f"node {node!r}: that is no name of a Slurm node")
        self._node = node
        self._run = runner

    def cores(self) -> Cores:
        allocated, idle, other, total = self._sinfo()[:4]
        held = sum(self.held().values())
        del idle  # Slurm counts reserved cores as idle
        return Cores(total=total, jobs=allocated, held=held, closed=other)

    def held(self) -> Mapping[str, int]:
        threads = self._sinfo()[4]
        found = self._told("scontrol", "-o", "show", "reservations")
        return held_cores(found.out, self._node, threads)

    def hold(self, lease_id: str, cores: int) -> None:
        threads = self._sinfo()[4]
        done = self._asked(
            "scontrol",
            "create",
            "reservation",
            f"ReservationName={_name(lease_id)}",
            f"Nodes={self._node}",
            f"CoreCnt={-(-cores // threads)}",  # whole cores: no job on a machine's other thread
            "Users=root",
            "StartTime=now",
            "Duration=UNLIMITED",
        )
        said = done.said.lower()
        if done.status == 0 or "duplicate reservation name" in said:
            return
        if "busy" in said:
            raise NoCapacity(f"node {self._node} has less than {cores} cores free of jobs now")
        raise LrmsError(f"scontrol create reservation: {done.said}")

    def release(self, lease_id: str) -> None:
        done = self._asked("scontrol", "delete", f"ReservationName={_name(lease_id)}")
        said = done.said.lower()
        if done.status != 0 and "invalid" not in said and "not found" not in said:
            raise LrmsError(f"scontrol delete reservation: {done.said}")

    def _sinfo(self) -> tuple[int, int, int, int, int]:
        """Allocated, idle, other and all CPUs of the node, and its threads per core."""
        done = self._told("sinfo", "-h", "-n", self._node, "-o", "%C %Z")
        words = done.out.replace("/", " ").split()
        if len(words) < 5 or not all(word.isdigit() for word in words[:5]):
            raise LrmsError(
                f"node {self._node} is unknown to Slurm: see `mixed` in the site file, it names "
                "the hypervisor's node"
            )
        allocated, idle, other, total, threads = map(int, words[:5])
        return allocated, idle, other, total, max(threads, 1)

    def _told(self, *argv: str) -> Result:
        done = self._asked(*argv)
        if done.status != 0:
            raise LrmsError(f"{' '.join(argv[:3])}: {done.said}")
        return done

    def _asked(self, *argv: str) -> Result:
        done = self._run(argv, "", TIMEOUT)
        if done.status != 0 and any(word in done.said.lower() for word in _SILENT):
            raise LrmsUnavailable(done.said)
        return done


def held_cores(shown: str, node: str, threads: int) -> dict[str, int]:
    """CPUs by lease id, from `scontrol -o show reservations`: ours, on this node."""
    found = {}
    for line in shown.splitlines():
        words = dict(word.partition("=")[::2] for word in line.split() if "=" in word)
        ours = _OURS.fullmatch(words.get("ReservationName", ""))
        if ours and words.get("Nodes") == node and words.get("CoreCnt", "").isdigit():
            found[ours[1]] = int(words["CoreCnt"]) * threads
    return found


def _name(lease_id: str) -> str:
    if not _LEASE.fullmatch(lease_id):
        raise LrmsError(f"lease id {lease_id!r}: 32 hex digits are needed")
    return PREFIX + lease_id
