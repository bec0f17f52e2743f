"""What LSF says, turned into the values of burst.model. Pure: text in, values out.

Reads `bjobs -o ... -json`, `bhosts -o ... -json` and `lshosts -w` (LSF 10.1 as documented). Every
value is a string, "" or "-" when unset. Times have no year unless LSB_DISPLAY_YEAR=Y, and no zone:
the commands are run with TZ=UTC.
Sources: the LSF Command Reference (bjobs -o and -json, bhosts, lshosts).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from burst.lrms.base import LrmsError
from burst.model import Job, JobState, Node, NodeState

JOB_FIELDS = (
    "jobid jobindex stat user queue job_name proj_name nreq_slot exec_host submit_time start_time "
    "finish_time runtimelimit memlimit pend_reason combined_resreq dependency esstart_time"
)
HOST_FIELDS = "host_name status max njobs run ssusp ususp rsv"

Record = Mapping[str, str]

_STATES: Mapping[str, JobState] = {
    "PEND": JobState.PENDING,
    "WAIT": JobState.PENDING,
    "PSUSP": JobState.HELD,
    "PROV": JobState.RUNNING,
    "RUN": JobState.RUNNING,
    "USUSP": JobState.RUNNING,
    "SSUSP": JobState.RUNNING,
    "UNKWN": JobState.RUNNING,  # its host does not answer
    "ZOMBI": JobState.FAILED,
    "DONE": JobState.DONE,
    "EXIT": JobState.FAILED,
}
_SIZE = re.compile(r"([0-9.]+)\s*([KMGT]?)", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 / 1024, "M": 1, "G": 1 << 10, "T": 1 << 20}
_SELECT = re.compile(r"select\[([^\]]*)\]")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOAD = frozenset({  # what every host has: type, model, load indices (lim(8))
    "type", "model", "any", "local", "mem", "tmp", "swp", "maxmem", "maxswp", "maxtmp", "ncpus",
    "ncores", "nthreads", "nprocs", "r15s", "r1m", "r15m", "ut", "pg", "ls", "it", "io", "cpuf",
    "defined", "X86_64", "LINUX",
})  # fmt: skip
_TIMES = ("%b %d %H:%M:%S %Y", "%b %d %H:%M %Y", "%b %d %H:%M:%S", "%b %d %H:%M")


@dataclass(frozen=True, slots=True)
class Static:
    """A line of `lshosts -w`."""

    cores: int
    memory_mb: int
    resources: tuple[str, ...]


def records(command: str, text: str) -> tuple[Record, ...]:
    """The RECORDS of a -json answer; none when it is empty (then the message is on stderr)."""
    if not text.strip():
        return ()
    try:
        document = json.loads(text)
    except ValueError as error:
        raise LrmsError(f"{command}: the answer is not JSON ({error}): {text[:80]!r}") from error
    found = document.get("RECORDS") if isinstance(document, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise LrmsError(f"{command}: field 'RECORDS' is missing or not a list of objects")
    bad = [str(one["ERROR"]) for one in found if one.get("ERROR")]
    if bad and len(bad) == len(found):
        raise LrmsError(f"{command}: {bad[0]}")
    return tuple(
        {str(key): _unset(str(value)) for key, value in one.items()}
        for one in found
        if not one.get("ERROR")
    )


def jobs(listed: tuple[Record, ...], taken: datetime, homes: Mapping[str, str]) -> tuple[Job, ...]:
    """homes: for each queue of borrowed machines, the queue its jobs come from."""
    return tuple(_job(one, taken, homes) for one in listed)


def static(text: str) -> dict[str, Static]:
    """`lshosts -w`: HOST_NAME type model cpuf ncpus maxmem maxswp server RESOURCES."""
    found = {}
    for line in text.splitlines()[1:]:
        plain, _, listed = line.partition("(")
        fields = plain.split()
        if len(fields) < 6:
            continue
        cores = int(fields[4]) if fields[4].isdigit() else 0
        words = tuple(listed.rstrip(") ").split())
        found[fields[0]] = Static(cores, size_mb(fields[5]), words)
    return found


def nodes(
    listed: tuple[Record, ...],
    hosts: Mapping[str, Static],
    partitions: Mapping[str, str],
    local: tuple[str, ...],
) -> tuple[Node, ...]:
    """partitions: the queue of borrowed machines by their resource; local: the others' queues."""
    found = []
    for one in listed:
        name = _need("bhosts", one, "HOST_NAME")
        known = hosts.get(name, Static(0, 0, ()))
        queues = tuple(partitions[word] for word in known.resources if word in partitions)
        slots = _number(one.get("MAX", "")) or known.cores
        allocated = _number(one.get("NJOBS", ""))
        state, reason = _node_state(_need("bhosts", one, "STATUS"), allocated, slots)
        found.append(
            Node(
                name=name,
                state=state,
                cores=slots,
                allocated_cores=allocated,
                memory_mb=known.memory_mb,
                features=(*queues, *known.resources) if queues else (),
                partitions=queues or local,
                reason=reason,
            )
        )
    return tuple(found)


