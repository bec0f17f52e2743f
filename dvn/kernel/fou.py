"""UDP ports whose packets the kernel takes for GRE: foo over UDP (linux/fou.h, RFC 8086).

The kernel has one list of them for each network namespace, and notes no owner. A port is ours as
long as a tunnel of ours uses it.
"""

from __future__ import annotations

import errno
import shutil
import socket
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dvn.kernel import netlink as nl
from dvn.kernel import rtnl
from dvn.kernel.genl import Genl
from dvn.kernel.netlink import be16, u8
from dvn.kernel.rtnl import RawLink
from dvn.kernel.state import Gretap
from dvn.kernel.things import Sight, Thing

_FAMILY, _ADD, _DEL, _GET = "fou", 1, 2, 3
_PORT, _AF, _PROTOCOL, _TYPE = 1, 2, 3, 4
_DIRECT = 1
_AF_OF = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True)
class FouPort:
    """`shared`: a tunnel that is not the site's uses it too, so it stays when ours go."""

    port: int
    version: int
    shared: bool = field(default=False, compare=False)
    kind: Literal["fou"] = "fou"
    rank: int = -1

    @property
    def key(self) -> tuple[object, ...]:
        return (self.port, self.version)

    @property
    def link(self) -> None:
        return None

    def __str__(self) -> str:
        return f"UDP port {self.port} IPv{self.version}: GRE inside"


def load(six: bool) -> None:
    """Have the kernel know FOU, whose module it does not load by itself (no alias names it).

    Raises OSError in words where it cannot be had.
    """
    module = "fou6" if six else "fou"
    if Path(f"/sys/module/{module}").exists():
        return
    modprobe = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if modprobe is None:
        raise OSError(errno.EOPNOTSUPP, f"the module {module} is needed, and there is no modprobe")
    done = subprocess.run(
        [modprobe, module], capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode != 0:
        raise OSError(errno.EOPNOTSUPP, f"modprobe {module}: {done.stderr.strip()}")


class FouDriver:
    kinds = frozenset({"fou"})

    def observe(self, _socket: nl.Socket, sight: Sight) -> Iterable[Thing]:
        used = _used(sight.links, sight.own)
        if not used:
            return
        with Genl() as genl:
            if genl.family(_FAMILY) is None:
                return
            rows = genl.dump(_FAMILY, _GET, b"", "list FOU ports")
        for row in rows:
            port = int.from_bytes(row[_PORT], "big")
            version = 4 if row[_AF][0] == socket.AF_INET else 6
            ours, others = used.get((port, version), (False, False))
            if ours and row.get(_PROTOCOL) == bytes([socket.IPPROTO_GRE]):
                yield FouPort(port, version, shared=others)

    def put(self, _socket: nl.Socket, thing: Thing, _before: Thing | None) -> int:
        with Genl() as genl:
            try:
                genl.send(_FAMILY, _ADD, _body(thing), f"{thing}")
            except nl.NetlinkError as error:
                if error.errno not in (errno.EALREADY, errno.EADDRINUSE) or not _there(genl, thing):
                    raise
        return 1

    def remove(self, _socket: nl.Socket, thing: Thing) -> int:
        if isinstance(thing, FouPort) and thing.shared:
            return 0
        with Genl() as genl:
            try:
                genl.send(_FAMILY, _DEL, _body(thing), f"remove {thing}")
            except nl.NetlinkError as error:
                if error.errno != errno.EINVAL:  # fou_destroy's word for "not there"
                    raise
        return 1


def _body(thing: Thing) -> bytes:
    if not isinstance(thing, FouPort):
        raise TypeError(f"{thing!r} is no FOU port")
    return (
        be16(_PORT, thing.port)
        + u8(_AF, _AF_OF[thing.version])
        + u8(_PROTOCOL, socket.IPPROTO_GRE)
        + u8(_TYPE, _DIRECT)
    )


def _there(genl: Genl, thing: Thing) -> bool:
    """Whether the port is one already, for GRE: another site's or another program's."""
    return isinstance(thing, FouPort) and any(
        int.from_bytes(row[_PORT], "big") == thing.port
        and row[_AF][0] == _AF_OF[thing.version]
        and row.get(_PROTOCOL) == bytes([socket.IPPROTO_GRE])
        for row in genl.dump(_FAMILY, _GET, b"", "list FOU ports")
    )


def _used(
    links: Sequence[RawLink], own: frozenset[str]
) -> dict[tuple[int, int], tuple[bool, bool]]:
    """(port, IP version) -> (used by a tunnel of the site, by another)."""
    found: dict[tuple[int, int], tuple[bool, bool]] = {}
    for link in links:
        params = rtnl.params_of(link, str)
        if isinstance(params, Gretap) and params.fou:
            key = (params.fou.sport, 6 if params.kind.startswith("ip6") else 4)
            ours, others = found.get(key, (False, False))
            mine = link.name in own
            found[key] = (ours or mine, others or not mine)
    return found
