"""A whole world in one file: a farm, a cloud and a kernel, small and honest.

It lives outside the daemon's process, so that a daemon can be killed while jobs run on and
machines boot on. Time passes when somebody looks.
"""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from burst.lrms.base import LrmsError, LrmsUnavailable
from burst.model import (
    Farm,
    Job,
    JobState,
    Lease,
    Machine,
    MachineState,
    Node,
    NodeState,
    Offer,
)
from burst.providers.base import LaunchRequest, Throttled, Unreachable
from dvn.agent_client import AgentUnavailable
from dvn.spec import Site
from dvn.status import Applied, Probe, TunnelStatus

TYPE = "c5.large"
CORES = 2


def user_data(lease: Lease) -> str:
    return json.dumps({"node": lease.node, "address": lease.address, "key": lease.gre_key})


class World:
    """`with world.state() as s` is one look: exclusive, time has passed, changes are kept."""

    def __init__(self, path: Path, *, boot: float = 0.3, join: float = 0.2) -> None:
        self._path = path
        self._boot = boot
        self._join = join

    def begin(
        self,
        *,
        local_nodes: int,
        jobs: int,
        seconds: float,
        limit: float = 1800,
        price: str = "0.10",
    ) -> None:
        """`seconds` is what a job takes, `limit` what it may; `price` that of a machine's hour."""
        now = datetime.now(UTC).timestamp()
        state: dict[str, Any] = {
            "nodes": {
                f"wn{n}": {"cores": 1, "partition": "batch", "address": "", "drained": ""}
                for n in range(1, local_nodes + 1)
            },
            "jobs": {
                str(100 + n): {
                    "seconds": seconds,
                    "limit": limit,
                    "partitions": ["batch"],
                    "submitted": now - 60,
                    "started": 0.0,
                    "ended": 0.0,
                    "node": "",
                    "runs": 0,
                }
                for n in range(jobs)
            },
            "machines": {},
            "tunnels": [],
            "lost_jobs": [],
            "launches": 0,
            "price": price,
            "faults": {},
            "asked": {},
        }
        self._path.write_text(json.dumps(state))

    def bill(self) -> Decimal:
        """What this cloud charges until now: by the second, and at least a minute for each."""
        with self.state() as s:
            now = datetime.now(UTC).timestamp()
            times = [m.get("ended", now) - m["launched"] for m in s["machines"].values()]
            hours = sum((Decimal(max(time, 60)) / 3600 for time in times), Decimal(0))
            return Decimal(s["price"]) * hours

    @contextmanager
    def state(self) -> Iterator[dict[str, Any]]:
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = json.loads(self._path.read_text())
            self._pass_time(state, datetime.now(UTC).timestamp())
            try:
                yield state
            finally:  # a refused call was made all the same
                draft = self._path.with_suffix(".draft")
                draft.write_text(json.dumps(state))
                draft.rename(self._path)  # whole: a kill must not tear the world

    def _pass_time(self, s: dict[str, Any], now: float) -> None:
        for number, (name, machine) in enumerate(s["machines"].items(), start=1):
            told = json.loads(machine["user_data"])
            up_at = machine["launched"] + self._boot
            if machine["state"] == "pending" and now >= up_at:
                machine["state"] = "running"
                machine["address"] = f"203.0.113.{number}"
            tunnel = [machine["address"], told["key"]]
            if machine["state"] == "running" and tunnel in s["tunnels"]:
                machine["met"] = machine["met"] or now
                if not machine["registered"] and now >= machine["met"] + self._join:
                    machine["registered"] = True
                    s["nodes"][told["node"]] = {
                        "cores": CORES,
                        "partition": "burst-cms",
                        "address": told["address"],
                        "drained": "",
                        "machine": name,
                    }
        for node_name, node in s["nodes"].items():
            self._run_jobs(s, node_name, node, now)

    def _run_jobs(self, s: dict[str, Any], name: str, node: dict[str, Any], now: float) -> None:
        machine = s["machines"].get(node.get("machine"))
        running = [j for j in s["jobs"].values() if j["node"] == name and not j["ended"]]
        if machine is not None and machine["state"] != "running":
            for job in running:  # lost with its machine: what must never happen here
                s["lost_jobs"].append(name)
                job["node"], job["started"] = "", 0.0
            return
        for job in running:
            if now >= job["started"] + job["seconds"]:
                job["ended"] = job["started"] + job["seconds"]
                job["runs"] += 1
        busy = sum(not j["ended"] for j in running)
        for job in s["jobs"].values():
            if busy >= node["cores"] or node["drained"]:
                break
            if not job["started"] and node["partition"] in job["partitions"]:
                job["started"], job["node"] = now, name
                busy += 1


