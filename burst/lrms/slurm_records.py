"""Slurm's JSON answers with only the fields we read: tens of thousands of jobs in a moment.

One job of `squeue --json` is 3 kB (22.05) to 8 kB (24.11) of text, of which we need a few hundred
bytes; a decoder that knows which skips the rest ten times faster than it could be made into Python
values. `job` reads what is as usual without detours, and leaves anything else to
`slurm_parse`, which tells what is wrong with it: both must give the same for what both can read.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from burst.model import Job, JobState

Decoded = tuple[list[Any] | None, Any, Any]  # items, errors, meta


class Number(msgspec.Struct, gc=False):
    """How 24.11 and later write a number."""

    set: bool = False
    infinite: bool = False
    number: int | float | None = 0


_Number = int | float | Number | None | UnsetType
_Text = str | None | UnsetType
_Words = list[str] | str | None | UnsetType


class JobRecord(msgspec.Struct, gc=False):
    """The fields of a job that are read; `UNSET` where the answer has none."""

    job_id: _Number = UNSET
    job_state: _Words = UNSET
    state_reason: _Text = UNSET
    priority: _Number = UNSET
    array_job_id: _Number = UNSET
    array_task_id: _Number = UNSET
    array_task_string: _Text = UNSET
    submit_time: _Number = UNSET
    start_time: _Number = UNSET
    end_time: _Number = UNSET
    time_limit: _Number = UNSET
    nodes: _Text = UNSET
    user_name: _Text = UNSET
    account: _Text = UNSET
    partition: _Text = UNSET
    cpus: _Number = UNSET
    node_count: _Number = UNSET
    tres_req_str: _Text = UNSET
    memory_per_node: _Number = UNSET
    memory_per_cpu: _Number = UNSET
    features: _Text = UNSET
    name: _Text = UNSET
    comment: _Text = UNSET


class NodeRecord(msgspec.Struct, gc=False):
    """The fields of a node that are read."""

    name: _Text = UNSET
    state: _Words = UNSET
    state_flags: _Words = UNSET
    cpus: _Number = UNSET
    alloc_cpus: _Number = UNSET
    active_features: _Words = UNSET
    features: _Words = UNSET
    real_memory: _Number = UNSET
    address: _Text = UNSET
    partitions: _Words = UNSET
    reason: _Text = UNSET


class _Jobs(msgspec.Struct):
    jobs: list[JobRecord] | None = None
    errors: Any = None
    meta: Any = None


class _Nodes(msgspec.Struct):
    nodes: list[NodeRecord] | None = None
    errors: Any = None
    meta: Any = None


class Odd(Exception):  # noqa: N818 - a way out, not an error
    """Not as usual: `slurm_parse` is to look at it."""


@contextmanager
def collecting_later() -> Iterator[None]:
    """A hundred thousand values are made, none of them in a cycle: the collector, which would look
    through them again and again, doubles the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def decode(text: str, key: str) -> Decoded | None:
    """The answer under `key` ("jobs", "nodes"); None: look at it in full, it is not as usual."""
    try:
        with collecting_later():
            if key == "jobs":
                jobs = msgspec.json.decode(text, type=_Jobs)
                return jobs.jobs, jobs.errors, jobs.meta
            nodes = msgspec.json.decode(text, type=_Nodes)
            return nodes.nodes, nodes.errors, nodes.meta
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None  # Slurm writes NaN at times, which JSON has not, and Python reads


def fields(record: JobRecord | NodeRecord | Mapping[str, Any]) -> Mapping[str, Any]:
    """The record as the object it was."""
    if not isinstance(record, JobRecord | NodeRecord):
        return record
    return {
        name: msgspec.structs.asdict(value) if type(value) is Number else value
        for name in record.__struct_fields__
        if (value := getattr(record, name)) is not UNSET
    }


def whole(text: str) -> Any:
    """Everything, by Python's own reader, which takes NaN. Raises ValueError."""
    return json.loads(text)


_MEMORY = re.compile(r"(?:^|,)mem=([0-9]+)([KMG]?)(?:,|$)")
_MEMORY_MIB = {"": 1, "M": 1, "G": 1024}
_USUAL = {"PENDING": JobState.PENDING, "RUNNING": JobState.RUNNING, "COMPLETED": JobState.DONE}
_HELD = frozenset({"JobHeldUser", "JobHeldAdmin"})


