"""What Grid Engine says, turned into the values of burst.model. Pure: text in, values out.

Reads `qstat -r -xml` and `qhost -q -j -xml` (8.1.9 recorded). Times have no zone: the commands are
run with TZ=UTC. Traps met here: a parallel job is listed once for each slot; a hard queue list may
name instances (`burst.q@cloud1`); a lost host keeps its job in state r, and shows as `au`.
Sources: qstat(1), qhost(1), queue_conf(5), complex(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

from burst.lrms.base import LrmsError
from burst.lrms.slurm_parse import expand_tasks
from burst.model import Job, JobState, Node, NodeState

MAX_TASKS = 1000  # pending tasks of one job array that become jobs of the snapshot
_UNITS = {"": 1, "k": 1e3, "K": 1 << 10, "m": 1e6, "M": 1 << 20, "g": 1e9, "G": 1 << 30}
_UNITS |= {"t": 1e12, "T": 1 << 40, "P": 1 << 50}
_SIZE = re.compile(r"([0-9.]+)([kKmMgGtTP]?)")
_MEMORY = ("h_vmem", "h_rss", "mem_free", "virtual_free", "s_vmem", "mem_total")
_EVERYBODYS = frozenset({*_MEMORY, "h_rt", "s_rt", "h_cpu", "s_cpu", "h_stack", "h_fsize"})


@dataclass(frozen=True, slots=True)
class Queue:
    """The jobs, and each waiting job's hard queue list word for word, by job number."""

    jobs: tuple[Job, ...]
    lists: Mapping[str, tuple[str, ...]]


def queue(text: str, everywhere: tuple[str, ...]) -> Queue:
    """The answer of `qstat -u * -r -xml`; a job without a hard queue list may start `everywhere`.

    One Job for each pending task of an array, though only arrays as a whole can be moved.
    """
    jobs: dict[str, Job] = {}
    lists: dict[str, tuple[str, ...]] = {}
    for item in _root("qstat", text, "job_info").iter("job_list"):
        number = _word(item, "JB_job_number")
        asked = tuple(e.text.strip() for e in item.findall("hard_req_queue") if e.text)
        lists.setdefault(number, asked)
        for job in _tasks(item, _job(item, number, asked, everywhere)):
            known = jobs.get(job.id)
            if known is None:
                jobs[job.id] = job
            else:  # one more host of a parallel job
                names = dict.fromkeys((*known.node_names, *job.node_names))
                jobs[job.id] = replace(known, node_names=tuple(names), nodes=max(1, len(names)))
    return Queue(tuple(jobs.values()), lists)


def nodes(text: str) -> tuple[Node, ...]:
    """The answer of `qhost -q -j -xml`, without the pseudo host "global"."""
    hosts = _root("qhost", text, "qhost").iter("host")
    return tuple(_node(host) for host in hosts if host.get("name") != "global")


