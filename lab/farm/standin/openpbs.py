"""OpenPBS 23.06: qstat and pbsnodes in JSON, as recorded."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from burst.lrms.command import Result
from lab.farm.standin.pbs import PbsStandIn
from lab.farm.standin.state import SimJob, SimNode, no, ok


class OpenPbsStandIn(PbsStandIn):
    def answer(self, argv: list[str], given: str) -> Result:
        match argv:
            case ["qstat", "-f", "-t", "-F", "json"]:
                return ok(self._document("Jobs", self._jobs()))
            case ["pbsnodes", "-av", "-F", "json"]:
                if not self.nodes:
                    return no(1, "pbsnodes: Server has no node list")
                listed = {node.name: self._node(node) for node in self.nodes.values()}
                return ok(self._document("nodes", listed))
            case ["pbsnodes", "-o", "-C", reason, name]:
                return self._offline(name, reason)
            case ["pbsnodes", "-r", "-C", "", name]:
                return self._offline(name, None)
        return super().answer(argv, given)

    def resource(self, settings: dict[str, str]) -> tuple[str | None, str | None]:
        return settings.get("resources_available.Qlist"), settings.get("resources_available.ncpus")

    def _offline(self, name: str, reason: str | None) -> Result:
        if name not in self.nodes:
            return no(1, f"pbsnodes: Unknown node  {name}")
        self.nodes[name].closed = reason
        return ok()

    def _document(self, key: str, items: dict[str, Any]) -> str:
        head: dict[str, Any] = {
            "timestamp": int(self.now.timestamp()),
            "pbs_version": "23.06.06",
            "pbs_server": "head",
        }
        return json.dumps({**head, key: items} if items else head)  # an empty list: no key

    def _jobs(self) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        for job in self.jobs:
            if job.ended:
                continue
            if job.task is not None and self.array_id(job) not in shown:
                state = "B" if self.begun(job) else "H" if job.held else "Q"
                shown[self.array_id(job)] = self._job(job, state) | {"array": "True"}
            state = "R" if job.running else "H" if job.held else "Q"
            shown[self.job_id(job)] = self._job(job, state)
        return shown

    def _job(self, job: SimJob, state: str) -> dict[str, Any]:
        shown = {
            "Job_Name": "hn",
            "Job_Owner": f"{job.user}@head",
            "job_state": state,
            "queue": job.queues[0],
            "ctime": _ctime(job.submitted),
            "qtime": _ctime(job.submitted),
            "Hold_Types": "u" if job.held else "n",
            "Resource_List": {
                "mem": f"{job.memory_mb}mb",
                "ncpus": job.cores,
                "nodect": 1,
                "place": "free",
                "select": f"1:ncpus={job.cores}:mem={job.memory_mb}mb",
                "walltime": f"{int(job.limit.total_seconds()) // 3600:02}:"
                f"{int(job.limit.total_seconds()) // 60 % 60:02}:00",
            },
            "Variable_List": {"PBS_O_QUEUE": job.origin},
            "comment": "" if state == "R" else "Not Running: Not enough free nodes available",
        }
        if state == "R" and job.started:
            shown |= {"exec_host": f"{job.node}/0*{job.cores}", "stime": _ctime(job.started)}
        return shown

    def _node(self, node: SimNode) -> dict[str, Any]:
        used = self.used(node.name)
        words = [] if node.up else ["down"]
        words += ["offline"] if node.closed is not None else []
        words += ["job-busy"] if used and used >= node.cores else []
        available: dict[str, Any] = {"mem": f"{node.memory_mb}mb", "ncpus": node.cores}
        if node.queues:
            available["Qlist"] = ",".join(node.queues)
        shown: dict[str, Any] = {
            "Mom": node.name,
            "state": ",".join(words) or "free",
            "resources_available": available,
            "resources_assigned": {"ncpus": used} if used else {},
        }
        if jobs := [self.job_id(job) for job in self.on(node.name)]:
            shown["jobs"] = jobs
        if node.closed:
            shown["comment"] = node.closed
        return shown


def _ctime(when: datetime) -> str:
    return f"{when:%a %b %d %H:%M:%S %Y}"
