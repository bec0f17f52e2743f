"""What OpenPBS and Torque say, turned into the values of burst.model. Pure: text in, values out.

OpenPBS: `qstat -f -t -F json` and `pbsnodes -av -F json` (23.06.06 recorded); times are local
without a zone, the commands are run with TZ=UTC; an empty list has no "Jobs" at all.
Torque: `qstat -x -t` and `pbsnodes -x` (XML, 6.1 as documented); times are seconds since 1970.
Both become one `Attributes` mapping for each object before they are read.
Sources: pbs_job_attributes(7B), pbs_node_attributes(7B), pbsnodes(8B), qstat(1B) of both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree

from burst.lrms.base import LrmsError
from burst.model import Job, JobState, Node, NodeState

BEGUN = "JobArrayBegun"  # ours: PBS moves an array as a whole, and only before its first task runs

Attributes = Mapping[str, Any]

_STATES: Mapping[str, JobState] = {
    "Q": JobState.PENDING,
    "W": JobState.PENDING,  # waits for its time
    "T": JobState.PENDING,  # between two queues
    "H": JobState.HELD,
    "R": JobState.RUNNING,
    "B": JobState.RUNNING,  # an array with tasks begun
    "S": JobState.RUNNING,
    "U": JobState.RUNNING,
    "E": JobState.COMPLETING,
    "F": JobState.DONE,
    "X": JobState.DONE,
    "C": JobState.DONE,  # Torque
    "M": JobState.DONE,  # moved to another server
}
_PARENT = re.compile(r"^(\d+)\[\](.*)$")
_TASK = re.compile(r"^(\d+)\[\d+\](.*)$")
_HOST = re.compile(r"^\(?([^/:()*]+)")
_SIZE = re.compile(r"(\d+)([kmgtp]?)(?:b|w)?", re.IGNORECASE)
_UNITS = {"": 1 / (1 << 20), "k": 1 / 1024, "m": 1, "g": 1 << 10, "t": 1 << 20, "p": 1 << 30}
_CHUNK = frozenset({
    "ncpus", "mem", "vmem", "pmem", "pvmem", "mpiprocs", "ompthreads", "walltime", "cput", "ppn",
    "Qlist", "nodect", "file", "arch",
})  # fmt: skip


def json_objects(command: str, text: str, key: str) -> dict[str, Attributes]:
    """The objects under "Jobs" or "nodes"; none where the key is missing."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise LrmsError(f"{command}: the answer is not JSON ({error}): {text[:80]!r}") from error
    found = document.get(key, {}) if isinstance(document, dict) else None
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise LrmsError(f"{command}: field {key!r} is not an object of objects")
    return {str(name): one for name, one in found.items()}


def xml_objects(command: str, text: str, tag: str, name: str) -> dict[str, Attributes]:
    """Torque's `<Data><Job>...`; none when there is nothing to list: then it writes nothing."""
    if not text.strip():
        return {}
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise LrmsError(f"{command}: the answer is not XML ({error}): {text[:80]!r}") from error
    found: dict[str, Attributes] = {}
    for item in root.iter(tag):
        values = {part.tag: _content(part) for part in item}
        found[str(values.get(name, ""))] = values
    return found


def jobs(listed: Mapping[str, Attributes]) -> tuple[Job, ...]:
    """Tasks stand for their array: its own line is left out where its tasks are listed."""
    begun = {
        _PARENT.sub(r"\1[]\2", name) for name, one in listed.items() if one.get("job_state") == "B"
    }
    has_tasks = {_TASK.sub(r"\1[]\2", name) for name in listed if _TASK.match(name)}
    return tuple(
        _job(name, one, begun=array_of(name) in begun)
        for name, one in listed.items()
        if name not in has_tasks
    )


def array_of(job_id: str) -> str:
    """What can be moved: 6[2].head -> 6[].head; another job is its own."""
    return _TASK.sub(r"\1[]\2", job_id)


