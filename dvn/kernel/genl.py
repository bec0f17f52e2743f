"""Generic netlink by hand: families by name, their requests and dumps (linux/genetlink.h).

A message is a netlink message whose type is the family's number, which the kernel gives out when
the family's module is loaded, and whose body begins with a command and a version.
"""

from __future__ import annotations

import errno
import struct
import sys
from typing import Self

from dvn.kernel import netlink as nl
from dvn.kernel.netlink import Request, text

NETLINK_GENERIC = 16
_CONTROLLER, _GETFAMILY, _ATTR_ID, _ATTR_NAME = 16, 3, 1, 2
_HEADER = struct.Struct("=BBH")  # command, version, reserved


class Genl:
    """A generic netlink socket in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._socket = nl.Socket(NETLINK_GENERIC)
        self._families: dict[str, int | None] = {}

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def family(self, name: str) -> int | None:
        """The family's number; None if the kernel has no such family (no module, or none yet: the
        kernel loads the modules of most families when they are asked for)."""
        if name not in self._families:
            self._families[name] = self._look_up(name)
        return self._families[name]

    def send(self, family: str, command: int, body: bytes, what: str) -> None:
        """One request. Raises NetlinkError; EOPNOTSUPP without the family."""
        self._socket.send([Request(self._number(family, what), 0, _packed(command, body), what)])

    def dump(self, family: str, command: int, body: bytes, what: str) -> list[nl.Attributes]:
        """The attributes of each message of a dump. Raises NetlinkError."""
        number = self._number(family, what)
        found = self._socket.dump(number, _packed(command, body), what)
        return [nl.attributes(payload, _HEADER.size) for payload in found]

    def _number(self, family: str, what: str) -> int:
        number = self.family(family)
        if number is None:
            raise nl.NetlinkError(errno.EOPNOTSUPP, f"{what}: the kernel has no {family}")
        return number

    def _look_up(self, name: str) -> int | None:
        body = _packed(_GETFAMILY, text(_ATTR_NAME, name))
        try:
            answer = self._socket.ask(_CONTROLLER, body, f"look for {name}")
        except nl.NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            return None
        number = nl.attributes(answer, _HEADER.size).get(_ATTR_ID, b"")
        return int.from_bytes(number, sys.byteorder)


def _packed(command: int, body: bytes) -> bytes:
    return _HEADER.pack(command, 1, 0) + body