def size_mb(text: str) -> int:
    """memory_specifier of sge_types(1), in MiB: 512M, 1.5G, 1000000; 0 for "-" and INFINITY."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        return 0
    try:
        return round(float(found[1]) * _UNITS[found[2]] / (1 << 20))
    except ValueError as error:
        raise LrmsError(f"Grid Engine: cannot read the size {text!r}") from error


def duration(text: str) -> timedelta | None:
    """time_specifier of sge_types(1): 3600, 1:00:00, 3600.000; None for INFINITY."""
    if text.strip().upper() in ("", "INFINITY", "NONE"):
        return None
    try:
        seconds = 0.0
        for part in text.split(":"):
            seconds = seconds * 60 + (float(part) if part else 0.0)
    except ValueError as error:
        raise LrmsError(f"Grid Engine: cannot read the time {text!r}") from error
    return timedelta(seconds=seconds)


def cluster_queue(instance: str) -> str:
    """burst.q@cloud1, burst.q@@hosts -> burst.q"""
    return instance.partition("@")[0]


def _job(
    item: ElementTree.Element, number: str, asked: tuple[str, ...], everywhere: tuple[str, ...]
) -> Job:
    requests = {e.get("name", ""): (e.text or "").strip() for e in item.findall("hard_request")}
    slots = int(_word(item, "slots", "1"))
    code = _word(item, "state")
    held_for = item.find("predecessor_jobs") is not None
    state, reason = _state(code, held_for, _word(item, "JAT_prio", "1"))
    instance = _word(item, "queue_name", "")
    host = instance.partition("@")[2]
    memory = next((size_mb(requests[name]) for name in _MEMORY if name in requests), 0)
    limit = requests.get("h_rt") or requests.get("s_rt") or ""
    started = _time(item, "JAT_start_time")
    submitted = _time(item, "JB_submission_time") or started
    if submitted is None:
        raise LrmsError(f"qstat: job {number}: there is no JB_submission_time")
    queues = dict.fromkeys(cluster_queue(name) for name in asked)
    return Job(
        id=number,
        user=_word(item, "JB_owner"),
        account=_word(item, "JB_project", "") or _word(item, "JB_department", ""),
        state=state,
        partitions=tuple(queues) or everywhere,
        cores=slots,
        nodes=1,
        memory_mb=memory * slots,
        time_limit=duration(limit),
        submitted=submitted,
        started=started if instance else None,
        node_names=(host,) if host else (),
        reason=reason,
        features=tuple(
            name if value in ("TRUE", "1", "") else f"{name}={value}"
            for name, value in requests.items()
            if name not in _EVERYBODYS
        ),
        name=_word(item, "full_job_name", "") or _word(item, "JB_name", ""),
    )


def _state(code: str, held_for: bool, priority: str) -> tuple[JobState, str]:
    """qstat(1): d(eletion), E(rror), h(old), r(unning), R(estarted), s, S, T (suspended),
    t(ransferring), w(aiting)."""
    if "d" in code:
        return JobState.COMPLETING, "being deleted"
    if "E" in code:
        return JobState.HELD, "error state: qstat -j says why, qmod -cj clears it"
    if "h" in code:
        return (JobState.PENDING, "Dependency") if held_for else (JobState.HELD, "on hold")
    if code.startswith(("r", "t", "s", "S", "T", "hr", "Rr", "Rt", "Rs")) and "q" not in code:
        return JobState.RUNNING, ""
    if "q" in code or "w" in code:
        # The scheduler gives every job it considers a priority above 0; one that must wait for
        # its time (qsub -a) has none, nor has one submitted within the last seconds.
        if float(priority) == 0.0:
            return JobState.PENDING, "BeginTime, or not looked at by the scheduler yet"
        return JobState.PENDING, ""
    raise LrmsError(f"qstat: a job has the state {code!r}")


def _tasks(item: ElementTree.Element, job: Job) -> Iterator[Job]:
    listed = _word(item, "tasks", "")
    if not listed:
        yield job
        return
    for task in expand_tasks(listed, MAX_TASKS)[0]:
        yield replace(job, id=f"{job.id}.{task}")


def _node(host: ElementTree.Element) -> Node:
    name = host.get("name", "")
    values = {e.get("name", ""): (e.text or "").strip() for e in host.findall("hostvalue")}
    queues: dict[str, dict[str, str]] = {}
    for part in host.findall("queue"):
        queues[part.get("name", "")] = {
            e.get("name", ""): (e.text or "").strip() for e in part.findall("queuevalue")
        }
    allocated = max((int(q.get("slots_used", "0")) for q in queues.values()), default=0)
    cores = max((int(q.get("slots", "0")) for q in queues.values()), default=0)
    # A lost host has no slots_used once its job is taken off; the job list is the last word.
    busy = bool(allocated) or host.find("job") is not None
    codes = {q.get("state_string", "") for q in queues.values()}
    present = values.get("load_avg", "-") != "-" and values.get("mem_total", "-") != "-"
    state, reason = _node_state(codes, present=present, busy=busy, full=allocated >= cores)
    return Node(
        name=name,
        state=state,
        cores=cores or _whole(values.get("num_proc", "-")),
        allocated_cores=allocated,
        memory_mb=size_mb(values.get("mem_total", "-")),
        features=tuple(queues),
        partitions=tuple(queues),
        reason=reason,
    )


def _node_state(codes: set[str], *, present: bool, busy: bool, full: bool) -> tuple[NodeState, str]:
    """qstat(1), "states": u(nknown), E(rror), d(isabled), D, C (calendar), s, S, A (suspended),
    o(rphaned), a(larm: over the load threshold)."""
    letters = set("".join(codes))
    if "u" in letters or not present:
        return NodeState.DOWN, "its execution daemon does not answer (state u)"
    if "E" in letters:
        return NodeState.DOWN, "queue in error state: qstat -explain E says why, qmod -c clears it"
    if letters & set("dDo") or letters & set("sSAC"):
        return (NodeState.DRAINING if busy else NodeState.DRAINED), "disabled"
    if not busy:
        return NodeState.IDLE, ""
    return (NodeState.ALLOCATED if full else NodeState.MIXED), ""


def _whole(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _root(command: str, text: str, tag: str) -> ElementTree.Element:
    # From the site's own qmaster, by its own command: no untrusted XML. Python's expat limits
    # entity expansion besides.
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise LrmsError(f"{command}: the answer is not XML ({error}): {text[:80]!r}") from error
    if root.tag != tag:
        raise LrmsError(f"{command}: the answer is <{root.tag}>, not <{tag}>")
    return root


def _word(item: ElementTree.Element, name: str, default: str | None = None) -> str:
    found = item.findtext(name)
    if found is None or not found.strip():
        if default is None:
            number = item.findtext("JB_job_number") or "?"
            raise LrmsError(f"qstat: job {number}: {name} is missing")
        return default
    return found.strip()


def _time(item: ElementTree.Element, name: str) -> datetime | None:
    text = _word(item, name, "")
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError as error:
        raise LrmsError(f"qstat: {name} has the value {text!r}") from error