def resource(partition: str) -> str:
    """The name of the Boolean resource of a queue's machines: lsf.shared(5) takes no hyphen."""
    return re.sub(r"[^A-Za-z0-9_]", "_", partition)


def size_mb(text: str) -> int:
    found = _SIZE.match(text)
    return round(float(found[1]) * _UNITS[found[2].upper()]) if found else 0


def time(text: str, taken: datetime) -> datetime | None:
    """ "May 28 12:45", with or without seconds, year and a flag (L, E, X) behind it. Without a
    year: the latest one that is not more than half a year ahead."""
    bare = re.sub(r"\s+[LEX]$", "", " ".join(text.split()))
    if not bare:
        return None
    for form in _TIMES:
        dated = form.endswith("%Y")
        # 2024 had a 29 February: one can be read before its year is known.
        read = (bare, form) if dated else (f"{bare} 2024", f"{form} %Y")
        try:
            found = datetime.strptime(*read).replace(tzinfo=UTC)
        except ValueError:
            continue
        return found if dated else _latest(found, taken + timedelta(days=183))
    raise LrmsError(f"bjobs: cannot read the time {text!r}")


def _latest(day: datetime, limit: datetime) -> datetime:
    """The same day and time in the last year in which it exists and is not after `limit`."""
    for year in range(limit.year, limit.year - 9, -1):
        try:
            found = day.replace(year=year)
        except ValueError:  # 29 February
            continue
        if found <= limit:
            return found
    return day


def hosts_of(text: str) -> tuple[str, ...]:
    """ "h1:h1:h2" or "4*h1:h2", each host once."""
    names = (part.rpartition("*")[2] for part in text.split(":") if part)
    return tuple(dict.fromkeys(names))


def _job(one: Record, taken: datetime, homes: Mapping[str, str]) -> Job:
    number = _need("bjobs", one, "JOBID")
    index = one.get("JOBINDEX", "")
    name = f"{number}[{index}]" if index not in ("", "0") else number
    state = _STATES.get(_need("bjobs", one, "STAT"))
    if state is None:
        raise LrmsError(f"bjobs: job {name}: STAT {one['STAT']!r}")
    submitted = time(_need("bjobs", one, "SUBMIT_TIME"), taken)
    if submitted is None:
        raise LrmsError(f"bjobs: job {name}: there is no SUBMIT_TIME")
    queue = _need("bjobs", one, "QUEUE")
    waiting = state in (JobState.PENDING, JobState.HELD)
    ended = state in (JobState.DONE, JobState.FAILED)
    minutes = one.get("RUNTIMELIMIT", "")
    cores = max(1, _number(one.get("NREQ_SLOT", "")))
    estimated = time(one.get("ESSTART_TIME", ""), taken)
    return Job(
        id=name,
        user=one.get("USER", ""),
        account=one.get("PROJ_NAME", ""),
        state=state,
        partitions=(queue,),
        cores=cores,
        nodes=1,
        memory_mb=size_mb(one.get("MEMLIMIT", "")) * cores,
        time_limit=timedelta(minutes=float(minutes)) if minutes else None,
        submitted=submitted,
        started=None if waiting else time(one.get("START_TIME", ""), taken),
        ended=time(one.get("FINISH_TIME", ""), taken) if ended else None,
        node_names=() if waiting else hosts_of(one.get("EXEC_HOST", "")),
        reason=_reason(one, state),
        features=_features(one.get("COMBINED_RESREQ", "")),
        estimated_start=estimated if waiting else None,
        name=one.get("JOB_NAME", ""),
        home=homes.get(queue, ""),
    )


def _reason(one: Record, state: JobState) -> str:
    if state not in (JobState.PENDING, JobState.HELD):
        return ""
    text = one.get("PEND_REASON", "")
    if one.get("DEPENDENCY") and "depend" in text.lower():
        return "Dependency"
    return f"BeginTime: {text}" if "start time" in text.lower() else text.strip()


def _features(text: str) -> tuple[str, ...]:
    """Resources that a job asks for by name and that not every host has."""
    words = (word for part in _SELECT.findall(text) for word in _WORD.findall(part))
    return tuple(dict.fromkeys(word for word in words if word not in _LOAD))


def _node_state(status: str, jobs: int, slots: int) -> tuple[NodeState, str]:
    """bhosts(1), STATUS; with -o a closed host says why: closed_Adm, closed_Full, ..."""
    if status in ("unavail", "unreach", "unlicensed"):
        return NodeState.DOWN, status
    if status in ("closed_Adm", "closed_EGO", "closed_Lock", "closed_Wind", "closed"):
        return (NodeState.DRAINING if jobs else NodeState.DRAINED), status
    if not jobs:
        return NodeState.IDLE, "" if status == "ok" else status
    full = jobs >= slots or status.startswith("closed")
    return (NodeState.ALLOCATED if full else NodeState.MIXED), "" if status == "ok" else status


def _unset(text: str) -> str:
    return "" if text.strip() == "-" else text.strip()


def _need(command: str, one: Record, key: str) -> str:
    if not one.get(key):
        raise LrmsError(f"{command}: field {key} is missing in {dict(one)}")
    return one[key]


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
