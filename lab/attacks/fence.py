"""Knowing that the kernel has done with what was sent, however slow the machine is.

What a veth device is given waits in a queue of the CPU that sent it (enqueue_to_backlog in
net/core/dev.c), and so does what becomes of it at each hop. Usually the queue is worked off before
send() returns; on a busy machine the kernel leaves that to a thread (ksoftirqd), and frames wait,
in order, and are lost where more than 1000 do (net.core.netdev_max_backlog). So a run stays on one
CPU, sends little at a time, and then sends a frame of its own along a cable, again and again: when
it has come out once for each hop that a frame can make, the frames before it have made theirs.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ETH_P_FENCE = 0x88B5  # for experiments (IEEE 802, RFC 9542)
HOPS = 24  # twice the longest way there and back, of which some is asked for by ARP first
_STATISTICS = Path("/proc/net/softnet_stat")
_DROPPED, _CPU = 1, 12  # columns (softnet_seq_show in net/core/net-procfs.c)
_HEAD = b"\xff" * 6 + b"\x02\xd1\x00\x00\x00\xfe" + struct.pack("!H", ETH_P_FENCE)


class StuckError(Exception):
    """The kernel does not get on with what it was given."""


@dataclass
class Fence:
    """`sender` and `receiver` are the sockets at a cable's two ends."""

    sender: socket.socket
    receiver: socket.socket
    hops: int = HOPS
    limit_s: float = 60.0
    again_s: float = 2.0  # then the frame counts as lost
    number: int = 0

    def wait(self) -> None:
        """Until all that was sent on this CPU has come to rest. StuckError after `limit_s`."""
        for _ in range(self.hops):
            self._pass()

    def _pass(self) -> None:
        self.number += 1
        mark = struct.pack("!Q", self.number)
        end = time.monotonic() + self.limit_s
        while time.monotonic() < end:
            self.sender.send(_HEAD + mark.ljust(46, b"\0"))
            if self._came(mark):
                return
        raise StuckError(f"a frame takes more than {self.limit_s:g} s along a cable")

    def _came(self, mark: bytes) -> bool:
        poll = select.poll()
        poll.register(self.receiver, select.POLLIN)
        while poll.poll(self.again_s * 1000):
            if self.receiver.recv(64)[14:22] == mark:
                return True
        return False

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


def receiver(interface: str) -> socket.socket:
    """For a fence's frames alone."""
    protocol = socket.htons(ETH_P_FENCE)
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, protocol)
    sock.bind((interface, ETH_P_FENCE))
    return sock


@contextmanager
def one_cpu() -> Iterator[None]:
    """This thread stays on one CPU, and with it all that it sends."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def dropped() -> int:
    """Frames lost so far because a CPU's queue was full, on those that this thread may use."""
    cpus = os.sched_getaffinity(0)
    rows = [line.split() for line in _STATISTICS.read_text().splitlines()]
    return sum(int(row[_DROPPED], 16) for row in rows if int(row[_CPU], 16) in cpus)