def openpbs_nodes(listed: Mapping[str, Attributes], local: Iterable[str]) -> tuple[Node, ...]:
    """local: the queues that nodes without a Qlist serve."""
    here = tuple(local)
    found = []
    for name, one in listed.items():
        has, used = _mapping(one, "resources_available"), _mapping(one, "resources_assigned")
        queues = _words(has.get("Qlist"))
        cores, allocated = _number(has.get("ncpus")), _number(used.get("ncpus"))
        busy = bool(allocated or one.get("jobs"))
        found.append(
            Node(
                name=name,
                state=_node_state(name, str(one.get("state", "")), busy, allocated >= cores),
                cores=cores,
                allocated_cores=allocated,
                memory_mb=size_mb(str(has.get("mem", "0"))),
                features=queues,
                partitions=queues or here,
                reason=str(one.get("comment", "")),
            )
        )
    return tuple(found)


def torque_nodes(listed: Mapping[str, Attributes], local: Iterable[str]) -> tuple[Node, ...]:
    """local: the queues that nodes without properties serve."""
    here = tuple(local)
    found = []
    for name, one in listed.items():
        properties = _words(one.get("properties"))
        cores = _number(one.get("np"))
        # "0/3.head, 1/3.head", since Torque 5 "0-1/3.head"
        slots = re.findall(r"([\d,-]+)/[^,\s]+", str(one.get("jobs", "")))
        allocated = sum(_span(part) for slot in slots for part in slot.strip(",").split(","))
        status = dict(
            part.partition("=")[::2]
            for part in str(one.get("status", "")).split(",")
            if "=" in part
        )
        found.append(
            Node(
                name=name,
                state=_node_state(name, str(one.get("state", "")), bool(slots), allocated >= cores),
                cores=cores,
                allocated_cores=allocated,
                memory_mb=size_mb(status.get("physmem", "0")),
                features=properties,
                partitions=properties or here,
                reason=str(one.get("note", "")),
            )
        )
    return tuple(found)


def size_mb(text: str) -> int:
    """100mb, 6296kb, 2gb, 1024 (bytes), in MiB; 0 if it is none."""
    found = _SIZE.fullmatch(text.strip())
    return round(int(found[1]) * _UNITS[found[2].lower()]) if found else 0


def duration(text: str) -> timedelta | None:
    """[[hours:]minutes:]seconds"""
    if not text:
        return None
    try:
        seconds = 0
        for part in text.split(":"):
            seconds = seconds * 60 + int(part)
    except ValueError as error:
        raise LrmsError(f"qstat: cannot read the time {text!r}") from error
    return timedelta(seconds=seconds)


def _job(name: str, one: Attributes, *, begun: bool) -> Job:
    code = str(one.get("job_state", ""))
    state = _STATES.get(code)
    if state is None:
        raise LrmsError(f"qstat: job {name}: job_state {code!r}")
    if state is JobState.DONE and str(one.get("Exit_status", one.get("exit_status", 0))) != "0":
        state = JobState.FAILED
    wants = _mapping(one, "Resource_List")
    depends = "after" in str(one.get("depend", ""))
    if state is JobState.HELD and depends and "u" not in str(one.get("Hold_Types", "")):
        state = JobState.PENDING
    submitted = _time(one, "ctime") or _time(one, "qtime")
    if submitted is None:
        raise LrmsError(f"qstat: job {name}: there is no ctime")
    queue = str(one.get("queue", ""))
    origin = str(_variables(one).get("PBS_O_QUEUE", ""))
    waiting = state in (JobState.PENDING, JobState.HELD)
    ended = state in (JobState.DONE, JobState.FAILED)
    cores, nodes, features = _shape(wants)
    estimated = _time(_mapping(one, "estimated"), "start_time")
    return Job(
        id=name,
        user=str(one.get("Job_Owner", "")).partition("@")[0],
        account=str(one.get("Account_Name", "")),
        state=state,
        partitions=(queue,),
        cores=cores,
        nodes=nodes,
        memory_mb=size_mb(str(wants.get("mem", "0"))),
        time_limit=duration(str(wants.get("walltime", ""))),
        submitted=submitted,
        started=None if waiting else _time(one, "stime") or _time(one, "start_time"),
        ended=(_time(one, "obittime") or _time(one, "comp_time")) if ended else None,
        node_names=() if waiting else hosts(str(one.get("exec_host", ""))),
        reason=_reason(one, state, code, depends=depends, begun=begun),
        features=features,
        estimated_start=estimated if waiting else None,
        name=str(one.get("Job_Name", "")),
        home=origin if origin not in ("", queue) else "",
    )


