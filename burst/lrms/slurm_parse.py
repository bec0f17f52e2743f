"""What Slurm says, turned into the values of burst.model. Pure: text in, values out.

Reads `squeue --json`, `sinfo --json` (Slurm 22.05, data parser v0.0.38) and `scontrol show nodes
--json` (24.11: v0.0.42, 26.05: v0.0.45). From 24.11 on, a number may be `{"set": true, "infinite":
false, "number": 5}` and a word may be a list of words; both are taken everywhere. A field that is
missing or of another kind ends in an `LrmsError` that names it.
Sources: squeue(1), scontrol(1), and recordings of the three versions in tests/data.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from burst.lrms import slurm_records
from burst.lrms.base import LrmsError, LrmsUnavailable
from burst.lrms.slurm_records import JobRecord, NodeRecord
from burst.model import Job, JobState, Node, NodeState

TASK_LIMIT = "JobArrayTaskLimit"  # Slurm's own word; ours for tasks beyond an array's %N, too

_HELD_REASONS = frozenset({"JobHeldUser", "JobHeldAdmin"})
_JOB_STATES: Mapping[str, JobState] = {
    "PENDING": JobState.PENDING,
    "REQUEUED": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "REQUEUE_HOLD": JobState.HELD,
    "SPECIAL_EXIT": JobState.HELD,
    "RUNNING": JobState.RUNNING,
    "CONFIGURING": JobState.RUNNING,
    "SUSPENDED": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "STAGE_OUT": JobState.RUNNING,
    "STOPPED": JobState.RUNNING,
    "COMPLETED": JobState.DONE,
    "BOOT_FAIL": JobState.FAILED,
    "CANCELLED": JobState.FAILED,
    "DEADLINE": JobState.FAILED,
    "FAILED": JobState.FAILED,
    "NODE_FAIL": JobState.FAILED,
    "OUT_OF_MEMORY": JobState.FAILED,
    "PREEMPTED": JobState.FAILED,
    "REVOKED": JobState.FAILED,
    "TIMEOUT": JobState.FAILED,
}
_NODE_STATES: Mapping[str, NodeState] = {
    "IDLE": NodeState.IDLE,
    "MIXED": NodeState.MIXED,
    "ALLOCATED": NodeState.ALLOCATED,
    "DOWN": NodeState.DOWN,
    "ERROR": NodeState.DOWN,
    "UNKNOWN": NodeState.UNKNOWN,
    "FUTURE": NodeState.UNKNOWN,
}
# A node with one of these takes no job now, whatever its base state says.
_ABSENT_FLAGS = frozenset(
    {"NOT_RESPONDING", "POWERED_DOWN", "POWERING_DOWN", "POWERING_UP", "REBOOT_ISSUED"}
)
_MEMORY = re.compile(r"(?:^|,)mem=([0-9.]+)([KMGTP]?)", re.IGNORECASE)
_MEMORY_MIB = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2, "P": 1024**3}
_HOST_RANGE = re.compile(r"\[([^\]]*)\]")
_LONGEST_LIST = 100_000  # no answer of Slurm names more nodes or tasks than this at once


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON answer of a Slurm command: who gave it, and the list asked for."""

    command: str
    version: tuple[int, int]  # (22, 5) for 22.05; (0, 0) when it did not say
    items: tuple[Mapping[str, Any] | JobRecord | NodeRecord, ...]


def answer(command: str, text: str, key: str) -> Answer:
    """Read a command's JSON and take the list under `key` ("jobs", "nodes").

    LrmsUnavailable if Slurm put an error into the answer (22.05 does so, with exit status 0 and an
    empty list, when slurmctld is down); LrmsError if it is not what Slurm documents.
    """
    decoded = slurm_records.decode(text, key)
    if decoded is None or decoded[0] is None:
        decoded = _whole(command, text, key)
    items, errors, meta = decoded
    if errors:
        raise LrmsUnavailable(f"{command}: {_told(errors)}; is slurmctld running and reachable?")
    if items is None:
        raise LrmsError(f"{command}: field {key!r} is missing or not a list of objects")
    return Answer(command, _version(meta), tuple(items))


