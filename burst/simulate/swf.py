"""Recorded queues in the Standard Workload Format (SWF).

Eighteen numbers a line, -1 for what is not known, comments behind `;` (Chapin and others,
"Benchmarks and standards for the evaluation of parallel job schedulers", JSSPP 1999;
https://www.cs.huji.ac.il/labs/parallel/workload/swf.html).
"""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

_COLUMNS = 18
_HEADER = re.compile(r";\s*(\w+):\s*(.*?)\s*$")
# What users ask for: a handful of round values (Tsafrir, Etsion and Feitelson, "Modeling user
# runtime estimates", JSSPP 2005), in seconds.
ROUND_LIMITS = tuple(
    minutes * 60
    for minutes in (1, 5, 10, 15, 30, 60, 120, 180, 240, 360, 480, 720, 1080, 1440, 2880, 4320)
)


class TraceError(Exception):
    """The file is no trace; the message names file and line, and says what is wrong."""


@dataclass(frozen=True, slots=True)
class TraceJob:
    """One job: seconds since the trace began, seconds of running, and processors."""

    number: int
    submit: float
    run: float
    cores: int
    limit: float | None  # the time it asked for
    user: str


@dataclass(frozen=True, slots=True)
class Trace:
    name: str
    cores: int  # of the machine it was recorded on
    jobs: tuple[TraceJob, ...]  # in order of submission

    @property
    def span(self) -> float:
        """Seconds from the first submission to the last."""
        return self.jobs[-1].submit - self.jobs[0].submit if self.jobs else 0.0

    @property
    def load(self) -> float:
        """The share of the machine that the jobs would fill over the span."""
        work = sum(job.run * job.cores for job in self.jobs)
        return work / (self.cores * self.span) if self.span else 0.0


def read(path: Path, cores: int | None = None) -> Trace:
    """A trace from a file, `.gz` or not; `cores` overrides what its header says of the machine.

    Jobs that never ran (no run time or no processors) are left out, as archives advise.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8", errors="replace") as lines:
            header, jobs = _parse(lines, path)
    except (OSError, EOFError) as error:
        raise TraceError(f"{path}: it cannot be read: {error}") from None
    if not jobs:
        raise TraceError(f"{path}: there is no job in it: is it in the Standard Workload Format?")
    known = cores or _number(header.get("MaxProcs")) or _number(header.get("MaxNodes"))
    size = known or max(job.cores for job in jobs)
    name = path.name.removesuffix(".gz").removesuffix(".swf")
    fitting = tuple(job for job in jobs if job.cores <= size)
    return Trace(name, size, tuple(sorted(fitting, key=lambda job: job.submit)))


def _parse(lines: Iterable[str], path: Path) -> tuple[dict[str, str], list[TraceJob]]:
    header: dict[str, str] = {}
    jobs: list[TraceJob] = []
    for number, line in enumerate(lines, start=1):
        if line.startswith(";"):
            if match := _HEADER.match(line):
                header.setdefault(match[1], match[2])
            continue
        words = line.split()
        if not words:
            continue
        try:
            values = [float(word) for word in words[:_COLUMNS]]
        except ValueError:
            raise TraceError(
                f"{path}:{number}: {line.strip()!r} is not a line of numbers"
            ) from None
        if len(values) < 5:
            text = f"{path}:{number}: {len(values)} columns where there should be {_COLUMNS}"
            raise TraceError(text)
        job = _job(values + [-1.0] * (_COLUMNS - len(values)))
        if job is not None:
            jobs.append(job)
    return header, jobs


def _job(values: list[float]) -> TraceJob | None:
    cores = int(values[4] if values[4] > 0 else values[7])
    run = values[3]
    if cores <= 0 or run < 0:
        return None
    limit = max(values[8], run) if values[8] > 0 else None
    return TraceJob(int(values[0]), values[1], max(run, 1.0), cores, limit, f"u{int(values[11])}")


def _number(text: str | None) -> int | None:
    match = re.match(r"\d+", text or "")
    return int(match[0]) if match else None


def at_load(trace: Trace, load: float) -> Trace:
    """The same jobs, arriving faster or slower, so that they would fill `load` of the machine."""
    if not trace.load or load <= 0:
        raise TraceError(f"{trace.name}: its load of {trace.load:.2f} cannot be made {load}")
    first, factor = trace.jobs[0].submit, trace.load / load
    jobs = tuple(replace(job, submit=(job.submit - first) * factor) for job in trace.jobs)
    return replace(trace, jobs=jobs)


def with_limits(trace: Trace, seed: int = 1, most: float = 5.0) -> Trace:
    """A time limit for each job that has none: between once and `most` times what it takes (the
    "f-model", Mu'alem and Feitelson, IEEE TPDS 12(6), 2001), then rounded up to what users write.
    """
    rng = random.Random(seed)
    jobs = []
    for job in trace.jobs:
        asked = job.run * rng.uniform(1.0, most)  # drawn for each, so that a limit changes no other
        if job.limit is None:
            rounded = next((limit for limit in ROUND_LIMITS if limit >= asked), asked)
            job = replace(job, limit=float(rounded))
        jobs.append(job)
    return replace(trace, jobs=tuple(jobs))


def repeated(trace: Trace, count: int) -> Trace:
    """At least `count` jobs: the trace again and again, one after the other."""
    jobs: list[TraceJob] = []
    period = trace.span + 1.0
    for job in trace.jobs * (-(-count // max(len(trace.jobs), 1))):
        turn = len(jobs) // len(trace.jobs)
        jobs.append(replace(job, number=len(jobs) + 1, submit=job.submit + turn * period))
    return replace(trace, jobs=tuple(jobs[:count]))
