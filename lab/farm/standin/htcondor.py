"""HTCondor 23.9 and 25.14: condor_q, condor_qedit, condor_status, condor_drain, as recorded."""

from __future__ import annotations

import json
import re
from typing import Any

from burst.lrms.command import Result
from lab.farm.standin.state import SimJob, SimNode, StandIn, no, ok, usage

_PAIR = re.compile(r"ClusterId==(\d+) && ProcId==(\d+)")
_SINCE = re.compile(r"EnteredCurrentStatus < (\d+)")
_DOMAIN = ".lab"


class HtCondorStandIn(StandIn):
    """A schedd and a collector. retirement: MaxJobRetirementTime of borrowed machines, seconds;
    0: a graceful drain evicts at once, as the default does."""

    local = "vanilla"
    requeues_lost_jobs = True  # when the job's lease is over

    def __init__(self, version: tuple[int, int] = (23, 9), *, retirement: int = 604800) -> None:
        super().__init__()
        self.version = version
        self.retirement = retirement
        # Default Requirements differ between the versions.
        has = (
            "(TARGET.HasFileTransfer)" if version < (24, 0) else "(TARGET.HasFileTransfer is true)"
        )
        self.requirements = f'(TARGET.Arch == "X86_64") && (TARGET.OpSys == "LINUX") && {has}'
        self.targets: dict[int, str] = {}  # id(job): BurstTarget

    def job_id(self, job: SimJob) -> str:
        return f"{job.number}.{(job.task or 1) - 1}"

    def silence(self, command: str) -> Result:
        if command == "condor_status":
            text = "Error: communication error\nCEDAR:6001:Failed to connect to <10.77.0.1:9618>"
            return no(1, text)
        if command == "condor_q":
            text = "Extra Info: You probably saw this error because the condor_schedd is not \n"
            return no(1, f"Error: (null)\n\n{text}running on the machine you are trying to query.")
        if command == "condor_qedit":
            return no(1, "condor_qedit: ERROR: Can't find address of local schedd")
        if command == "condor_history":
            return ok("[\n]\n")  # it reads a file
        return no(1, "ERROR: (null)")

    def answer(self, argv: list[str], given: str) -> Result:
        match argv:
            case ["condor_q", "-allusers", "-json", "-attributes", names]:
                return self._ads([self._job(j) for j in self.jobs if not j.ended], names)
            case ["condor_history", "-json", "-attributes", names, "-since", since, "-limit", _]:
                found = _SINCE.search(since)
                ended = [self._job(j) for j in self.jobs if j.ended]
                young = [ad for ad in ended if found and ad["CompletionDate"] >= int(found[1])]
                return self._ads(young, names, empty="[\n]\n")
            case ["condor_status", "-json", "-attributes", names]:
                ads = [ad for n in self.nodes.values() if self._listed(n) for ad in self._slots(n)]
                return self._ads(ads, names)
            case ["condor_qedit", "-constraint", constraint, "BurstTarget", value]:
                return self._edit(constraint, value)
            case ["condor_reschedule"]:
                return ok("Sent RESCHEDULE command to local schedd\n")
            case ["condor_drain", "-graceful", "-reason", reason, machine]:
                return self._drain(machine, reason)
            case ["condor_drain", "-cancel", machine]:
                return self._cancel(machine)
            case ["condor_off", "-master", "-fast", "-name", machine]:
                node = self._named(machine)
                if node is None or not node.up:
                    return no(1, f"Can't find address for {machine}")
                node.up = False
                return ok(f'Sent "Kill-Daemon" command for "master" to master {machine}\n')
            case ["condor_advertise", "INVALIDATE_STARTD_ADS", "-"]:
                for name in list(self.nodes):
                    if f'Machine == "{name}{_DOMAIN}"' in given:
                        del self.nodes[name]
                return ok("Sent 1 of 1 ad to head.lab.\n")
            case ["condor_vacate_job", "-fast", name]:
                found_jobs = [j for j in self.find(name) if j.running]
                if not found_jobs:
                    return no(1, f"Job {name} not found or not running")
                for job in found_jobs:
                    self.queue_again(job)
                return ok(f"Job {name} fast-vacated\n")
        return usage(argv)

    def accepts(self, node: SimNode, job: SimJob) -> bool:
        if not node.borrowed:
            return True
        return self.burst in self.targets.get(id(job), "").split(",")

    def _edit(self, constraint: str, value: str) -> Result:
        wanted = {f"{a}.{b}" for a, b in _PAIR.findall(constraint)}
        only_waiting = constraint.startswith("(JobStatus==1 || JobStatus==5)")
        count = 0
        for job in self.jobs:
            if self.job_id(job) in wanted and not job.ended and (job.waiting or not only_waiting):
                self.targets[id(job)] = "" if value == "undefined" else value.strip('"')
                count += 1
        if not count:
            text = f'Failed to set attribute "BurstTarget" by constraint: ( {constraint} )\n'
            return no(1, f"{text}Queue transaction failed.  No attributes were set.")
        return ok(f'Set attribute "BurstTarget" for {count} matching jobs.\n')

    def _drain(self, machine: str, reason: str) -> Result:
        node = self._named(machine)
        if node is None:
            return no(1, f"ERROR: unknown host {machine}")
        if node.closed is not None:
            text = (
                "in response to DRAIN_JOBS request: error code 10001: Draining already in progress."
            )
            return no(1, f"Received failure from slot1@{machine} {text}")
        node.closed = reason
        if node.borrowed and not self.retirement:
            for job in self.on(node.name):
                self.queue_again(job)
        return ok(f"Sent request to drain the startd <10.77.0.21:9618> with slot1@{machine}.\n")

    def _cancel(self, machine: str) -> Result:
        node = self._named(machine)
        if node is None or node.closed is None:
            return ok(f"Sent request to cancel draining on slot1@{machine}\n")
        node.closed = None
        return ok("Sent request to cancel draining\n")

    def _named(self, machine: str) -> SimNode | None:
        node = self.nodes.get(machine.removesuffix(_DOMAIN))
        return node if node is not None and self._listed(node) else None

    def _listed(self, node: SimNode) -> bool:
        """The ad of a dead machine stays for CLASSAD_LIFETIME (900 s)."""
        return (self.now - node.heard).total_seconds() < 900

    def _ads(self, ads: list[dict[str, Any]], names: str, empty: str = "") -> Result:
        wanted = names.split(",")
        shown = [{k: v for k, v in ad.items() if k in wanted} for ad in ads]
        return ok(json.dumps(shown).replace("/Expr", "\\/Expr") if shown else empty)

    def _job(self, job: SimJob) -> dict[str, Any]:
        ad: dict[str, Any] = {
            "ClusterId": job.number,
            "ProcId": (job.task or 1) - 1,
            "JobStatus": 4 if job.ended else 2 if job.running else 5 if job.held else 1,
            "JobUniverse": 5,
            "Owner": job.user,
            "QDate": int(job.submitted.timestamp()),
            "RequestCpus": job.cores,
            "RequestMemory": job.memory_mb,
            "MinHosts": 1,
            "MaxHosts": 1,
            "MaxRuntime": int(job.limit.total_seconds()),
            "Cmd": "/home/alice/j/hn.sh",
            "Requirements": f"/Expr({self.requirements})/",
        }
        if job.held:
            ad["HoldReason"] = "submitted on hold at user's request"
        if target := self.targets.get(id(job)):
            ad["BurstTarget"] = target
        if job.started and job.node:
            key = "RemoteHost" if job.running else "LastRemoteHost"
            ad[key] = f"slot1_1@{job.node}{_DOMAIN}"
            ad["JobCurrentStartDate"] = int(job.started.timestamp())
        if job.ended:
            ad["CompletionDate"] = ad["EnteredCurrentStatus"] = int(job.ended.timestamp())
            ad |= {"ExitCode": 0, "ExitBySignal": False}
        return ad

    def _slots(self, node: SimNode) -> list[dict[str, Any]]:
        jobs, machine = self.on(node.name), f"{node.name}{_DOMAIN}"
        common: dict[str, Any] = {
            "Machine": machine,
            "LastHeardFrom": int(node.heard.timestamp()),
            "MyAddress": "<10.77.0.21:9618?addrs=10.77.0.21-9618&alias=cloud1.lab>",
            "TotalMemory": node.memory_mb,
            "MaxJobRetirementTime": self.retirement if node.borrowed else 0,
        }
        if node.borrowed:
            common |= {"BurstNode": node.name, "BurstPool": node.queues[0], "BurstHeartbeat": 30}
        if node.closed is not None:
            common |= {"Draining": True, "DrainReason": node.closed}
        free = node.cores - self.used(node.name)
        whole: dict[str, Any] = {
            "Name": f"slot1@{machine}",
            "SlotType": "Partitionable",
            "PartitionableSlot": True,
            "State": "Unclaimed" if node.closed is None else "Drained",
            "Activity": "Idle" if node.closed is None else "Retiring",
            "Cpus": free if node.closed is None else 0,  # a draining slot has none
            "TotalSlotCpus": node.cores,
            "TotalSlotMemory": node.memory_mb,
            "ChildCpus": [job.cores for job in jobs],
        }
        parts: list[dict[str, Any]] = [
            {
                "Name": f"slot1_{i + 1}@{machine}",
                "SlotType": "Dynamic",
                "DynamicSlot": True,
                "State": "Claimed",
                "Activity": "Busy" if node.closed is None else "Retiring",
                "Cpus": job.cores,
                "TotalSlotCpus": job.cores,
                "Memory": job.memory_mb,
            }
            for i, job in enumerate(jobs)
        ]
        return [common | part for part in (whole, *parts)]
