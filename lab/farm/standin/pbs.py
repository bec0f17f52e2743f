"""What OpenPBS and Torque have in common: qmove, qrerun, and the rules of qmgr."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable

from burst.lrms.command import Result
from lab.farm.standin.state import SimJob, SimNode, StandIn, no, ok, usage

_CREATE = re.compile(r"create node (\S+)(?: (.*))?")
_SET = re.compile(r"set node (\S+) (.*)")
_DELETE = re.compile(r"delete node (\S+)")


class PbsStandIn(StandIn):
    """A server "head" with two queues. A job is in one of them; an array moves as a whole, and only
    before its first task runs."""

    local = "workq"
    requeues_lost_jobs = True  # node_fail_requeue, 310 s by default

    def __init__(self) -> None:
        super().__init__()
        self.hasnodes = {self.local: True, self.burst: True}

    def job_id(self, job: SimJob) -> str:
        return f"{job.number}.head" if job.task is None else f"{job.number}[{job.task}].head"

    def array_id(self, job: SimJob) -> str:
        return f"{job.number}[].head"

    def register(self, name: str, cores: int, memory_mb: int = 2000) -> None:
        if name not in self.nodes:
            raise AssertionError(f"MoM of {name}: the server has no such node")
        self.nodes[name].up, self.nodes[name].heard = True, self.now

    def silence(self, command: str) -> Result:
        text = f"Connection refused\n{command}: cannot connect to server head (errno=111)"
        return no(111, text)

    def answer(self, argv: list[str], given: str) -> Result:
        match argv:
            case ["qmove", queue, *names]:
                return self._each("qmove", names, lambda name: self._move(name, queue))
            case ["qrerun", "-W", "force", name] | ["qrerun", name]:
                return self._each("qrerun", [name], lambda one: self._rerun(one, len(argv) > 2))
            case ["qmgr", "-c", directive]:
                return self._qmgr(directive)
        return usage(argv)

    def accepts(self, node: SimNode, job: SimJob) -> bool:
        # A queue without its nodes' flag sends its jobs anywhere.
        return super().accepts(node, job) or not all(self.hasnodes[q] for q in job.queues)

    def begun(self, job: SimJob) -> bool:
        return job.task is not None and any(
            other.starts for other in self.jobs if other.number == job.number
        )

    def _each(
        self, command: str, names: list[str], act: Callable[[str], tuple[int, str]]
    ) -> Result:
        status, said = 0, []
        for name in names:
            code, text = act(name)
            if code:
                status = code
                said.append(f"{command}: {text}")
        return Result(status, "", "".join(f"{line}\n" for line in said))

    def _move(self, name: str, queue: str) -> tuple[int, str]:
        found = self.find(name)
        if not [job for job in found if not job.ended]:
            return 153, f"Unknown Job Id {name}"
        if queue not in (self.local, self.burst):
            return 170, f"Unknown queue {name}"
        single = found[0].task is not None and "[]" not in name
        if single or not all(job.waiting for job in found) or any(map(self.begun, found)):
            return 168, f"Request invalid for state of job {name}"
        for job in found:
            job.queues = [queue]
        return 0, ""

    def _rerun(self, name: str, force: bool) -> tuple[int, str]:
        found = [job for job in self.find(name) if job.running]
        if not found:
            return 168, f"Request invalid for state of job {name}"
        if not force and not self.nodes[found[0].node].up:
            return 1, f"Server could not connect to MOM {name}"
        for job in found:
            self.queue_again(job)
        return 0, ""

    @abstractmethod
    def resource(self, settings: dict[str, str]) -> tuple[str | None, str | None]:
        """(queue, cores) of a node's settings, in this system's words."""

    def _qmgr(self, directive: str) -> Result:
        if found := _CREATE.fullmatch(directive):
            name, settings = found[1], found[2] or ""
            if name in self.nodes:
                return self._error(name, "Node name already exists", 15066, 218)
            self.nodes[name] = SimNode(name, 0, 2000, (), borrowed=True, up=False)
            self._configure(name, settings.split(","))
            return ok()
        if found := _SET.fullmatch(directive):
            if found[1] not in self.nodes:
                return self._error(found[1], "Unknown node", 15062, 214)
            self._configure(found[1], [found[2].replace(" ", "")])
            return ok()
        if found := _DELETE.fullmatch(directive):
            return self._delete(found[1])
        return usage(["qmgr", "-c", directive])

    def _configure(self, name: str, settings: list[str]) -> None:
        node = self.nodes[name]
        values = dict(part.partition("=")[::2] for part in settings if part)
        node.tags |= values
        queue, cores = self.resource(values)
        if queue is not None:
            node.queues = (queue,)
        if "queue" in values:
            node.queues = (values["queue"],)
        if cores is not None:
            node.cores = int(cores)

    def _delete(self, name: str) -> Result:
        if name not in self.nodes:
            return self._error(name, "Unknown node", 15062, 214)
        node = self.nodes[name]
        if self.on(name):
            # Rejected, and yet: a node tied by `queue=` takes its queue's flag with it.
            if "queue" in node.tags:
                self.hasnodes[node.tags["queue"]] = False
            return self._error(name, "Cannot delete busy object", 15027, 179)
        del self.nodes[name]
        return ok()

    def _error(self, name: str, text: str, code: int, status: int) -> Result:
        return no(
            status,
            f"qmgr obj={name} svr=default: {text}\nqmgr: Error ({code}) returned from server",
        )