class Reader:
    """Reads the usual jobs of one answer; what many have in common is read once."""

    def __init__(self, taken: datetime) -> None:
        self._taken = taken.timestamp()
        self._texts: dict[str, str] = {}
        self._limits: dict[int, timedelta] = {}
        self._memory: dict[str, int] = {}
        self._lists: dict[str, tuple[str, ...]] = {}
        self._features: dict[str, tuple[str, ...]] = {}

    def job(self, record: JobRecord) -> Job:
        """The pending rest of an array is one job here. Raises `Odd` for what is not as usual."""
        state = _state(record)
        array, task = number(record.array_job_id), number(record.array_task_id)
        name, submitted = number(record.job_id), number(record.submit_time)
        if not name or not submitted:
            raise Odd
        waiting = state is JobState.PENDING or state is JobState.HELD
        nodes = record.nodes
        if waiting:
            node_names: tuple[str, ...] = ()
        elif not nodes or type(nodes) is not str or "[" in nodes or "," in nodes:
            raise Odd
        else:
            node_names = (nodes,)
        start, end = number(record.start_time), number(record.end_time)
        minutes = number(record.time_limit)
        reason = _text(record.state_reason)
        later = waiting and start is not None and start > self._taken
        return Job(
            id=f"{array}_{task}" if array and task is not None else str(name),
            user=self._same(_text(record.user_name)),
            account=self._same(_text(record.account)),
            state=state,
            partitions=self._listed(_text(record.partition)),
            cores=number(record.cpus) or 1,
            nodes=number(record.node_count) or 1,
            memory_mb=self._memory_mb(record),
            time_limit=None if minutes is None else self._limit(minutes),
            submitted=_instant(submitted),
            started=_instant(start) if start and node_names else None,
            ended=_instant(end) if end and state is JobState.DONE else None,
            node_names=node_names,
            reason="" if reason == "None" else self._same(reason),
            features=self._wanted(_text(record.features)),
            estimated_start=_instant(start) if later and start else None,
            name=_text(record.name),
            comment=_text(record.comment),
        )

    def _same(self, text: str) -> str:
        """Equal words as one object: less memory, and whoever compares them is done at once."""
        return self._texts.setdefault(text, text)

    def _limit(self, minutes: int) -> timedelta:
        limit = self._limits.get(minutes)
        if limit is None:
            try:
                limit = self._limits[minutes] = timedelta(minutes=minutes)
            except OverflowError:
                raise Odd from None
        return limit

    def _listed(self, text: str) -> tuple[str, ...]:
        names = self._lists.get(text)
        if names is None:
            names = self._lists[text] = tuple(filter(None, text.split(",")))
        return names

    def _wanted(self, text: str) -> tuple[str, ...]:
        names = self._features.get(text)
        if names is None:
            names = self._features[text] = tuple(filter(None, re.split("[&,]", text)))
        return names

    def _memory_mb(self, record: JobRecord) -> int:
        text = _text(record.tres_req_str)
        memory = self._memory.get(text)
        if memory is None:
            found = _MEMORY.search(text)
            if found is None or found[2] == "K":
                raise Odd
            memory = self._memory[text] = int(found[1]) * _MEMORY_MIB[found[2]]
        return memory


def _state(record: JobRecord) -> JobState:
    words = record.job_state
    word = words[0] if type(words) is list and len(words) == 1 else words
    state = _USUAL.get(word) if type(word) is str else None
    if state is None:
        raise Odd
    held = record.state_reason in _HELD or number(record.priority) == 0
    return JobState.HELD if held and state is JobState.PENDING else state


def number(value: Any) -> int | None:
    """None for null, not set, and infinite; anything but a whole number that counts something is
    odd."""
    if type(value) is int and value >= 0:
        return value
    if value is None:
        return None
    if type(value) is Number:
        if not value.set or value.infinite:
            return None
        if type(value.number) is int and value.number >= 0:
            return value.number
    raise Odd


def _text(value: Any) -> str:
    if type(value) is str:
        return value
    if value is None:
        return ""
    raise Odd


def _instant(seconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        raise Odd from None