def _whole(command: str, text: str, key: str) -> slurm_records.Decoded:
    """An unusual answer, in full."""
    try:
        document = slurm_records.whole(text)
    except (ValueError, RecursionError) as error:
        raise LrmsError(f"{command}: the answer is not JSON ({error}): {text[:80]!r}") from error
    if not isinstance(document, dict):
        raise LrmsError(f"{command}: the answer is {type(document).__name__}, not an object")
    items = document.get(key)
    known = isinstance(items, list) and all(isinstance(item, dict) for item in items)
    return items if known else None, document.get("errors"), document.get("meta")


def jobs(reply: Answer, taken: datetime, *, max_tasks: int = 1000) -> tuple[Job, ...]:
    """All jobs of a `squeue --json` answer; `taken` (UTC) tells future starts from past ones.

    The pending rest of a job array becomes one Job for each task ("9_4"), at most `max_tasks` an
    array; those beyond the array's own %limit have the reason JobArrayTaskLimit.
    """
    with slurm_records.collecting_later():
        return _jobs(reply, taken, max_tasks)


def _jobs(reply: Answer, taken: datetime, max_tasks: int) -> tuple[Job, ...]:
    usual = slurm_records.Reader(taken)
    arrays: list[tuple[int, str, int]] = []  # place, task list and id of what is still to expand
    found: list[Job] = []
    for item in reply.items:
        if isinstance(item, JobRecord):
            with contextlib.suppress(slurm_records.Odd):
                found.append(usual.job(item))
                if item.array_task_string and slurm_records.number(item.array_task_id) is None:
                    array = slurm_records.number(item.array_job_id) or int(found[-1].id)
                    arrays.append((len(found) - 1, item.array_task_string, array))
                continue
        record = _Record(reply.command, "job", slurm_records.fields(item))
        found.append(_job(record, taken))
        listed = record.text("array_task_string")
        if listed and record.number_or_none("array_task_id") is None:
            array = record.number("array_job_id") or record.number("job_id")
            arrays.append((len(found) - 1, listed, array))
    if not arrays:
        return tuple(found)
    active = _active(reply)
    read: list[Job] = []
    done = 0
    for place, listed, array in arrays:
        read.extend(found[done:place])
        read.extend(_tasks(found[place], listed, array, active.get(array, 0), max_tasks))
        done = place + 1
    read.extend(found[done:])
    return tuple(read)


def _active(reply: Answer) -> dict[int, int]:
    """How many tasks of each array run now, by the array's id."""
    active: dict[int, int] = {}
    for item in reply.items:
        if isinstance(item, JobRecord) and _in_no_array(item):
            continue
        record = _Record(reply.command, "job", slurm_records.fields(item))
        if _job_state(record) in (JobState.RUNNING, JobState.COMPLETING):
            array = record.number_or_none("array_job_id")
            if array:
                active[array] = active.get(array, 0) + 1
    return active


def _in_no_array(item: JobRecord) -> bool:
    try:
        return not slurm_records.number(item.array_job_id)
    except slurm_records.Odd:
        return False


def nodes(reply: Answer) -> tuple[Node, ...]:
    """All nodes of a `sinfo --json` (22.05) or `scontrol show nodes --json` answer."""
    items = map(slurm_records.fields, reply.items)
    return tuple(_node(_Record(reply.command, "node", item)) for item in items)


def expand_hosts(text: str) -> tuple[str, ...]:
    """Slurm's host list notation: "wn[01-03,7],head" -> wn01, wn02, wn03, wn7, head."""
    names: list[str] = []
    for part in _outside_brackets(text):
        names.extend(_expand_host(part))
        if len(names) > _LONGEST_LIST:
            raise LrmsError(f"host list of more than {_LONGEST_LIST} names: {text[:80]!r}")
    return tuple(names)


def expand_tasks(text: str, limit: int) -> tuple[tuple[int, ...], int | None]:
    """Slurm's array notation: "1-5:2,9%2" -> ((1, 3, 5, 9), 2); at most `limit` task ids."""
    ids: list[int] = []
    listed, _, width = text.partition("%")
    try:
        at_once = int(width) if width else None
        for part in filter(None, listed.split(",")):
            if part.startswith("..."):  # Slurm cuts long lists unless SLURM_BITSTR_LEN=0
                break
            span, _, step = part.partition(":")
            first, _, last = span.partition("-")
            span_ids = range(int(first), int(last or first) + 1, int(step or 1))
            ids.extend(span_ids[: max(0, limit - len(ids))])
    except ValueError as error:
        raise LrmsError(f"squeue: cannot read the array task list {text[:80]!r}") from error
    return tuple(ids), at_once or None


