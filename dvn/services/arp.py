"""Ask a network whether anybody has an address, before it is offered (RFC 2131, 2.2; RFC 5227)."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address

ETH_P_ARP = 0x0806
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_REQUEST, _REPLY = 1, 2
WAIT_S = 0.4  # an answer on a segment takes milliseconds; clients wait for seconds


def probe_frame(mac: str, address: IPv4Address) -> bytes:
    """A question of nobody in particular: it must not change what others remember."""
    own = bytes.fromhex(mac.replace(":", ""))
    arp = _ARP.pack(1, 0x0800, 6, 4, _REQUEST, own, bytes(4), bytes(6), address.packed)
    return b"\xff" * 6 + own + struct.pack("!H", ETH_P_ARP) + arp


def owner(frame: bytes, address: IPv4Address) -> str | None:
    """The MAC address that says in this frame that it has the address."""
    if len(frame) < 14 + _ARP.size:
        return None
    *_kinds, sender, sender_address, _target, _target_address = _ARP.unpack_from(frame, 14)
    return bytes(sender).hex(":") if sender_address == address.packed else None


class Probe:
    """Calls `done` once: with the MAC address of who has `address`, or None. Raises OSError."""

    def __init__(
        self,
        bridge: str,
        mac: str,
        address: IPv4Address,
        client: str,
        done: Callable[[str | None], None],
    ) -> None:
        self._address, self._client, self._done = address, client, done
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            self._socket.setblocking(False)
            self._socket.bind((bridge, ETH_P_ARP))
            self._socket.send(probe_frame(mac, address))
        except OSError:
            self._socket.close()
            raise
        self._loop.add_reader(self._socket, self._read)
        self._timer = self._loop.call_later(WAIT_S, self._end, None)

    def _read(self) -> None:
        try:
            found = owner(self._socket.recv(2048), self._address)
        except OSError:
            return
        if found and found != self._client:
            self._end(found)

    def _end(self, found: str | None) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._done(found)
