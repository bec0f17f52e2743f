"""Route netlink messages of many steps, sent many at a time, in the order of the steps."""

from __future__ import annotations

import errno
import os
import secrets
import socket

from dvn.kernel import netlink as nl
from dvn.kernel import rtnl
from dvn.kernel.driver import StepError
from dvn.kernel.steps import AddLink, DelLink, RaiseLink, SetSysctl, Step, Writes


class Batch:
    """Collects steps until something must be known of what they make, or `send` is called.

    Steps that follow each other are put together where the kernel is faster so: IPv4 sysctls of a
    link that is new, and removals of links.
    """

    def __init__(self, sock: nl.Socket) -> None:
        self._socket = sock
        self._steps: list[Step] = []
        self._requests: list[list[nl.Request]] = []
        self._unsent: set[str] = set()  # links that the steps make
        self._fresh: set[str] = set()  # the same, and those that were made before in this plan
        self._sysctls: tuple[str, dict[str, str]] = ("", {})  # of one link
        self._removed: list[str] = []
        self._indexes: dict[str, int] = {}
        self._sent = 0

    @property
    def writes(self) -> Writes:
        return Writes(netlink=self._sent)

    def add(self, step: Step, requests: list[nl.Request]) -> None:
        self._close()
        if isinstance(step, RaiseLink) and step.name not in self._fresh:
            # Somebody else's: it is never set down again, so nothing before it may have failed.
            self.send()
        self._append(step, requests)
        if isinstance(step, AddLink):
            self._unsent.add(step.link.name)
            self._fresh.add(step.link.name)

    def add_removal(self, step: DelLink) -> None:
        if not self._removed:
            self._close()
        self._removed.append(step.link.name)
        self._append(step, [])

    def add_sysctl(self, step: SetSysctl) -> bool:
        """Whether it can go by netlink: by a file the kernel does more than to set the value, which
        a link without addresses and routes does not need."""
        if step.key.count("/") < 4:
            return False
        _net, version, _conf, link, key = step.key.split("/", 4)
        if link not in self._fresh or version != "ipv4" or key not in rtnl.CONF4:
            return False
        if self._sysctls[0] != link:
            self._close()
            self._sysctls = (link, {})
        self._sysctls[1][key] = step.value
        self._append(step, [])
        return True

    def _append(self, step: Step, requests: list[nl.Request]) -> None:
        self._steps.append(step)
        self._requests.append(requests)

    def _close(self) -> None:
        """The messages of what was put together; they are those of its last steps."""
        link, values = self._sysctls
        if values:
            self._requests[-1] = [rtnl.set_conf4(link, values)]
            self._sysctls = ("", {})
        names = self._removed
        if len(names) == 1:
            self._requests[-1] = [rtnl.delete(names[0])]
        elif names:
            moves = rtnl.delete_together(names, _unused_group())
            for place, move in enumerate(moves[: len(names)], len(self._requests) - len(names)):
                self._requests[place] = [move]
            self._requests[-1] += moves[len(names) :]
        self._removed = []

    def send_before(self, step: Step) -> None:
        """Send what must be done before a step that is not netlink; a sysctl of one of thousands of
        links waits for that link only."""
        if not isinstance(step, SetSysctl) or self._unsent & set(step.key.split("/")):
            self.send()

    def send(self) -> None:
        """Raises StepError for the first step that was refused."""
        self._close()
        steps, requests = self._steps, self._requests
        self._steps, self._requests, self._unsent = [], [], set()
        self._indexes.clear()
        try:
            self._socket.send_steps(requests)
        except OSError as error:
            number = error.step if isinstance(error, nl.NetlinkError) else 0
            raise StepError(words(error), steps[number]) from error
        self._sent += sum(map(len, requests))

    def index_of(self, name: str) -> int:
        """The index of a link, also of one that the steps make: they are sent first, since the
        kernel chooses it. Raises NetlinkError (ENODEV) if there is none."""
        if name in self._unsent:
            self.send()
        index = self._indexes.get(name)
        if index is None:
            try:
                index = self._indexes[name] = socket.if_nametoindex(name)
            except OSError:
                raise nl.NetlinkError(errno.ENODEV, f"interface {name} is gone") from None
        return index


def _unused_group() -> int:
    """A link group that nobody else uses: 30 random bits."""
    return 1 << 30 | secrets.randbits(30)


def words(error: OSError) -> str:
    """A refusal in words for people."""
    said = error.strerror or (os.strerror(error.errno) if error.errno else str(error))
    if error.errno == errno.EPERM:
        said += "; run as root (CAP_NET_ADMIN)"
    if error.errno == errno.EOPNOTSUPP:
        said += "; the kernel lacks this (modules ip_gre, 8021q, bridge, vrf, nf_tables)"
    if error.filename:
        said = f"{error.filename}: {said}"
    return said
