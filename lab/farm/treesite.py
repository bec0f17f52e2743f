"""What the batch systems of a tree have in common: head, workers and a gateway with the commands.

The hosts have the files of the batch system's tree, but for the gateway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import ClassVar

from lab.farm import machine, nfs
from lab.farm.config import User, hosts_file
from lab.host import Host, LabError


class TreeSite:
    """addresses: of every host in the farm's network, by name. network: the prefix that may mount
    /home. An heir starts its daemons when its context is entered."""

    daemons: ClassVar[str]  # pkill(1)'s pattern of what holds /home open on a worker

    def __init__(
        self,
        head: Host,
        workers: Sequence[Host],
        gateway: Host,
        *,
        users: Sequence[User],
        addresses: Mapping[str, str],
        network: str = "10.9.0.0/24",
    ) -> None:
        self.head = head
        self.workers = tuple(workers)
        self.gateway = gateway
        self.users = tuple(users)
        self._addresses = dict(addresses)
        self._network = network

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """/home first: an NFS client without its server holds its host for half a minute."""
        for host in self.workers:
            if host.alive:
                with suppress(LabError):
                    host.script('pkill -9 "$1" || true; umount -f -l /home || true', self.daemons)
        if self.head.alive:
            with suppress(LabError):
                nfs.stop(self.head)

    def _lay_ground(self, names: Mapping[str, str]) -> None:
        """Users, names (/etc/hosts: address by name) and /home; the daemons come after it."""
        for host in (self.head, *self.workers):
            host.inside(lambda: machine.put_users(self.users))
            host.write("/etc/hosts", hosts_file(names))
        nfs.serve(self.head, network=self._network, users=self.users)