def hosts(text: str) -> tuple[str, ...]:
    """exec_host: cloud1/0*2+node2/0, each host once."""
    found = (_HOST.match(part) for part in text.split("+") if part)
    return tuple(dict.fromkeys(one[1] for one in found if one))


def _reason(one: Attributes, state: JobState, code: str, *, depends: bool, begun: bool) -> str:
    if state is JobState.PENDING and depends:
        return "Dependency"
    if code == "W":
        return "BeginTime: it waits for a time of its own"
    if state is JobState.PENDING and begun:
        return BEGUN
    if state in (JobState.PENDING, JobState.HELD):
        return str(one.get("comment", "")).strip()
    return ""


def _shape(wants: Attributes) -> tuple[int, int, tuple[str, ...]]:
    """Cores over all nodes, nodes, and what else a chunk asks for (a host, a GPU, a licence)."""
    select = str(wants.get("select") or wants.get("nodes") or "")
    cores, chunks = 0, 0
    features: dict[str, None] = {}
    for chunk in filter(None, select.split("+")):
        first, *parts = chunk.split(":")
        count = int(first) if first.isdigit() else 1
        if not first.isdigit():
            parts = [first, *parts]
        chunks += count
        per_chunk = 1
        for part in parts:
            key, _, value = part.partition("=")
            if key in ("ncpus", "ppn") and value.isdigit():
                per_chunk = int(value)
            elif key not in _CHUNK:
                features[part] = None
        cores += count * per_chunk
    scattered = "scatter" in str(wants.get("place", "")) or "select" not in wants
    total = _number(wants.get("ncpus")) or cores or 1
    return max(total, cores, 1), max(1, chunks) if scattered else 1, tuple(features)


def _node_state(name: str, text: str, busy: bool, full: bool) -> NodeState:
    """pbs_node_attributes(7B), state; Torque's words are the same or fewer."""
    words = {word.strip() for word in text.split(",")}
    if not words - {""}:
        raise LrmsError(f"pbsnodes: node {name} has no state")
    if words & {"down", "stale", "unresolvable"}:
        return NodeState.DOWN
    if words & {"offline", "maintenance"}:
        return NodeState.DRAINING if busy else NodeState.DRAINED
    if words & {"state-unknown", "unknown", "initializing", "wait-provisioning", "provisioning"}:
        return NodeState.UNKNOWN
    if not busy:
        return NodeState.IDLE
    return NodeState.ALLOCATED if full else NodeState.MIXED


def _content(part: ElementTree.Element) -> Any:
    if len(part):
        return {child.tag: _content(child) for child in part}
    return (part.text or "").strip()


def _variables(one: Attributes) -> Attributes:
    """OpenPBS: an object; Torque: NAME=value,NAME=value."""
    value = one.get("Variable_List", {})
    if isinstance(value, dict):
        return value
    return dict(part.partition("=")[::2] for part in str(value).split(",") if "=" in part)


def _mapping(one: Attributes, key: str) -> Attributes:
    value = one.get(key)
    return value if isinstance(value, dict) else {}


def _words(value: Any) -> tuple[str, ...]:
    return tuple(filter(None, (word.strip() for word in str(value or "").split(","))))


def _number(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0


def _span(text: str) -> int:
    first, _, last = text.partition("-")
    return int(last or first) - int(first) + 1 if first.isdigit() else 0


def _time(one: Attributes, key: str) -> datetime | None:
    text = str(one.get(key) or "").strip()
    if not text:
        return None
    try:
        if text.isdigit():
            return datetime.fromtimestamp(int(text), UTC)
        return datetime.strptime(text, "%a %b %d %H:%M:%S %Y").replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise LrmsError(f"PBS: {key} has the value {text!r}") from error
