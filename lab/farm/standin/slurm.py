"""Slurm 22.05, 24.11 and 26.05: squeue, sinfo and scontrol, as recorded."""

from __future__ import annotations

import json
from typing import Any

from burst.lrms.command import Result
from lab.farm.standin.state import SimJob, SimNode, StandIn, no, ok, usage


class SlurmStandIn(StandIn):
    """version: (22, 5), (24, 11) or (26, 5); numbers and words have other shapes from 24.11 on."""

    def __init__(self, version: tuple[int, int] = (24, 11)) -> None:
        super().__init__()
        self.version = version
        self.busy_updates = 0  # so many updates fail with "Resource temporarily unavailable"

    def job_id(self, job: SimJob) -> str:
        return str(job.number) if job.task is None else f"{job.number}_{job.task}"

    def silence(self, command: str) -> Result:
        if command != "scontrol" and self.version < (23, 2):  # status 0 and an empty list
            error = {"error_number": 1802, "error": "Unable to contact slurm controller"}
            return ok(json.dumps({"meta": {}, "errors": [error], "jobs": [], "nodes": []}))
        text = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
        return no(1, text)

    def answer(self, argv: list[str], given: str) -> Result:
        match argv:
            case ["squeue", "--all", "--states=all", "--json"]:
                return self._document("jobs", [self._job(job) for job in self.jobs])
            case ["sinfo", "--all", "--json"] if self.version < (23, 2):
                return self._document("nodes", [self._node(n) for n in self.nodes.values()])
            case ["scontrol", "--all", "show", "nodes", "--json"] if self.version >= (23, 2):
                return self._document("nodes", [self._node(n) for n in self.nodes.values()])
            case ["scontrol", "show", "node", name]:
                return self._show(name)
            case ["scontrol", "delete", what]:
                return self._delete(what.removeprefix("nodename="))
            case ["scontrol", "requeue", name]:
                return self._requeue(name)
            case ["scontrol", "update", first, *rest] if first.startswith("nodename="):
                return self._update_node(first.removeprefix("nodename="), rest)
            case ["scontrol", "update", first, second]:
                problem = self._update_job(first, second)
                return no(1, problem) if problem else ok()
            case ["scontrol"]:
                lines = [line.split() for line in given.splitlines() if line]
                problems = [p for _, a, b in lines if (p := self._update_job(a, b))]
                return no(1, "\n".join(problems)) if problems else ok()
        return usage(argv)

    def _update_job(self, first: str, second: str) -> str:
        name = first.removeprefix("jobid=")
        wanted = second.removeprefix("partition=").split(",")
        found = self.find(name)
        if not found:
            return f"Invalid job id specified for job {name}"
        if unknown := [p for p in wanted if p not in (self.local, self.burst)]:
            return f"Invalid partition name specified for job {name}" if unknown else ""
        if self.busy_updates:
            self.busy_updates -= 1
            return f"Resource temporarily unavailable for job {name}"
        if all(job.ended for job in found):
            return f"Job has already finished for job {name}"
        waiting = [job for job in found if job.waiting]
        if not waiting:
            return f"Job is no longer pending execution for job {name}"
        for job in waiting:
            job.queues = list(wanted)
        served = {queue for node in self.nodes.values() for queue in node.queues}
        if self.version >= (24, 11) and not set(wanted) <= served:
            # 24.11 and later say no, and have applied it.
            return f"Requested node configuration is not available for job {name}"
        return ""

    def _update_node(self, name: str, what: list[str]) -> Result:
        node = self.nodes.get(name)
        if node is None:
            return no(1, "slurm_update error: Invalid node name specified")
        settings = dict(part.partition("=")[::2] for part in what)
        match settings.get("state"):
            case "drain":
                node.closed = settings["reason"]
            case "undrain" | "resume":
                if node.closed is None:
                    return no(1, "slurm_update error: Invalid node state specified")
                node.closed = None
            case _:
                return usage(["scontrol", *what])
        return ok()

    def _requeue(self, name: str) -> Result:
        found = self.find(name)
        if not found:
            return no(1, f"Invalid job id specified for job {name}")
        if not any(job.running for job in found):
            return no(1, f"Job is pending execution for job {name}")
        for job in found:
            if job.running:
                self.queue_again(job)
        return ok()

    def _show(self, name: str) -> Result:
        node = self.nodes.get(name)
        if node is None:
            return Result(1, f"Node {name} not found\n", "")
        state = "+".join([*self._words(node), *(["DYNAMIC_NORM"] if node.borrowed else [])])
        return ok(
            f"NodeName={name} CPUAlloc={self.used(name)}\n   State={state} ThreadsPerCore=1\n"
        )

    def _delete(self, name: str) -> Result:
        if name not in self.nodes:
            text = f"scontrol: error: failed to delete nodes {name}\n"
            return no(1, f"{text}delete_node nodename={name}: Invalid node name specified")
        if self.on(name):
            text = f"scontrol: error: failed to delete nodes {name}\n"
            return no(1, f"{text}delete_node nodename={name}: Requested nodes are busy")
        del self.nodes[name]  # a down node too, with jobs pending for its partition
        return ok()

    # Shapes

    def _document(self, key: str, items: list[dict[str, Any]]) -> Result:
        major, minor = self.version
        version = {"major": major, "micro": 5, "minor": minor}
        if self.version >= (23, 2):
            version = {name: str(value) for name, value in version.items()}  # type: ignore[misc]
            meta = {"slurm": {"version": version, "release": f"{major}.{minor:02}.5"}}
        else:
            meta = {"Slurm": {"version": version, "release": f"{major}.{minor:02}.8"}}
        return ok(json.dumps({"meta": meta, "errors": [], key: items}))

    def _number(self, value: int | None) -> Any:
        if self.version < (23, 2):
            return value or 0 if value is not None else None
        return {"set": value is not None, "infinite": False, "number": value or 0}

    def _word(self, *words: str) -> Any:
        return list(words) if self.version >= (23, 2) else words[0]

    def _job(self, job: SimJob) -> dict[str, Any]:
        state = "RUNNING" if job.running else "COMPLETED" if job.ended else "PENDING"
        seconds = [int(t.timestamp()) if t else 0 for t in (job.submitted, job.started, job.ended)]
        return {
            "job_id": job.number if job.task is None else job.number * 100 + job.task,
            "array_job_id": self._number(job.number if job.task is not None else 0),
            "array_task_id": self._number(job.task),
            "array_task_string": "",
            "job_state": self._word(state),
            "state_reason": "JobHeldUser" if job.held else "None",
            "priority": self._number(0 if job.held else 1),
            "cpus": self._number(job.cores),
            "node_count": self._number(1),
            "nodes": job.node,
            "tres_req_str": f"cpu={job.cores},mem={job.memory_mb}M,node=1,billing={job.cores}",
            "memory_per_node": self._number(job.memory_mb),
            "memory_per_cpu": self._number(None),
            "time_limit": self._number(int(job.limit.total_seconds() // 60)),
            "submit_time": self._number(seconds[0]),
            "start_time": self._number(seconds[1]),
            "end_time": self._number(seconds[2]),
            "partition": ",".join(job.queues),
            "user_name": job.user,
            "account": "",
            "features": "",
            "name": "hn",
            "comment": "",
        }

    def _words(self, node: SimNode) -> list[str]:
        used = self.used(node.name)
        base = "IDLE" if not used else "ALLOCATED" if used >= node.cores else "MIXED"
        words = [base if node.up else "DOWN"]
        if node.closed is not None:
            words.append("DRAIN")
        return words

    def _node(self, node: SimNode) -> dict[str, Any]:
        words = self._words(node)
        flags = ["DYNAMIC_NORM"] if node.borrowed else []
        if self.version < (23, 2):
            state: dict[str, Any] = {"state": words[0].lower(), "state_flags": words[1:] + flags}
        else:
            state = {"state": words + flags}
        lists = [node.queues if node.borrowed else (), node.queues]
        features, partitions = (
            list(one) if self.version >= (23, 2) or i else ",".join(one)
            for i, one in enumerate(lists)
        )
        return state | {
            "name": node.name,
            "alloc_cpus": self.used(node.name),
            "cpus": node.cores,
            "real_memory": node.memory_mb,
            "address": "10.77.0.21",
            "partitions": partitions,
            "reason": node.closed or ("" if node.up else "Not responding"),
            "active_features": features,
            "features": features,
        }