class _Record:
    """One object of an answer; every reader names the field when it cannot read it."""

    def __init__(self, command: str, kind: str, item: Mapping[str, Any]) -> None:
        self._item = item
        name = item.get("job_id", "?") if kind == "job" else item.get("name", "?")
        self._where = f"{command}: {kind} {name}"

    def raw(self, key: str) -> Any:
        if key not in self._item:
            raise LrmsError(f"{self._where}: field {key!r} is missing")
        return self._item[key]

    def has(self, key: str) -> bool:
        return key in self._item

    def wrong(self, key: str) -> LrmsError:
        return LrmsError(f"{self._where}: field {key!r} has the value {self._item.get(key)!r}")

    def number_or_none(self, key: str) -> int | None:
        """None for null, not set, and infinite."""
        value = self.raw(key)
        if isinstance(value, dict):
            if not value.get("set") or value.get("infinite"):
                return None
            value = value.get("number")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key)
        try:
            return int(value)
        except (ValueError, OverflowError) as error:
            raise self.wrong(key) from error

    def number(self, key: str) -> int:
        return self.number_or_none(key) or 0

    def text(self, key: str) -> str:
        value = self.raw(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.wrong(key)
        return value

    def words(self, key: str) -> tuple[str, ...]:
        """A list of words, or (22.05) one word or a comma-separated text."""
        value = self.raw(key)
        if value is None:
            return ()
        if isinstance(value, str):
            return tuple(filter(None, value.split(",")))
        if isinstance(value, list) and all(isinstance(word, str) for word in value):
            return tuple(value)
        raise self.wrong(key)

    def time(self, key: str) -> datetime | None:
        """An instant from seconds since 1970; None for 0, null and "not set"."""
        seconds = self.number_or_none(key)
        if not seconds:
            return None
        try:
            return datetime.fromtimestamp(seconds, UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise self.wrong(key) from error

    def minutes(self, key: str) -> timedelta | None:
        """A length of time; None for no limit."""
        minutes = self.number_or_none(key)
        try:
            return None if minutes is None else timedelta(minutes=minutes)
        except OverflowError as error:
            raise self.wrong(key) from error


def _job_state(record: _Record) -> JobState:
    words = [word.upper() for word in record.words("job_state")]
    if "COMPLETING" in words:
        return JobState.COMPLETING
    states = [_JOB_STATES[word] for word in words if word in _JOB_STATES]
    if not states:
        raise record.wrong("job_state")
    if states[0] is JobState.PENDING:
        if record.text("state_reason") in _HELD_REASONS:
            return JobState.HELD
        if JobState.HELD in states or record.number_or_none("priority") == 0:
            return JobState.HELD
    return states[0]


def _tasks(job: Job, listed: str, array: int, active: int, max_tasks: int) -> Iterator[Job]:
    """The pending rest of an array, of which `active` tasks run now, as one job for each task."""
    ids, at_once = expand_tasks(listed, max_tasks)
    free = None if at_once is None else max(0, at_once - active)
    for place, task in enumerate(ids):
        one = replace(job, id=f"{array}_{task}")
        if job.state is JobState.PENDING:
            if free is not None and place >= free:
                one = replace(one, reason=TASK_LIMIT, estimated_start=None)
            elif job.reason == TASK_LIMIT:
                one = replace(one, reason="Priority")
        yield one


def _job(record: _Record, taken: datetime) -> Job:
    state = _job_state(record)
    waiting = state in (JobState.PENDING, JobState.HELD)
    array, task = record.number_or_none("array_job_id"), record.number_or_none("array_task_id")
    start, end = record.time("start_time"), record.time("end_time")
    submitted = record.time("submit_time")
    if submitted is None:
        raise record.wrong("submit_time")
    node_names = () if waiting else expand_hosts(record.text("nodes"))
    return Job(
        id=f"{array}_{task}" if array and task is not None else str(record.number("job_id")),
        user=record.text("user_name"),
        account=record.text("account"),
        state=state,
        partitions=tuple(filter(None, record.text("partition").split(","))),
        cores=max(1, record.number("cpus")),
        nodes=max(1, record.number("node_count")),
        memory_mb=_memory_mb(record),
        time_limit=record.minutes("time_limit"),
        submitted=submitted,
        # A job cancelled while it waited has a start_time (its end), but no nodes.
        started=start if node_names else None,
        ended=end if state in (JobState.DONE, JobState.FAILED, JobState.COMPLETING) else None,
        node_names=node_names,
        reason="" if (reason := record.text("state_reason")) == "None" else reason,
        features=tuple(filter(None, re.split("[&,]", record.text("features")))),
        estimated_start=start if waiting and start is not None and start > taken else None,
        name=record.text("name"),
        comment=record.text("comment"),
    )


def _memory_mb(record: _Record) -> int:
    """MiB over all the job's nodes; 0 when the job named none and the partition has no default."""
    found = _MEMORY.search(record.text("tres_req_str"))
    if found is not None:
        try:
            return round(float(found[1]) * _MEMORY_MIB[found[2].upper()])
        except ValueError as error:
            raise record.wrong("tres_req_str") from error
    if (per_node := record.number_or_none("memory_per_node")) is not None:
        return per_node * max(1, record.number("node_count"))
    return (record.number_or_none("memory_per_cpu") or 0) * max(1, record.number("cpus"))


def _node(record: _Record) -> Node:
    words = [word.upper() for word in record.words("state")]
    if record.has("state_flags"):  # 22.05 keeps them apart from the base state
        words.extend(word.upper() for word in record.words("state_flags"))
    base = next((_NODE_STATES[word] for word in words if word in _NODE_STATES), None)
    if base is None:
        raise record.wrong("state")
    flags, allocated = frozenset(words), record.number("alloc_cpus")
    features = record.words("active_features") or record.words("features")
    return Node(
        name=record.text("name"),
        state=_node_state(base, flags, allocated),
        cores=record.number("cpus"),
        allocated_cores=allocated,
        memory_mb=record.number("real_memory"),
        address=record.text("address"),
        features=features,
        partitions=record.words("partitions"),
        reason=record.text("reason"),
    )


def _node_state(base: NodeState, flags: frozenset[str], allocated: int) -> NodeState:
    if base is NodeState.DOWN or "INVALID_REG" in flags:
        return NodeState.DOWN
    busy = allocated > 0 or base in (NodeState.MIXED, NodeState.ALLOCATED) or "COMPLETING" in flags
    if flags & {"DRAIN", "FAIL"}:
        return NodeState.DRAINING if busy else NodeState.DRAINED
    if flags & _ABSENT_FLAGS:
        return NodeState.UNKNOWN
    if base is NodeState.IDLE and busy:
        return NodeState.MIXED  # a job's last processes are still being cleaned up
    return base


def _version(meta: Any) -> tuple[int, int]:
    slurm = (meta.get("slurm") or meta.get("Slurm")) if isinstance(meta, dict) else None
    version = slurm.get("version") if isinstance(slurm, dict) else None
    try:
        return (int(version["major"]), int(version["minor"])) if version else (0, 0)
    except (KeyError, TypeError, ValueError):
        return (0, 0)


def _told(errors: Any) -> str:
    first = errors[0] if isinstance(errors, list) else errors
    if isinstance(first, dict):
        said = [str(first[key]) for key in ("description", "error", "source") if first.get(key)]
        return ": ".join(said) or "an error without a description"
    return str(first)


def _outside_brackets(text: str) -> Sequence[str]:
    """Split at commas that are not inside brackets."""
    return [part for part in re.split(r",(?![^\[]*\])", text) if part]


def _expand_host(part: str) -> Iterator[str]:
    found = _HOST_RANGE.search(part)
    if found is None:
        yield part
        return
    # The first bracket is expanded; what follows it may hold more ("rack[1-2]n[1-4]").
    before, after = part[: found.start()], part[found.end() :]
    for span in found[1].split(","):
        first, _, last = span.partition("-")
        try:
            low, high = int(first), int(last or first)
        except ValueError as error:
            raise LrmsError(f"squeue: cannot read the host list {part[:80]!r}") from error
        if high - low > _LONGEST_LIST:
            raise LrmsError(f"host list of more than {_LONGEST_LIST} names: {part[:80]!r}")
        for number in range(low, high + 1):
            yield from _expand_host(f"{before}{number:0{len(first)}d}{after}")