class FakeLrms:
    def __init__(self, world: World) -> None:
        self._world = world

    def snapshot(self) -> Farm:
        with self._world.state() as s:
            _count(s, "lrms")
            if s["faults"].get("lrms"):
                raise LrmsUnavailable("slurmctld did not answer within 9 s")
            return Farm(
                taken=datetime.now(UTC),
                jobs=tuple(_job(name, job) for name, job in s["jobs"].items()),
                nodes=tuple(_node(s, name, node) for name, node in s["nodes"].items()),
            )

    def admit(self, node: Node) -> None:
        with self._world.state() as s:
            if node.name in s["nodes"]:
                s["nodes"][node.name]["drained"] = ""

    def route(self, job_id: str, partition: str) -> None:
        with self._world.state() as s:
            job = s["jobs"][job_id]
            if job["started"]:
                raise LrmsError(f"job {job_id} runs already")
            if partition not in job["partitions"]:
                job["partitions"].append(partition)

    def unroute(self, job_id: str, partition: str) -> None:
        with self._world.state() as s:
            job = s["jobs"][job_id]
            if partition in job["partitions"]:
                job["partitions"].remove(partition)

    def drain(self, node: str, reason: str) -> None:
        with self._world.state() as s:
            if node in s["nodes"]:
                s["nodes"][node]["drained"] = reason

    def remove(self, node: str) -> None:
        with self._world.state() as s:
            if any(j["node"] == node and not j["ended"] for j in s["jobs"].values()):
                raise LrmsError(f"node {node} has jobs")
            s["nodes"].pop(node, None)


class FakeProvider:
    def __init__(self, world: World, name: str = "aws") -> None:
        self._world = world
        self.name = name

    def offers(self) -> Sequence[Offer]:
        with self._world.state() as s:
            price = Decimal(s["price"])
        return [Offer(self.name, TYPE, "zone-a", CORES, 4096, price)]

    def launch(self, request: LaunchRequest) -> Machine:
        with self._world.state() as s:
            if s["faults"].get("throttle"):
                raise Throttled("RequestLimitExceeded")
            for name, machine in s["machines"].items():
                if machine["lease"] == request.lease_id:
                    return self._machine(name, machine)
            s["launches"] += 1
            name = f"i-{s['launches']:04d}"
            s["machines"][name] = {
                "lease": request.lease_id,
                "state": "pending",
                "launched": datetime.now(UTC).timestamp(),
                "address": "",
                "user_data": request.user_data,
                "met": 0.0,
                "registered": False,
            }
            made = self._machine(name, s["machines"][name])
            lost = s["faults"].get("lost_answer")
        if lost:
            threading.Event().wait(60)  # its answer never comes
        return made

    def machines(self) -> Sequence[Machine]:
        with self._world.state() as s:
            _count(s, self.name)
            if s["faults"].get("provider"):
                raise Unreachable("could not connect to the endpoint")
            return [self._machine(name, machine) for name, machine in s["machines"].items()]

    def terminate(self, machine_ids: Sequence[str]) -> None:
        with self._world.state() as s:
            for name in machine_ids:
                if name in s["machines"]:
                    s["machines"][name]["state"] = "terminated"
                    s["machines"][name].setdefault("ended", datetime.now(UTC).timestamp())

    def _machine(self, name: str, machine: Mapping[str, Any]) -> Machine:
        state = MachineState(machine["state"])
        return Machine(
            id=name,
            provider=self.name,
            lease_id=machine["lease"],
            state=state,
            type=TYPE,
            zone="zone-a",
            private_address="10.0.0.1",
            public_address=machine["address"] if state is MachineState.RUNNING else "",
            launched=_instant(machine["launched"]),
        )


