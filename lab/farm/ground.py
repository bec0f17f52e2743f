"""A real batch system on lab hosts, to play the contract's stories on: what all of them share."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Self

from burst.lrms.base import Lrms, LrmsUnavailable
from burst.lrms.command import Result, Runner
from burst.model import Farm
from lab.farm.trees import Tree, TreeHost, tree_host
from lab.host import CommandTimeoutError, LabError
from lab.hosts import Lab

NETWORK = "10.77.0"
ADDRESSES = {"head": f"{NETWORK}.1", "node1": f"{NETWORK}.11", "cloud1": f"{NETWORK}.21"}
USER, UID = "alice", 2001
# A job ends when this file with its id behind it exists; not below /tmp or /var/tmp, because
# HTCondor gives each job its own.
END = "/srv/end"
WAIT = f"#!/bin/sh\nuntil [ -e {END}-$1 ]; do sleep 0.2; done\n"
WAIT_PATH = "/usr/local/bin/wait-for-end"


class RealGround(ABC):
    """Hosts head and node1 with their daemons; cloud1 comes and goes. A context manager.

    tests/burst/lrms/contract.py says what the methods promise.
    """

    tree: Tree
    local: str
    burst: str
    keeps_drain_reason = True
    patience_s = 60.0
    domain = ""  # of the hosts' canonical names

    def __init__(self) -> None:
        self.tree.build()
        self.lab = Lab()
        self.hosts: dict[str, TreeHost] = {}
        self._ports = 0
        self.addresses = dict(ADDRESSES)  # in the farm's network, by host name

    def __enter__(self) -> Self:
        try:
            switch = self.lab.host("switch")
            switch.run("ip", "link", "add", "switch0", "type", "bridge")
            switch.run("ip", "link", "set", "switch0", "up")
            for name in ("head", "node1"):
                self.add_host(name)
            self.start_head()
            self.start_site_node()
            self.lrms: Lrms = self.adapter()
            self.until(lambda farm: bool(farm.nodes), "the site's own node")
        except BaseException:
            self.lab.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.lab.close()

    # What differs

    @abstractmethod
    def adapter(self) -> Lrms:
        """A new adapter, its commands run on the head."""

    @abstractmethod
    def start_head(self) -> None: ...

    @abstractmethod
    def stop_head(self) -> None: ...

    @abstractmethod
    def start_site_node(self) -> None: ...

    @abstractmethod
    def start_machine(self, host: TreeHost, node: str, cores: int) -> None: ...

    @abstractmethod
    def submit(self, *, cores: int = 1, held: bool = False, tasks: int = 0) -> list[str]: ...

    @abstractmethod
    def cancel_all(self) -> None: ...

    # What does not

    @property
    def head(self) -> TreeHost:
        return self.hosts["head"]

    def add_host(self, name: str, address: str = "") -> TreeHost:
        """A host without daemons; every other host then knows its name."""
        if address:
            self.addresses[name] = address
        host = tree_host(self.lab, name, self.tree)
        self.hosts[name] = host
        switch = self.lab.hosts["switch"]
        self._ports += 1
        port = f"port{self._ports}"  # a host's name may be longer than an interface's
        self.lab.link(host.host, "eth0", switch, port)
        switch.run("ip", "link", "set", port, "master", "switch0", "up")
        host.host.run("ip", "address", "add", f"{self.addresses[name]}/24", "dev", "eth0")
        known = (
            (f"{n}{self.domain} {n}" if self.domain else n, at) for n, at in self.addresses.items()
        )
        text = "127.0.0.1 localhost\n" + "".join(f"{at} {n}\n" for n, at in known)
        for each in self.hosts.values():
            each.write("/etc/hosts", text)
        host.write("/etc/hostname", f"{name}\n")
        host.write("/etc/resolv.conf", "")  # else names are asked of servers out of reach
        host.write(WAIT_PATH, WAIT, 0o755)
        host.script(
            f"useradd -m -u {UID} {USER} 2>/dev/null || true\n"
            f"hostname {name}; mkdir -p /var/tmp; chmod 1777 /var/tmp /tmp"
        )
        return host

    def runner(self, user: str = "root", env: dict[str, str] | None = None) -> Runner:
        def run(argv: Sequence[str], given: str, timeout: timedelta) -> Result:
            limit = timeout.total_seconds()
            try:
                done = self.head.run(
                    *argv, user=user, env=env, input=given, timeout=limit, check=False
                )
            except CommandTimeoutError as error:  # as the runner of production says it
                raise LrmsUnavailable(f"{argv[0]}: no answer in {limit:g} s") from error
            return Result(done.returncode, done.stdout, done.stderr)

        return run

    def start_daemon(self, node: str, cores: int) -> None:
        host = self.hosts.get(node)
        if host is None or not host.alive:
            host = self.add_host(node)
        self.start_machine(host, node, cores)

    def until(self, seen: Callable[[Farm], bool], what: str) -> Farm:
        deadline = time.monotonic() + self.patience_s
        while True:
            with suppress(ConnectionError):
                farm = self.lrms.snapshot()
                if seen(farm):
                    return farm
            if time.monotonic() > deadline:
                raise LabError(
                    f"waited {self.patience_s:g} s in vain: {what}; {farm}\n{self.logs()}"
                )
            time.sleep(0.3)

    def end(self, job_id: str) -> None:
        for host in self.hosts.values():
            if host.alive:
                host.write(f"{END}-{job_id}", "")

    def power_off(self, node: str) -> None:
        host = self.hosts.pop(node)
        host.kill()
        self.lab.remove(host.host)

    def give_up_lost(self) -> None:
        """The real ones find out by themselves, within `patience_s`."""
        return

    def server(self, *, up: bool) -> None:
        if up:
            self.start_head()
        else:
            self.stop_head()

    def operator_drain(self, node: str) -> None:
        raise NotImplementedError

    def clear(self) -> None:
        """As it was at the start: no jobs, no borrowed node."""
        self.cancel_all()
        self.until(
            lambda farm: not any(job.state.value in ("pending", "held", "running", "completing")
                                 for job in farm.jobs),
            "all jobs are gone",
        )  # fmt: skip
        if "cloud1" in self.hosts:
            self.power_off("cloud1")
        self.forget("cloud1")
        self.until(lambda farm: all(n.name != "cloud1" for n in farm.nodes), "cloud1 is gone")

    @abstractmethod
    def forget(self, node: str) -> None:
        """Have the server forget a node that is off, by its own means."""

    @abstractmethod
    def logs(self) -> str:
        """The end of the daemons' logs, for an error."""
