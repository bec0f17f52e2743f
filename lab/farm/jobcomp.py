"""Finished jobs from Slurm's job completion log (JobCompType=jobcomp/filetxt), without slurmdbd.

One line a job, `Name=value` pairs in a fixed order; values may hold spaces. The times have no zone:
slurmctld of the lab runs with TZ=UTC.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

_PAIR = re.compile(r"(?:^| )([A-Z][A-Za-z]*)=")


@dataclass(frozen=True)
class FinishedJob:
    """One line of the log. A job that was queued again has one line for each time it ran."""

    id: str  # as squeue shows it: "7", or "9_2" for a task of an array
    user: str
    name: str
    state: str  # Slurm's word: COMPLETED, FAILED, CANCELLED, TIMEOUT, NODE_FAIL ...
    nodes: str
    submitted: datetime
    started: datetime | None
    ended: datetime
    exit_code: int


def parse(text: str) -> tuple[FinishedJob, ...]:
    """Every whole line of the log; ValueError names what a line lacks."""
    whole = text[: text.rfind("\n") + 1]  # the last line may still be written
    return tuple(_line(line) for line in whole.splitlines() if line.strip())


def _line(line: str) -> FinishedJob:
    marks = list(_PAIR.finditer(line))
    ends = [mark.start() for mark in marks[1:]] + [len(line)]
    pairs: dict[str, str] = {}
    for mark, end in zip(marks, ends, strict=True):
        pairs.setdefault(mark[1], line[mark.end() : end].strip())
    try:
        array, task = pairs.get("ArrayJobId"), pairs.get("ArrayTaskId")
        ended = _time(pairs["EndTime"])
        submitted = _time(pairs["SubmitTime"])
        if ended is None or submitted is None:
            raise ValueError(f"job completion log: no time in {line!r}")
        return FinishedJob(
            id=f"{array}_{task}" if array and task else pairs["JobId"],
            user=pairs["UserId"].partition("(")[0],
            name=pairs["Name"],
            state=pairs["JobState"],
            nodes="" if pairs["NodeList"] == "(null)" else pairs["NodeList"],
            submitted=submitted,
            started=_time(pairs["StartTime"]),
            ended=ended,
            exit_code=int(pairs.get("ExitCode", "0:0").partition(":")[0]),
        )
    except KeyError as error:
        raise ValueError(f"job completion log: no {error.args[0]} in {line!r}") from error


def _time(text: str) -> datetime | None:
    if text in ("Unknown", "None", ""):
        return None
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
