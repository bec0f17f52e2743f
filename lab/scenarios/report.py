"""What a story leaves to be judged by: one frozen report, its JSON and its text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Literal

Where = Literal["local", "remote"]


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job; instants are UTC. `result_ok`: its output equals the independently computed one."""

    id: str
    submitted: datetime
    started: datetime | None
    ended: datetime | None
    node: str
    where: Where | None
    state: str  # the LRMS's own final word, e.g. COMPLETED
    result_ok: bool
    problem: str = ""

    @property
    def waited_s(self) -> float | None:
        return None if self.started is None else (self.started - self.submitted).total_seconds()


@dataclass(frozen=True, slots=True)
class LeaseRow:
    id: str
    provider: str
    machine: str
    node: str
    state: str
    requested: datetime | None
    booted: datetime | None
    tunnelled: datetime | None
    joined: datetime | None
    left: datetime | None
    terminated: datetime | None
    cost: Decimal
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Traffic:
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Makespan:
    """Seconds from the first submission to the last end. None: not measured."""

    burst: float
    local_only: float | None


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What should not be there any more, counted where it would be: all zero when all is well."""

    instances: int
    nodes: int
    links: int
    nft_tables: int
    leases: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True)
class Report:
    jobs: tuple[JobRow, ...]
    leases: tuple[LeaseRow, ...]
    gre: Traffic
    other_traffic: dict[str, Traffic]
    makespan_s: Makespan
    leftovers: Leftovers
    cost: Decimal
    currency: str
    phases_s: dict[str, float]
    expect_remote: float = 0.5  # the share of jobs that the story wants to have run remote

    @property
    def complaints(self) -> tuple[str, ...]:
        """Everything that keeps the story from being a success, in words."""
        found: list[str] = []
        if not self.jobs:
            found.append("no job was seen to end")
        for job in self.jobs:
            if job.state != "COMPLETED":
                found.append(f"job {job.id} ended {job.state or 'nowhere'}")
            elif not job.result_ok:
                found.append(f"job {job.id}: {job.problem}")
        remote = sum(job.where == "remote" for job in self.jobs)
        if remote < self.expect_remote * len(self.jobs):
            found.append(f"only {remote} of {len(self.jobs)} jobs ran remote")
        if self.gre.packets == 0:
            found.append("no GRE packet was seen at the internet router")
        burst, local = self.makespan_s.burst, self.makespan_s.local_only
        if local is not None and burst >= local:
            found.append(f"bursting took {burst:.0f} s, the farm alone {local:.0f} s")
        for field in fields(self.leftovers):
            if count := getattr(self.leftovers, field.name):
                found.append(f"left behind: {count} {field.name.replace('_', ' ')}")
        return tuple(found)

    @property
    def ok(self) -> bool:
        return not self.complaints

    def to_json(self) -> str:
        content = {
            "ok": self.ok,
            "complaints": list(self.complaints),
            **asdict(self),
        }
        for row, job in zip(content["jobs"], self.jobs, strict=True):
            row["waited_s"] = job.waited_s
        return json.dumps(content, indent=2, default=_plain) + "\n"


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"{type(value).__name__} has no place in a report")


def text(report: Report) -> str:
    """The report for a person, without colour: tables of jobs and leases, then the verdict."""
    lines = [*_job_lines(report.jobs), "", *_lease_lines(report.leases, report.currency), ""]
    burst, local = report.makespan_s.burst, report.makespan_s.local_only
    remote = sum(job.where == "remote" for job in report.jobs)
    lines.append(f"jobs       {len(report.jobs)}, {remote} of them on borrowed machines")
    if local is None:
        lines.append(f"makespan   {burst:.0f} s")
    else:
        lines.append(
            f"makespan   {burst:.0f} s with bursting, {local:.0f} s without: "
            f"{local / burst:.1f} times as fast"
        )
    lines.append(f"cost       {report.cost:.4f} {report.currency}")
    lines.append(
        f"GRE        {report.gre.packets} packets, {report.gre.bytes} bytes at the internet router"
    )
    for name, seen in report.other_traffic.items():
        lines.append(f"{name:<10} {seen.packets} packets, {seen.bytes} bytes")
    left = ", ".join(
        f"{getattr(report.leftovers, field.name)} {field.name.replace('_', ' ')}"
        for field in fields(report.leftovers)
    )
    lines.append(f"leftovers  {left}")
    lines.append("phases     " + ", ".join(f"{k} {v:.0f} s" for k, v in report.phases_s.items()))
    lines.append("")
    if report.ok:
        lines.append("All jobs right, nothing left behind.")
    else:
        lines.extend(f"NOT OK: {complaint}" for complaint in report.complaints)
    return "\n".join(lines) + "\n"


def _clock(moment: datetime | None) -> str:
    return "-" if moment is None else moment.strftime("%H:%M:%S")


def _job_lines(jobs: Iterable[JobRow]) -> list[str]:
    lines = [
        (
            f"{'job':>6}  {'submitted':9} {'started':9} {'ended':9} {'waited':>7}  "
            f"{'where':7} {'node':22} {'state':10} result"
        )
    ]
    for job in jobs:
        waited = "-" if job.waited_s is None else f"{job.waited_s:.0f} s"
        lines.append(
            f"{job.id:>6}  {_clock(job.submitted):9} {_clock(job.started):9} "
            f"{_clock(job.ended):9} {waited:>7}  {job.where or '-':7} {job.node:22} "
            f"{job.state:10} {'right' if job.result_ok else 'WRONG'}"
        )
    return lines


def _lease_lines(leases: Iterable[LeaseRow], currency: str) -> list[str]:
    lines = [
        (
            f"{'lease':8}  {'machine':20} {'requested':9} {'booted':9} {'tunnelled':9} "
            f"{'joined':9} {'left':9} {'returned':9} {'state':7} cost ({currency})"
        )
    ]
    for lease in leases:
        lines.append(
            f"{lease.id[:8]}  {lease.machine or '-':20} {_clock(lease.requested):9} "
            f"{_clock(lease.booted):9} {_clock(lease.tunnelled):9} {_clock(lease.joined):9} "
            f"{_clock(lease.left):9} {_clock(lease.terminated):9} {lease.state:7} "
            f"{lease.cost:.5f}" + (f"  {lease.failure}" if lease.failure else "")
        )
    return lines