class FakeAgent:
    def __init__(self, world: World) -> None:
        self._world = world
        self._wanted: dict[str, list[Any]] = {}

    def apply(self, site: Site) -> Applied:
        with self._world.state() as s:
            self._check(s)
            self._wanted = {
                f"{tunnel.tenant}/{tunnel.name}": [str(tunnel.remote), tunnel.key]
                for tunnel in site.tunnels()
            }
            tunnels = list(self._wanted.values())
            steps = ("tunnels",) if tunnels != s["tunnels"] else ()
            s["tunnels"] = tunnels
            return Applied(steps, len(steps), 0, 0, True)

    def drift(self) -> dict[str, Any]:
        return {"watching": True, "error": "", "repairs": [], "foreign": [], "held": {}}

    def tunnels(self, site_name: str | None = None) -> Mapping[str, TunnelStatus]:
        with self._world.state() as s:
            self._check(s)
            return {
                name: TunnelStatus(
                    name=name.replace("/", "-"),
                    tenant=name.partition("/")[0],
                    tunnel=name.partition("/")[2],
                    local="198.51.100.1",
                    remote=remote,
                    key=key,
                    up=True,
                    rx_packets=0,
                    rx_bytes=0,
                    tx_packets=0,
                    tx_bytes=0,
                )
                for name, (remote, key) in self._wanted.items()
            }

    def probe(self, address: str, network: str, count: int = 1, timeout: float = 1.0) -> Probe:
        with self._world.state() as s:
            self._check(s)
            there = any(
                machine["state"] == "running"
                and json.loads(machine["user_data"])["address"] == address
                and [machine["address"], json.loads(machine["user_data"])["key"]] in s["tunnels"]
                for machine in s["machines"].values()
            )
            rtt = 3.0 if there and not s["faults"].get("tunnel") else None
            detail = "" if rtt else "no answer"
            return Probe(address, network, count, count if rtt else 0, rtt, detail)

    def _check(self, s: dict[str, Any]) -> None:
        _count(s, "agent")
        if s["faults"].get("agent"):
            raise AgentUnavailable("/run/dvn/agent.sock: connection refused")


def _count(s: dict[str, Any], name: str) -> None:
    s["asked"][name] = s["asked"].get(name, 0) + 1


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _job(name: str, job: Mapping[str, Any]) -> Job:
    state = JobState.DONE if job["ended"] else JobState.RUNNING
    return Job(
        id=name,
        user="alice",
        account="",
        state=state if job["started"] else JobState.PENDING,
        partitions=tuple(job["partitions"]),
        cores=1,
        nodes=1,
        memory_mb=100,
        time_limit=timedelta(seconds=job["limit"]),
        submitted=_instant(job["submitted"]),
        started=_instant(job["started"]) if job["started"] else None,
        ended=_instant(job["ended"]) if job["ended"] else None,
        node_names=(job["node"],) if job["node"] else (),
        reason="" if job["started"] else "Resources",
    )


def _node(s: Mapping[str, Any], name: str, node: Mapping[str, Any]) -> Node:
    machine = s["machines"].get(node.get("machine"))
    busy = sum(j["node"] == name and not j["ended"] for j in s["jobs"].values())
    if machine is not None and machine["state"] != "running":
        state = NodeState.DOWN
    elif node["drained"]:
        state = NodeState.DRAINING if busy else NodeState.DRAINED
    elif busy == node["cores"]:
        state = NodeState.ALLOCATED
    else:
        state = NodeState.MIXED if busy else NodeState.IDLE
    return Node(
        name=name,
        state=state,
        cores=node["cores"],
        allocated_cores=busy,
        memory_mb=4096 if machine else 1024,
        address=node["address"],
        features=("burst-cms",) if machine else (),
        partitions=(node["partition"],),
        reason=node["drained"],
    )
