"""Torque 6.1: qstat and pbsnodes in XML, as its manual has them."""

from __future__ import annotations

from datetime import datetime
from xml.sax.saxutils import escape

from burst.lrms.command import Result
from lab.farm.standin.pbs import PbsStandIn
from lab.farm.standin.state import SimJob, SimNode, no, ok


class TorqueStandIn(PbsStandIn):
    local = "batch"

    def answer(self, argv: list[str], given: str) -> Result:
        match argv:
            case ["qstat", "-x", "-t"]:
                jobs = "".join(self._job(job) for job in self.jobs)
                return ok(f"<Data>{jobs}</Data>" if jobs else "")  # nothing at all when empty
            case ["pbsnodes", "-x"]:
                nodes = "".join(self._node(node) for node in self.nodes.values())
                return ok(f"<Data>{nodes}</Data>") if nodes else no(1, "pbsnodes: No nodes found")
            case ["pbsnodes", "-o", "-N", reason, name]:
                return self._offline(name, reason)
            case ["pbsnodes", "-c", "-N", "n", name]:
                return self._offline(name, None)
        return super().answer(argv, given)

    def resource(self, settings: dict[str, str]) -> tuple[str | None, str | None]:
        return settings.get("properties"), settings.get("np")

    def _offline(self, name: str, reason: str | None) -> Result:
        if name not in self.nodes:
            return no(
                1, f"pbsnodes: Error marking node {name} - cannot locate object: Unknown node"
            )
        self.nodes[name].closed = reason
        return ok()

    def _job(self, job: SimJob) -> str:
        state = "C" if job.ended else "R" if job.running else "H" if job.held else "Q"
        hosts = "+".join(f"{job.node}/{slot}" for slot in range(job.cores)) if job.node else ""
        seconds = int(job.limit.total_seconds())
        variables = f"PBS_O_QUEUE={job.origin},PBS_O_HOME=/home/{job.user}"
        return (
            f"<Job><Job_Id>{self.job_id(job)}</Job_Id><Job_Name>hn</Job_Name>"
            f"<Job_Owner>{job.user}@head</Job_Owner><job_state>{state}</job_state>"
            f"<queue>{job.queues[0]}</queue><ctime>{_epoch(job.submitted)}</ctime>"
            f"<exec_host>{hosts}</exec_host><Hold_Types>{'u' if job.held else 'n'}</Hold_Types>"
            f"<qtime>{_epoch(job.submitted)}</qtime><Resource_List><mem>{job.memory_mb}mb</mem>"
            f"<nodect>1</nodect><nodes>1:ppn={job.cores}</nodes>"
            f"<walltime>{seconds // 3600:02}:{seconds // 60 % 60:02}:00</walltime></Resource_List>"
            f"<start_time>{_epoch(job.started)}</start_time>"
            f"<comp_time>{_epoch(job.ended)}</comp_time>"
            f"<exit_status>0</exit_status><Variable_List>{escape(variables)}</Variable_List></Job>"
        )

    def _node(self, node: SimNode) -> str:
        used = self.used(node.name)
        words = [] if node.up else ["down"]
        words += ["offline"] if node.closed is not None else []
        words += ["job-exclusive"] if used and used >= node.cores else []
        slots, number = [], 0
        for job in self.on(node.name):
            span = f"{number}-{number + job.cores - 1}" if job.cores > 1 else str(number)
            slots.append(f"{span}/{self.job_id(job)}")
            number += job.cores
        status = (
            f"rectime={_epoch(node.heard)},ncpus=4,physmem={node.memory_mb * 1024}kb,state=free"
        )
        note = f"<note>{escape(node.closed)}</note>" if node.closed else ""
        return (
            f"<Node><name>{node.name}</name><state>{','.join(words) or 'free'}</state>"
            f"<np>{node.cores}</np><properties>{','.join(node.queues)}</properties>"
            f"<ntype>cluster</ntype><jobs>{','.join(slots)}</jobs><status>{status}</status>{note}"
            "</Node>"
        )


def _epoch(when: datetime | None) -> str:
    return str(int(when.timestamp())) if when else ""
