"""LSF 10.1: bjobs, bhosts, lshosts, bswitch, badmin, brequeue and lsadmin, as documented."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from burst.lrms.command import Result
from lab.farm.standin.state import SimJob, SimNode, StandIn, no, ok, usage


class LsfStandIn(StandIn):
    """Fix Pack 14 or later. Every value is a string; times are without a year."""

    local = "normal"
    requeues_lost_jobs = True  # a rerunnable queue (RERUNNABLE = yes, lsb.queues(5))

    def job_id(self, job: SimJob) -> str:
        return str(job.number) if job.task is None else f"{job.number}[{job.task}]"

    def silence(self, command: str) -> Result:
        return no(255, "LSF is down. Please wait ...")

    def answer(self, argv: list[str], given: str) -> Result:
        match argv:
            case ["bjobs", "-u", "all", "-a", "-o", fields, "-json"]:
                if not self.jobs:
                    return no(255, "No job found")
                return self._records("bjobs", "JOBS", [self._job(j) for j in self.jobs], fields)
            case ["bhosts", "-X", "-o", fields, "-json"]:
                listed = [self._node(node) for node in self.nodes.values()]
                return self._records("bhosts", "HOSTS", listed, fields)
            case ["lshosts", "-w"]:
                return ok(self._lshosts())
            case ["bswitch", queue, *names]:
                return self._switch(queue, names)
            case ["badmin", "hclose", "-C", reason, name]:
                return self._close(name, reason)
            case ["badmin", "hopen", name]:
                return self._close(name, None)
            case ["brequeue", name]:
                found = [job for job in self.find(name) if job.running]
                if not found:
                    return no(255, f"Job <{name}>: Job has already finished or is not running")
                for job in found:
                    self.queue_again(job)
                return ok(f"Job <{name}> is being requeued\n")
            case ["lsadmin", "expire", name]:
                if name not in self.nodes:
                    return no(255, f"{name}: Bad host name, unknown host")
                del self.nodes[name]
                return ok(f"Host <{name}> is expired\n")
        return usage(argv)

    def _switch(self, queue: str, names: list[str]) -> Result:
        out, err, status = [], [], 0
        for name in names:
            found = [job for job in self.find(name) if not job.ended]
            if queue not in (self.local, self.burst):
                err.append(f"{queue}: No such queue")
                status = 255
            elif not found:
                err.append(f"Job <{name}> is not found")
                status = 255
            else:
                for job in found:  # running ones, too: they change queue where they are
                    job.queues = [queue]
                out.append(f"Job <{name}> is switched to queue <{queue}>")
        lines = ["".join(f"{line}\n" for line in part) for part in (out, err)]
        return Result(status, *lines)

    def _close(self, name: str, reason: str | None) -> Result:
        if name not in self.nodes:
            return no(255, f"{name}: Bad host name, host name is not found")
        self.nodes[name].closed = reason
        return ok(f"{'Open' if reason is None else 'Close'} <{name}> ...... done\n")

    def _records(self, command: str, key: str, items: list[dict[str, str]], fields: str) -> Result:
        wanted = {field.upper() for field in fields.split()}
        shown = [{k: v for k, v in item.items() if k in wanted} for item in items]
        document: dict[str, Any] = {"COMMAND": command, key: len(shown), "RECORDS": shown}
        return ok(json.dumps(document))

    def _job(self, job: SimJob) -> dict[str, str]:
        state = "DONE" if job.ended else "RUN" if job.running else "PSUSP" if job.held else "PEND"
        return {
            "JOBID": str(job.number),
            "JOBINDEX": str(job.task or 0),
            "STAT": state,
            "USER": job.user,
            "QUEUE": job.queues[0],
            "JOB_NAME": "hn",
            "PROJ_NAME": "default",
            "NREQ_SLOT": str(job.cores),
            "EXEC_HOST": ":".join([job.node] * job.cores) if job.node else "",
            "SUBMIT_TIME": _short(job.submitted),
            "START_TIME": _short(job.started),
            "FINISH_TIME": f"{_short(job.ended)} L" if job.ended else "",
            "RUNTIMELIMIT": f"{job.limit.total_seconds() / 60:.1f}",
            "MEMLIMIT": f"{job.memory_mb} M",
            "PEND_REASON": "" if job.running else "Job slot limit reached;",
            "COMBINED_RESREQ": "select[type == local] order[r15s:pg]",
            "DEPENDENCY": "",
            "ESSTART_TIME": "",
        }

    def _node(self, node: SimNode) -> dict[str, str]:
        used = self.used(node.name)
        status = "ok" if used < node.cores else "closed_Full"
        if node.closed is not None:
            status = "closed_Adm"
        if not node.up:
            status = "unavail"
        zero = dict.fromkeys(("SSUSP", "USUSP", "RSV"), "0")
        return zero | {
            "HOST_NAME": node.name,
            "STATUS": status,
            "MAX": str(node.cores),
            "NJOBS": str(used),
            "RUN": str(used),
        }

    def _lshosts(self) -> str:
        head = "HOST_NAME                       type       model  cpuf ncpus maxmem maxswp server"
        return f"{head} RESOURCES\n" + "".join(self._line(node) for node in self.nodes.values())

    def _line(self, node: SimNode) -> str:
        size = f"{node.memory_mb / 1024:.1f}G"
        words = f"({' '.join(node.queues)})" if node.borrowed else "(mg)"
        return f"{node.name} X86_64 Intel_EM64T 60.0 {node.cores} {size} - Yes {words}\n"


def _short(when: datetime | None) -> str:
    return f"{when:%b %d %H:%M}" if when else ""
