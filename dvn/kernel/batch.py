"""Route netlink messages of many steps, sent many at a time, in the order of the steps."""

from __future__ import annotations

import errno
import os
import secrets
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from dvn.kernel import netlink as nl
from dvn.kernel import rtnl
from dvn.kernel.driver import StepError
from dvn.kernel.steps import AddLink, DelLink, RaiseLink, SetSysctl, Step, Writes

_WORTH_A_THREAD = 32 << 10  # bytes: some hundred steps


class Batch:
    """Collects steps and sends them, many together, in their order.

    Steps that follow each other are put together where the kernel is faster so: IPv4 sysctls of a
    link that is new, and removals of links. While the kernel is busy with one datagram (it is, most
    of the time), the next is packed: a thread sends.
    """

    def __init__(self, sock: nl.Socket) -> None:
        self._socket = sock
        self._steps: list[Step] = []
        self._requests: list[list[nl.Request]] = []
        self._size = 0
        self._made: dict[str, Future[None] | None] = {}  # links of this plan; None: not sent yet
        self._sysctls: tuple[str, dict[str, str]] = ("", {})  # of one link
        self._removed: list[str] = []
        self._indexes: dict[str, int] = {}
        self._sent = 0
        self._refused = False
        self._sender: ThreadPoolExecutor | None = None
        self._helper: ThreadPoolExecutor | None = None
        self._under_way: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is sent any more, and what is under way is finished."""
        self._refused = True
        for thread in (self._sender, self._helper):
            if thread:
                thread.shutdown()

    @property
    def writes(self) -> Writes:
        return Writes(netlink=self._sent)

    def add(self, step: Step, requests: list[nl.Request]) -> None:
        self._close()
        if isinstance(step, RaiseLink) and step.name not in self._made:
            # Somebody else's: it is never set down again, so nothing before it may have failed.
            self.send()
        self._append(step, requests)
        if isinstance(step, AddLink):
            self._made[step.link.name] = None
        self._size += sum(len(request.body) for request in requests)
        if self._size > _WORTH_A_THREAD:
            self.start()

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
        if link not in self._made or version != "ipv4" or key not in rtnl.CONF4:
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
        if isinstance(step, SetSysctl):
            for name in step.key.split("/"):
                self._wait_for(name)
        else:
            self.send()

    def send(self) -> None:
        """Send what was collected, and wait for all that is under way.

        Raises StepError for the first step that was refused."""
        if self._under_way:
            self.start()
            under_way, self._under_way = self._under_way, []
            for each in under_way:
                each.result()
        else:
            self._send(*self._taken())
        self._made = dict.fromkeys(self._made, _DONE)

    def start(self) -> None:
        """Send what was collected while we go on; a refusal shows at the next wait."""
        steps, requests = self._taken()
        if not steps:
            return
        self._sender = self._sender or ThreadPoolExecutor(1, "netlink")
        sending = self._sender.submit(self._send, steps, requests)
        self._under_way.append(sending)
        for step in steps:
            if isinstance(step, AddLink):
                self._made[step.link.name] = sending

    def beside(self, work: Callable[[], Writes]) -> Future[Writes]:
        """Do something that is not route netlink while links are made."""
        self._helper = self._helper or ThreadPoolExecutor(1, "beside")
        return self._helper.submit(work)

    def _taken(self) -> tuple[list[Step], list[list[nl.Request]]]:
        self._close()
        taken = self._steps, self._requests
        self._steps, self._requests, self._size = [], [], 0
        self._indexes.clear()
        return taken

    def _send(self, steps: list[Step], requests: list[list[nl.Request]]) -> None:
        if self._refused:
            return
        try:
            self._socket.send_steps(requests)
        except OSError as error:
            self._refused = True
            number = error.step if isinstance(error, nl.NetlinkError) else 0
            raise StepError(words(error), steps[number]) from error
        self._sent += sum(map(len, requests))

    def _wait_for(self, name: str) -> None:
        """Until a link of this plan is there."""
        if name in self._made:
            if self._made[name] is None and self._under_way:
                self.start()
            made = self._made[name]
            if made is None:
                self.send()
            else:
                made.result()

    def index_of(self, name: str) -> int:
        """The index of a link, also of one that the steps make: they are sent first, since the
        kernel chooses it. Raises NetlinkError (ENODEV) if there is none."""
        self._wait_for(name)
        index = self._indexes.get(name)
        if index is None:
            try:
                index = self._indexes[name] = socket.if_nametoindex(name)
            except OSError:
                self.send()  # raises what it is not there for, if it is one of ours
                raise nl.NetlinkError(errno.ENODEV, f"interface {name} is gone") from None
        return index


_DONE: Future[None] = Future()
_DONE.set_result(None)


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
