"""A snapshot of 5,000 Slurm nodes and 50,000 jobs, from the commands' text to the engine's values.

The texts are what the three versions wrote when they were recorded (tests/data): the record of one
pending job, of one running job and of one busy node, layout included, with the fields that differ
from job to job filled in anew. So there is as much text as Slurm would write, most of it about what
nobody here asks. What Slurm needs to write it is not counted.
"""

from __future__ import annotations

import gc
import json
import random
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.scale import spread
from burst.lrms import slurm_parse
from burst.model import Job, Node

JOBS, NODES = 50_000, 5_000
VERSIONS = ("22.05.8", "24.11.5", "26.05.5")
RECORDED = Path(__file__).parents[2] / "tests" / "data"
NOW = 1_795_336_130  # seconds since 1970, just after the recordings
_REPEATS = 5
_HOLE = re.compile(r"990000(\d\d)")
_LIMITS = (5, 10, 30, 60, 120, 240, 720, 1440)  # minutes


def text_of_jobs(version: str, jobs: int, nodes: int) -> str:
    """What `squeue --json` would write: one running job on each node, the others wait."""
    rng = random.Random(1)
    document = _recorded(version, "squeue-json")
    running, waiting = (
        _pattern(_first(document["jobs"], state), _OF_A_JOB) for state in ("RUNNING", "PENDING")
    )
    records = []
    for number in range(1, jobs + 1):
        on = number <= nodes
        cores = 1 << rng.randrange(6)
        values = {
            "job_id": number,
            "submit_time": NOW - rng.randrange(90, 86_400),
            "start_time": NOW - 60 if on else 0,
            "cpus": cores,
            "time_limit": rng.choice(_LIMITS),
            "user_name": f"user{rng.randrange(200)}",
            "account": f"acct{rng.randrange(20)}",
            "name": f"job-{rng.randrange(1000)}.sh",
            "nodes": f"wn{number:05}" if on else "",
            "tres_req_str": f"cpu={cores},mem={2048 * cores}M,node=1,billing={cores}",
        }
        records.append(_filled(running if on else waiting, values))
    return _document(document, "jobs", records)


def text_of_nodes(version: str, nodes: int) -> str:
    """What `sinfo --json` (22.05) or `scontrol show nodes --json` would write."""
    kind = "sinfo" if version.startswith("22.") else "scontrol-show-nodes"
    document = _recorded(version, f"{kind}-busy-json")
    pattern = _pattern(document["nodes"][0], _OF_A_NODE)
    records = [
        _filled(pattern, {"name": f"wn{number:05}", "address": f"10.1.{number // 250}.{number}"})
        for number in range(1, nodes + 1)
    ]
    return _document(document, "nodes", records)


_OF_A_JOB = (
    "job_id",
    "submit_time",
    "start_time",
    "cpus",
    "time_limit",
    "user_name",
    "account",
    "name",
    "nodes",
    "tres_req_str",
)
_OF_A_NODE = ("name", "address")


def _recorded(version: str, name: str) -> dict[str, Any]:
    text = (RECORDED / f"slurm-{version}" / f"{name}.txt").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


def _first(items: list[dict[str, Any]], state: str) -> dict[str, Any]:
    """The first job of this state that is in no array."""
    for item in items:
        number = item["array_job_id"]
        if isinstance(number, dict):
            number = number["number"]
        if item["job_state"] in (state, [state]) and not number:
            return item
    raise LookupError(f"no recorded job is {state}")


def _pattern(item: Mapping[str, Any], fields: Sequence[str]) -> list[str]:
    """Its text, cut at the fields that differ; every second piece is such a field's name."""
    marked = dict(item)
    for place, key in enumerate(fields):
        mark = 99_000_000 + place
        value = marked[key]
        if isinstance(value, dict):
            marked[key] = {"set": True, "infinite": False, "number": mark}
        else:
            marked[key] = str(mark) if isinstance(value, str) else mark
    pieces = _HOLE.split(_written(marked))
    pieces[1::2] = [fields[int(place)] for place in pieces[1::2]]
    return pieces


def _filled(pattern: list[str], values: Mapping[str, Any]) -> str:
    pieces = pattern.copy()
    pieces[1::2] = [str(values[key]) for key in pattern[1::2]]
    return "".join(pieces)


def _document(recorded: Mapping[str, Any], key: str, records: list[str]) -> str:
    """With `key` where Slurm has it: first or last."""
    around = _written({**recorded, key: "99000000"}, indent=0)
    return around.replace('"99000000"', "[\n" + ",\n".join(records) + "\n]")


def _written(value: Mapping[str, Any], indent: int = 4) -> str:
    """As Slurm writes it: each field on a line, slashes escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False).replace("/", "\\/")
    return " " * indent + text.replace("\n", "\n" + " " * indent)


def read(jobs: str, nodes: str) -> tuple[tuple[Job, ...], tuple[Node, ...]]:
    """What `burst.lrms.slurm` does with the two answers."""
    taken = datetime.fromtimestamp(NOW, UTC)
    found = slurm_parse.jobs(slurm_parse.answer("squeue", jobs, "jobs"), taken)
    return found, slurm_parse.nodes(slurm_parse.answer("nodes", nodes, "nodes"))


def one(version: str, jobs: int, nodes: int) -> dict[str, Any]:
    """Seconds by the clock and of this process alone, for both answers of one version."""
    texts = text_of_jobs(version, jobs, nodes), text_of_nodes(version, nodes)
    walls: list[float] = []
    cpus: list[float] = []
    counts = (0, 0)
    for _ in range(_REPEATS):
        gc.collect()
        begin, worked = time.perf_counter(), time.process_time()
        found = read(*texts)
        cpus.append(time.process_time() - worked)
        walls.append(time.perf_counter() - begin)
        counts = len(found[0]), len(found[1])
        del found
    if counts != (jobs, nodes):
        raise RuntimeError(f"{counts[0]} jobs and {counts[1]} nodes were read of {jobs}, {nodes}")
    return {
        "version": version,
        "jobs": jobs,
        "nodes": nodes,
        "text_mb": round(sum(map(len, texts)) / 1e6, 1),
        "seconds": spread.middle(walls),
        "seconds_spread": spread.ends(walls),
        "cpu_seconds": spread.middle(cpus),
        "cpu_seconds_spread": spread.ends(cpus),
        "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def measure(share: float = 1.0) -> dict[str, Any]:
    """`slurm_parse_s`, the slowest version's, and what was measured of each."""
    versions = [_apart(name, int(JOBS * share), int(NODES * share)) for name in VERSIONS]
    return {
        "slurm_parse_s": round(max(one["seconds"] for one in versions), 3),
        "slurm_parse_cpu_s": round(max(one["cpu_seconds"] for one in versions), 3),
        "slurm_parse_versions": versions,
    }


def _apart(version: str, jobs: int, nodes: int) -> dict[str, Any]:
    """In a process of its own: half a gigabyte of text is not to burden what comes after."""
    command = [sys.executable, "-m", "bench.scale.parse", version, str(jobs), str(nodes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(one(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))) + "\n")
