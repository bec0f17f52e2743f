"""The way by which the operator came: a change that cuts it is undone before anybody notices."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from dvn.change import packets
from dvn.kernel import netlink as nl

RTM_GETROUTE = 26
RTA_DST, RTA_OIF, RTA_GATEWAY = 1, 4, 5
_RTMSG = struct.Struct("=BBBBBBBBI")
_RTN_UNICAST, _RTN_LOCAL = 1, 2

ECHO_TIMEOUT_S = 1.0
MISSES = 3  # echo requests in a row, each with its own repetitions


def operator_address(
    environment: Mapping[str, str], ancestors: Iterator[Mapping[str, str]] | None = None
) -> str | None:
    """The client's address of the ssh session this runs in; None if it runs in none.

    sudo takes SSH_CONNECTION from the environment, so that those of the parents are looked at too.
    """
    for each in (environment, *(ancestors or ())):
        connection: str = each.get("SSH_CONNECTION", "")
        if connection.split():
            return connection.split()[0]
    return None


def ancestors(pid: int | None = None) -> Iterator[Mapping[str, str]]:
    """The environments of this process's parents, as far as they may be read."""
    process = os.getpid() if pid is None else pid
    while process > 1:
        try:
            stat = Path(f"/proc/{process}/stat").read_text()
            raw = Path(f"/proc/{process}/environ").read_bytes()
        except OSError:
            return
        pairs = (item.partition(b"=") for item in raw.split(b"\0") if b"=" in item)
        yield {name.decode(errors="replace"): v.decode(errors="replace") for name, _, v in pairs}
        process = int(stat.rpartition(")")[2].split()[1])


@dataclass(frozen=True)
class Route:
    """Where packets to an address leave; `link` "" if nowhere."""

    link: str
    gateway: str = ""


def route_to(address: str) -> Route:
    """What the kernel would do with a packet to `address` (rtnetlink(7), RTM_GETROUTE)."""
    target = ip_address(address.partition("%")[0])
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    header = _RTMSG.pack(family, len(target.packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    body = header + nl.attribute(RTA_DST, target.packed)
    sock = nl.Socket()
    try:
        payload = sock.ask(RTM_GETROUTE, body, f"route to {address}")
    except nl.NetlinkError as error:
        unreachable = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)
        if error.errno in unreachable:
            return Route("")
        raise
    finally:
        sock.close()
    kind = _RTMSG.unpack_from(payload)[7]
    found = nl.attributes(payload, _RTMSG.size)
    if kind not in (_RTN_UNICAST, _RTN_LOCAL) or RTA_OIF not in found:
        return Route("")
    link = socket.if_indextoname(int.from_bytes(found[RTA_OIF], sys.byteorder))
    gateway = str(ip_address(found[RTA_GATEWAY])) if RTA_GATEWAY in found else ""
    return Route(link, gateway)


def answers(address: str) -> bool:
    return bool(packets.echo([address], ECHO_TIMEOUT_S))


class OperatorWatch:
    """Looks, again and again, whether the operator can still be reached.

    An operator who answered echo requests before must go on answering. One who did not (a firewall
    in front of a workstation) is known by the route only: it must lead where it led.
    """

    def __init__(
        self,
        address: str,
        *,
        answers: Callable[[str], bool] = answers,
        route_to: Callable[[str], Route] = route_to,
    ) -> None:
        self.address = address
        self._answers = answers
        self._route_to = route_to
        self._route = route_to(address)
        self._answered = answers(address)
        self._misses = 0

    @property
    def reachable(self) -> bool:
        """Whether there was a way when the watch began."""
        return bool(self._route.link)

    def lost(self) -> str:
        """Why the operator's way counts as lost; "" while it does not. One look."""
        if not self.reachable:
            return ""
        route = self._route_to(self.address)
        if self._answered:
            self._misses = 0 if self._answers(self.address) else self._misses + 1
            if self._misses < MISSES:
                return ""
            return f"the operator at {self.address} answers no more"
        if not route.link:
            return f"there is no route to the operator at {self.address} any more"
        if route != self._route:
            return f"the route to the operator at {self.address} leads elsewhere"
        return ""
