"""Route netlink messages of many steps, sent many at a time, in the order of the steps."""

from __future__ import annotations

import errno
import os
import socket

from dvn.kernel import netlink as nl
from dvn.kernel.driver import StepError
from dvn.kernel.steps import AddLink, Step, Writes


class Batch:
    """Collects steps until something must be known of what they make, or `send` is called."""

    def __init__(self, sock: nl.Socket) -> None:
        self._socket = sock
        self._steps: list[Step] = []
        self._requests: list[list[nl.Request]] = []
        self._new: set[str] = set()
        self._indexes: dict[str, int] = {}
        self._sent = 0

    @property
    def writes(self) -> Writes:
        return Writes(netlink=self._sent)

    def add(self, step: Step, requests: list[nl.Request]) -> None:
        self._steps.append(step)
        self._requests.append(requests)
        if isinstance(step, AddLink):
            self._new.add(step.link.name)

    def send(self) -> None:
        """Raises StepError for the first step that was refused."""
        steps, requests = self._steps, self._requests
        self._steps, self._requests, self._new = [], [], set()
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
        if name in self._new:
            self.send()
        index = self._indexes.get(name)
        if index is None:
            try:
                index = self._indexes[name] = socket.if_nametoindex(name)
            except OSError:
                raise nl.NetlinkError(errno.ENODEV, f"interface {name} is gone") from None
        return index


def words(error: OSError) -> str:
    """A refusal in words for people."""
    said = error.strerror or os.strerror(error.errno or 0)
    if error.errno == errno.EPERM:
        said += "; run as root (CAP_NET_ADMIN)"
    if error.errno == errno.EOPNOTSUPP:
        said += "; the kernel lacks this (modules ip_gre, 8021q, bridge, nf_tables)"
    if error.filename:
        said = f"{error.filename}: {said}"
    return said
