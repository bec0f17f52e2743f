"""A gateway host and a machine with its join bundle, on the real batch systems' whole sites.

The adapter's commands run on the gateway as the daemon's user, the bundle is carried out by the
program that comes in it. /home is each host's own here: not every kernel has an NFS server.
Root, debootstrap, a mirror.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from burst.join.bundle import Bundle
from burst.join.gridengine import GridEngineJoin
from burst.join.htcondor import HtCondorJoin
from burst.join.slurm import SlurmJoin
from burst.lrms.base import Announces, Lrms
from burst.lrms.command import Result
from burst.lrms.gridengine import GridEngine
from burst.lrms.htcondor import HtCondor
from burst.lrms.slurm import Slurm
from burst.model import Farm, JobState, NodeState
from gateway.batch import HtCondorConfig
from lab.farm import nfs
from lab.farm.config import User
from lab.host import PRIVATE, Host, wait_for
from lab.hosts import Lab
from lab.scenarios import farms, site, work
from tests.gateway.leases import lease

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

NODE, ADDRESS = "cms-aws-x1", "10.9.0.101"
SCRIPTS = "/home/alice/results"
TASKS = work.flash(8, size=3_000_000)  # more than the two workers do while the machine joins


def own_home(host: Host, users: Sequence[User]) -> None:
    for user in users:
        host.script(f"mkdir -p {SCRIPTS}; chown -R {user.uid} /home/{user.name} || true")


class Site:
    """head, wn1, wn2, gw1 and a new machine, on one switch; the machine has a second interface."""

    def __init__(self, lab: Lab, kind: farms.Kind) -> None:
        assert kind.tree is not None
        self.kind, self.lab = kind, lab
        self.hosts: dict[str, Host] = {}
        switch = lab.host("switch")
        switch.run("ip", "link", "add", "br0", "type", "bridge")
        switch.run("ip", "link", "set", "br0", "up")
        for number, (name, at) in enumerate({**farms.ADDRESSES, "new": ADDRESS}.items()):
            root = None if name == "gw1" else kind.tree.path
            host = lab.host(name, root=root, private=(*PRIVATE, "/usr/local/bin"))
            lab.link(host, "dvn0", switch, f"port{number}")
            switch.run("ip", "link", "set", f"port{number}", "master", "br0", "up")
            host.run("ip", "address", "add", f"{at}/24", "dev", "dvn0")
            self.hosts[name] = host
        new = self.hosts["new"]
        lab.link(new, "eth0", switch, "cloud")
        new.run("ip", "address", "add", "172.31.0.5/20", "dev", "eth0")
        new.run("ip", "route", "add", "default", "via", "172.31.0.1")

    def run(self, argv: Sequence[str], given: str, timeout: timedelta) -> Result:
        """On the gateway, as the daemon would."""
        done = self.hosts["gw1"].run(
            *argv, user=self.kind.batch.daemon_user, input=given, check=False
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def adapter(self) -> Lrms:
        match self.kind.batch.lrms["type"]:
            case "htcondor":
                return HtCondor(runner=self.run)
            case "gridengine":
                return GridEngine([self.kind.batch.partition], runner=self.run)
            case _:
                return Slurm(runner=self.run)

    def bundle(self, farm: Any) -> Bundle:
        settings: Mapping[str, Any] = self.kind.batch.lrms
        asked = replace(lease(), node=NODE, address=ADDRESS, cores=2, memory_mb=2048)
        common: dict[str, Any] = {"job_users": ("alice",), "hosts": {"head": site.HEAD}}
        gateway = self.hosts["gw1"]
        recipe: Any
        if settings["type"] == "htcondor":
            config = HtCondorConfig.model_validate(settings)
            argv = ("condor_token_create", "-identity", f"{config.identity}@{config.domain}")
            rights = (*("-authz", "ADVERTISE_STARTD"), *("-authz", "ADVERTISE_MASTER"))
            token = self.run((*argv, *rights, "-authz", "READ"), "", timedelta()).out
            recipe = HtCondorJoin(
                central_manager=config.central_manager, domain=config.domain,
                token=lambda: token, config=config.config, **common,
            )  # fmt: skip
        elif settings["type"] == "gridengine":
            recipe = GridEngineJoin(
                qmaster=settings["qmaster"], qmaster_address=settings["qmaster_address"], **common
            )
            told = self.run((settings["name_command"], "add", NODE, ADDRESS), "", timedelta())
            assert told.status == 0, told.said
        else:
            gateway.write(site.MUNGE_KEY, farm.munge_key)
            recipe = SlurmJoin(
                munge_key=Path(site.MUNGE_KEY), slurm_conf=Path(settings["slurm_conf"]), **common
            )
        made: Bundle = gateway.inside(lambda: recipe.bundle(asked, (self.kind.batch.partition,)))
        return made

    def join(self, bundle: Bundle) -> None:
        new, content = self.hosts["new"], bundle.to_json()
        told = {**content, "session": "s", "time": time.time()}
        new.write("/run/dvn-join/bundle.json", json.dumps(told))
        new.write("/run/apply.py", content["program"])
        new.run("python3", "/run/apply.py", "/run/dvn-join", "", "/var/log/dvn-join.log",
                timeout=300)  # fmt: skip

    def submit(self) -> list[str]:
        for name in ("head", "wn1", "wn2", "new"):
            own_home(self.hosts[name], [User("alice", 2001)])
            for task in TASKS:
                text = work.script(task, dialect=self.kind.dialect)
                self.hosts[name].write(f"{SCRIPTS}/{task.index:03d}.sh", text)
        loop = f'cd "$1"; for job in *.sh; do {self.kind.submit}; done'
        said = self.hosts["head"].script(loop, SCRIPTS, "/home/alice", user="alice")
        return farms.ids_of(said.stdout)


@pytest.fixture(params=sorted(set(farms.KINDS) - {farms.SLURM.name}))
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(nfs, "serve", lambda head, *, network, users: own_home(head, users))
    monkeypatch.setattr(nfs, "mount_command", lambda server, own: ("true",))
    monkeypatch.setattr(nfs, "stop", lambda head: None)
    kind = farms.KINDS[request.param]
    assert kind.tree is not None
    kind.tree.build()
    with Lab() as lab:
        yield Site(lab, kind)


def test_a_machine_joins_by_its_bundle_runs_routed_jobs_and_leaves(place: Site) -> None:
    with ExitStack() as stack:
        farm = stack.enter_context(place.kind.farm(place.hosts))
        own = farm.known_nodes()
        lrms = place.adapter()
        partition = place.kind.batch.partition
        ids = place.submit()
        bundle = place.bundle(farm)
        if isinstance(lrms, Announces):
            lrms.announce(NODE, address=ADDRESS, cores=2, partition=partition)
        place.join(bundle)

        def seen(what: str, condition: Any) -> Farm:
            def look() -> Farm | None:
                now = lrms.snapshot()
                return now if condition(now) else None

            found = wait_for(look, 180, what=what, interval=1)
            assert isinstance(found, Farm)
            return found

        idle = (NodeState.IDLE, NodeState.MIXED, NodeState.ALLOCATED)
        shown = seen("the node", lambda f: any(n.name == NODE and n.state in idle for n in f.nodes))
        pending = [job.id for job in shown.jobs if job.state is JobState.PENDING]
        queued = pending[-2:]  # the last in the line: no worker of the site takes them meanwhile
        assert len(pending) > len(queued), "the site's own nodes are full"
        for job in queued:
            lrms.route(job, partition)
        wait_for(
            lambda: {job.id for job in farm.finished()} >= set(ids), 300, what="the jobs' end",
            interval=1,
        )  # fmt: skip
        ended = {job.id: job for job in farm.finished()}
        assert {job.state for job in ended.values()} == {"COMPLETED"}
        assert {ended[job].nodes for job in queued} == {NODE}, "the same ids, done there"

        lrms.drain(NODE, "idle")
        closed = (NodeState.DRAINED, NodeState.DOWN)
        seen("drained", lambda f: all(n.state in closed for n in f.nodes if n.name == NODE))
        lrms.snapshot()
        wait_for(lambda: _removed(lrms, farm, own), 120, what="nothing left", interval=2)


def _removed(lrms: Lrms, farm: Any, own: set[str]) -> bool:
    lrms.remove(NODE)
    left: set[str] = farm.known_nodes()
    return left == own
