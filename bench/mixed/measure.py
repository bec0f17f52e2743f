"""The experiment: batch jobs alone; then beside machines that want all there is, with everybody in
one group, in a slice for each side, and with weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.mixed.disk import slow_disk
from bench.mixed.groups import BATCH, MACHINES, sides
from burst.mixed.weights import Weights, write

PHASES = ("alone", "together", "slices", "weights")
# Twice as many as batch jobs: machines run more threads than their virtual cores.
MACHINES_PER_JOB = 2


@dataclass(frozen=True)
class Wanted:
    seconds: float
    runs: int
    batch_weight: int
    machine_weight: int


def measure(wanted: Wanted) -> dict[str, Any]:
    """Rows `{load, phase, run, rate, machines_rate, share}`: work per second of both sides, and
    the batch side's part of all that was done in that time: what else the machine does meanwhile
    slows both alike. Raises NoGroupsError."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    with sides() as top, slow_disk() as disk:
        loads: dict[str, list[str]] = {"cpu": []}
        if disk is None:
            notes.append("no disk under BFQ here: input and output were not measured")
        else:
            loads["disk"] = [str(disk)]
        for load, more in loads.items():
            jobs = os.cpu_count() or 1
            if load == "disk":
                jobs = 2
            for run in range(wanted.runs):
                for phase in PHASES:
                    batch, machines = _rates(top, load, more, jobs, phase, wanted, notes)
                    rows.append(
                        {
                            "load": load,
                            "phase": phase,
                            "run": run,
                            "rate": round(batch, 1),
                            "machines_rate": round(machines, 1),
                            "share": round(batch / max(batch + machines, 1e-9), 3),
                        }
                    )
    return {
        "rows": rows,
        "weights": {"batch": wanted.batch_weight, "machines": wanted.machine_weight},
        "cores": os.cpu_count(),
        "machines_per_job": MACHINES_PER_JOB,
        "machines": "processes in machine.slice in the place of QEMU's threads",
        "notes": sorted(set(notes)),
    }


def _rates(
    top: Path,
    load: str,
    more: Sequence[str],
    jobs: int,
    phase: str,
    wanted: Wanted,
    notes: list[str],
) -> tuple[float, float]:
    """Work per second of the batch side, and of the machines at the same time."""
    weights = Weights(batch_slice=BATCH, machine_slice=MACHINES)
    if phase == "weights":
        weights = Weights(wanted.batch_weight, wanted.machine_weight, BATCH, MACHINES)
    notes += [problem.replace(str(top), "") for problem in write(weights, top)]
    # In one group nobody tells a job from a machine: each thread gets the same.
    machine_side = BATCH if phase == "together" else MACHINES
    beside = 0 if phase == "alone" else jobs * MACHINES_PER_JOB
    work = (load, f"{wanted.seconds:g}", *more)
    workers = [_worker(top / BATCH, work) for _ in range(jobs)]
    workers += [_worker(top / machine_side, work) for _ in range(beside)]
    limit = wanted.seconds * 10 + 120
    try:
        for worker in workers:
            if not worker.stdout or worker.stdout.readline() != "ready\n":
                raise RuntimeError(f"a worker did not start: {' '.join(work)}")
        for worker in workers:
            if worker.stdin:
                worker.stdin.write("\n")
                worker.stdin.flush()
        counts = [int(worker.communicate(timeout=limit)[0] or 0) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait(timeout=60)
    return sum(counts[:jobs]) / wanted.seconds, sum(counts[jobs:]) / wanted.seconds


def _worker(group: Path, work: Sequence[str]) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "bench.mixed.work", str(group), *work]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
