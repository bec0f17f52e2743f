"""Grid Engine 8.1.9: qstat, qhost, qalter, qmod and qconf, as recorded."""

from __future__ import annotations

from xml.sax.saxutils import escape

from burst.lrms.command import Result
from lab.farm.standin.state import SimJob, SimNode, StandIn, no, ok, usage

_ROOT = "root@head"


class GridEngineStandIn(StandIn):
    """A qmaster with two queues: all.q for the site's node, burst.q with the host group @burst."""

    local = "all.q"
    burst = "burst.q"
    requeues_lost_jobs = False  # unless reschedule_unknown is set: a lost host's job needs qmod -rj

    def __init__(self) -> None:
        super().__init__()
        self.admin: set[str] = {"head", "node1"}
        self.group: list[str] = []  # @burst
        self.slots: dict[str, int] = {}  # of burst.q's instances; 2 unless set

    def job_id(self, job: SimJob) -> str:
        return str(job.number) if job.task is None else f"{job.number}.{job.task}"

    def register(self, name: str, cores: int, memory_mb: int = 2000) -> None:
        if name not in self.admin:
            raise AssertionError(f"execd of {name}: the host is not an administrative host")
        super().register(name, self.slots.get(name, 2), memory_mb)
        self.nodes[name].queues = (self.burst,) if name in self.group else ()

    def silence(self, command: str) -> Result:
        return no(
            1,
            f"error: commlib error: got select error (Connection refused)\n"
            f'ERROR: unable to send message to qmaster using port 6444 on host "head": {command}',
        )

    def answer(self, argv: list[str], given: str) -> Result:
        match argv:
            case ["qconf", "-sql"]:
                return ok(f"{self.local}\n{self.burst}\n")
            case ["qstat", "-u", "*", "-r", "-xml"]:
                return ok(self._qstat())
            case ["qhost", "-q", "-j", "-xml"]:
                return ok(self._qhost())
            case ["qalter", "-q", listed, names]:
                return self._qalter(listed.split(","), names.split(","))
            case ["qmod", "-d" | "-e" as option, instance]:
                return self._switch(instance, closed=option == "-d")
            case ["qmod", "-rj", name]:
                return self._reschedule(name)
            case ["qconf", "-sq", self.burst]:
                return ok(f"qname                 {self.burst}\nhostlist              @burst\n")
            case ["qconf", "-sq", self.local]:
                return ok(f"qname                 {self.local}\nhostlist              @allhosts\n")
            case ["qconf", *rest]:
                return self._qconf(rest)
        return usage(argv)

    def _qalter(self, listed: list[str], names: list[str]) -> Result:
        lines, status = [], 0
        served = {queue for node in self.nodes.values() for queue in node.queues}
        unknown = [name for name in listed if name.partition("@")[0] not in served]
        for name in names:
            if "." in name:
                text = "denied: the selected option works only on jobs and not on tasks"
                return Result(4, "", f"{text}\n")
            found = [job for job in self.find(name) if not job.ended]
            if not found:
                lines.append(f'denied: job "{name}" does not exist')
                status = 1
                continue
            if unknown:  # a queue without a single host is none
                text = f'job requests unknown queue "{unknown[0]}"'
                lines.append(f"Job was rejected because {text}")
                status = 1
                continue
            for job in found:  # a running job, too: "modified", and it stays where it is
                job.queues = list(listed)
            lines.append(f"modified hard queue list of job {name}")
        return Result(status, "\n".join(lines) + "\n", "")

    def accepts(self, node: SimNode, job: SimJob) -> bool:
        instances = {f"{queue}@{node.name}" for queue in node.queues}
        return bool((set(node.queues) | instances) & set(job.queues))

    def _switch(self, instance: str, *, closed: bool) -> Result:
        queue, _, name = instance.partition("@")
        node = self.nodes.get(name)
        if node is None or queue not in node.queues:
            return no(1, f'invalid queue "{instance}"')
        node.closed = "" if closed else None
        word = "disabled" if closed else "enabled"
        return ok(f'{_ROOT} changed state of "{instance}" ({word})\n')

    def _reschedule(self, name: str) -> Result:
        found = [job for job in self.find(name) if job.running]
        if not found:
            return no(1, f'invalid queue or job "{name}"')
        where = found[0].node
        for job in found:
            self.queue_again(job)
        return ok(f"Pushed rescheduling of job {name} on host {where}\n")

    def _qconf(self, argv: list[str]) -> Result:
        match argv:
            case ["-ah", name]:
                if name in self.admin:
                    return no(1, f'adminhost "{name}" already exists')
                self.admin.add(name)
                return ok(f"{name} added to administrative host list\n")
            case ["-aattr", "hostgroup", "hostlist", name, "@burst"]:
                if name in self.group:
                    return no(1, f'"{name}" already exists in "hostlist" of "@burst"')
                self.group.append(name)
                if name in self.nodes:
                    self.nodes[name].queues = (self.burst,)
                return ok(f'{_ROOT} modified "@burst" in host group list\n')
            case ["-dattr", "hostgroup", "hostlist", name, "@burst"]:
                if name not in self.group:
                    return no(1, f'"{name}" does not exist in "hostlist" of "@burst"')
                self.group.remove(name)
                if name in self.nodes:
                    self.nodes[name].queues = ()
                return ok(f'{_ROOT} modified "@burst" in host group list\n')
            case ["-mattr", "queue", "slots", count, instance]:
                name = instance.removeprefix(f"{self.burst}@")
                self.slots[name] = int(count)
                if name in self.nodes:
                    self.nodes[name].cores = int(count)
                return ok(f'{_ROOT} modified "{self.burst}" in cluster queue list\n')
            case ["-purge", "queue", "*", instance]:
                self.slots.pop(instance.removeprefix(f"{self.burst}@"), None)
                return ok(f'{_ROOT} modified "{self.burst}" in cluster queue list\n')
            case ["-ke", name]:
                if name in self.nodes:
                    self.nodes[name].up = False
                return ok(f"sent shutdown notification to  execd host {name}\n")
            case ["-de" | "-dh" as option, name]:
                return self._delete(name, execution=option == "-de")
        return usage(["qconf", *argv])

    def _delete(self, name: str, *, execution: bool) -> Result:
        if name not in self.admin:
            return no(1, f'can\'t resolve hostname "{name}"')
        if execution:
            if name in self.group:
                text = f'Host object "{name}" is still referenced in cluster queue "{self.burst}".'
                return no(1, text)
            if name not in self.nodes:
                return no(1, f'denied: execution host "{name}" does not exist')
            del self.nodes[name]
            return ok(f'{_ROOT} removed "{name}" from execution host list\n')
        self.admin.discard(name)
        return ok(f'{_ROOT} removed "{name}" from administrative host list\n')

    # Answers

    def _qstat(self) -> str:
        running = "".join(self._listed(job) for job in self.jobs if job.running)
        waiting = "".join(self._listed(job) for job in self.jobs if job.waiting)
        return (
            "<?xml version='1.0'?>\n<job_info  xmlns:xsd=\"http://arc.liv.ac.uk/\">\n"
            f"<queue_info>\n{running}</queue_info>\n<job_info>\n{waiting}</job_info>\n</job_info>\n"
        )

    def _listed(self, job: SimJob) -> str:
        state = "r" if job.running else "hqw" if job.held else "Rq" if job.starts else "qw"
        begun = job.started if job.running else None
        when = (
            f"<JAT_start_time>{begun:%Y-%m-%dT%H:%M:%S}</JAT_start_time>"
            if begun
            else f"<JB_submission_time>{job.submitted:%Y-%m-%dT%H:%M:%S}</JB_submission_time>"
        )
        where = ""
        if job.running:
            queue = (*self.nodes[job.node].queues, self.burst)[0]
            where = f"{queue}@{job.node}"
        queues = "".join(f"<hard_req_queue>{escape(q)}</hard_req_queue>" for q in job.queues)
        task = f"<tasks>{job.task}</tasks>" if job.task is not None else ""
        seconds = int(job.limit.total_seconds())
        return (
            f'<job_list state="{"running" if job.running else "pending"}">'
            f"<JB_job_number>{job.number}</JB_job_number>"
            f"<JAT_prio>{'0.00000' if job.held else '0.25005'}</JAT_prio>"
            f"<JB_name>hn</JB_name><JB_owner>{job.user}</JB_owner><state>{state}</state>{when}"
            f"<queue_name>{where}</queue_name><slots>{job.cores}</slots>{task}"
            f"<full_job_name>hn</full_job_name>"
            f'<hard_request name="h_rt" resource_contribution="0.000000">{seconds}</hard_request>'
            f"{queues}<binding>NONE</binding></job_list>\n"
        )

    def _qhost(self) -> str:
        hosts = "".join(self._host(node) for node in self.nodes.values())
        blank = "<hostvalue name='num_proc'>-</hostvalue>"
        return (
            "<?xml version='1.0'?>\n<qhost xmlns:xsd=\"http://arc.liv.ac.uk/\">\n"
            f"<host name='global'>{blank}</host>\n{hosts}</qhost>\n"
        )

    def _host(self, node: SimNode) -> str:
        jobs = self.on(node.name)
        load = "0.10" if node.up else "-"
        letters = ("" if node.up else "au") + ("d" if node.closed is not None else "")
        queues = "".join(
            f"<queue name='{queue}'><queuevalue qname='{queue}' name='slots_used'>"
            f"{self.used(node.name)}</queuevalue><queuevalue qname='{queue}' name='slots'>"
            f"{node.cores}</queuevalue><queuevalue qname='{queue}' name='state_string'>{letters}"
            "</queuevalue></queue>"
            for queue in node.queues
        )
        # A parallel job is listed once for its master and once for each slot.
        lines = "".join(
            f"<job name='{job.number}'><jobvalue jobid='{job.number}' name='job_state'>r</jobvalue>"
            "</job>"
            for job in jobs
            for _ in range(job.cores + (1 if job.cores > 1 else 0))
        )
        return (
            f"<host name='{node.name}'><hostvalue name='num_proc'>4</hostvalue>"
            f"<hostvalue name='load_avg'>{load}</hostvalue>"
            f"<hostvalue name='mem_total'>{node.memory_mb / 1024:.1f}G</hostvalue>"
            f"{queues}{lines}</host>\n"
        )
