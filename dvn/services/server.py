"""The process that serves all networks of a site: `python -m dvn.services.server DIRECTORY LEASES`.

One small process instead of a dnsmasq for each network. It starts as root, takes what needs root,
and gives it up (privileges.py). What to serve stands in DIRECTORY/config.json. On the socket
DIRECTORY/control, which is root's, it answers three words: `tell` what it read and what it cannot
serve, `load` the file again, `end`. A bridge that is made again is noticed and served again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import logging
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from ipaddress import IPv6Address
from pathlib import Path

from dvn.ipam import AddressBook, Lease
from dvn.kernel import netlink as nl
from dvn.services import dhcp4, dhcp6, journal
from dvn.services.advertiser import Advertiser
from dvn.services.arp import Probe
from dvn.services.config import CONFIG, CONTROL, LOCK, Service, digest, from_json
from dvn.services.journal import Journal
from dvn.services.privileges import account, give_up
from dvn.services.resolver import Upstream
from dvn.services.room import Allowance, Ears, Room, fixed6, gateway4

log = logging.getLogger("dvn.services")

_RTMGRP_LINK, _RTM_NEWLINK, _RTM_DELLINK, _IFLA_IFNAME = 1, 16, 17, 3
_RTM_GETNEIGH, _NDA_DST, _NDA_LLADDR, _NDA_IFINDEX = 30, 1, 2, 8
_FILES = 1 << 18  # descriptors: six for each network
_TRIES = 3  # addresses in use that are stepped over for one client


class Server(Ears):
    """Serves what the configuration says. What it opens as root it opens when it is made."""

    def __init__(self, directory: Path, leases: int) -> None:
        self._directory = directory
        self._journal = Journal(leases)
        self._advertiser = Advertiser()
        self._frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._links = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._links.bind((0, _RTMGRP_LINK))
        self._links.setblocking(False)
        self._netlink = nl.Socket()
        self._control = _listen(directory / CONTROL)
        self._ended = asyncio.Event()
        self._upstream = Upstream()
        self._services: dict[str, Service] = {}
        self._rooms: dict[str, Room] = {}
        self._past: dict[str, dict[str, Lease]] = {}
        self._failed: dict[str, str] = {}
        self._digest = ""
        self._rows: list[tuple[str, Lease]] = []
        self._sends: list[Callable[[], None]] = []

    async def run(self) -> None:
        """Until it is told to end, or SIGTERM."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        self._past = self._journal.read()
        loop.add_reader(self._links, self._link_events)
        self._advertiser.listen()
        self.load()
        control = await asyncio.start_unix_server(self._told, sock=self._control)
        async with control:
            await self._ended.wait()
        self._flush()

    async def _told(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One word of who started us."""
        word = (await reader.readline()).strip()
        if word == b"load":
            self.load()
        elif word == b"end":
            for name in tuple(self._rooms):
                self._close(name, farewell=True)
        writer.write(json.dumps({"digest": self._digest, "failed": self._failed}).encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()
        if word == b"end":
            self._ended.set()

    def load(self) -> None:
        """Read the configuration and do what is new in it."""
        try:
            text = (self._directory / CONFIG).read_text()
            wanted = {service.network: service for service in from_json(text)}
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("%s: %s; what was served is served on", self._directory / CONFIG, error)
            return
        for name in tuple(self._services):
            if wanted.get(name) != self._services[name]:
                self._close(name, farewell=name not in wanted)
                del self._services[name]
        for name, service in wanted.items():
            if name not in self._services or name in self._failed:
                self._services[name] = service
                self._open(service)
        self._digest = digest(text)

    def _open(self, service: Service) -> None:
        name = service.network
        self._failed.pop(name, None)
        room = None
        try:
            index = socket.if_nametoindex(service.bridge)
            room = Room(service, index, self._book(service), self, self._upstream, time.time)
            room.open()
        except OSError as error:
            why = error.strerror or str(error)
            self._failed[name] = f"{service.bridge}: {why}"
            if room:
                self._remember(room)
            return
        self._rooms[name] = room
        if service.six:
            self._advertiser.add(index, service)

    def _book(self, service: Service) -> AddressBook:
        families = service.families()
        return AddressBook(
            [family.span for family in families],
            reserved=[address for family in families for address in family.reserved],
            fixed=[pair for family in families for pair in family.fixed],
            leases=self._past.pop(service.network, {}).values(),
        )

    def _close(self, name: str, *, farewell: bool) -> None:
        room = self._rooms.pop(name, None)
        self._failed.pop(name, None)
        if room is None:
            return
        self._advertiser.remove(room.index, farewell=farewell)
        room.close()
        self._remember(room)

    def _remember(self, room: Room) -> None:
        """Keep the leases of a network that is not served now."""
        self._past[room.service.network] = {str(lease.address): lease for lease in room.book}

    def _link_events(self) -> None:
        """A bridge that went or came: its sockets died with it."""
        try:
            names = set(_names(self._links.recv(1 << 18)))
        except BlockingIOError:
            return
        except OSError:  # events were lost: look at all
            names = {service.bridge for service in self._services.values()}
        for name, service in self._services.items():
            if service.bridge not in names:
                continue
            room = self._rooms.get(name)
            index = _index(service.bridge)
            if room and room.index == index:
                continue
            if room:
                self._close(name, farewell=False)
            self._open(service)

    # -- messages

    def heard4(self, room: Room, message: dhcp4.Message) -> None:
        if room.dhcp4 is None:
            return
        now = time.time()
        if message.kind in (dhcp4.DECLINE, dhcp4.RELEASE):
            over = room.dhcp4.given_back(message, now)
            self._promise(room, [over] if over else [], _nothing)
            return
        self._answer4(room, message, _TRIES)

    def _answer4(self, room: Room, message: dhcp4.Message, tries: int) -> None:
        server = room.dhcp4
        now = time.time()
        answer = server.answer(message, now) if server else None
        if server is None or answer is None:
            return
        address = answer.probe
        frame = dhcp4.frame(answer, room.service.mac, gateway4(room.service))
        if address is None or tries == 0:
            leases = [answer.lease] if answer.lease else []
            self._promise(room, leases, lambda: self._put(room, frame))
            return

        def heard(found: str | None) -> None:
            if found is None:
                self._put(room, frame)
                return
            log.warning("%s: %s is %s's, not given", room.service.network, address, found)
            lease = server.in_use(message, address, time.time())
            self._promise(room, [lease], lambda: self._answer4(room, message, tries - 1))

        try:
            Probe(room.service.bridge, room.service.mac, address, message.mac, heard)
        except OSError as error:
            log.warning("%s: %s", room.service.network, error.strerror)

    def _put(self, room: Room, frame: bytes) -> None:
        try:
            self._frames.sendto(frame, (room.service.bridge, 0))
        except OSError as error:  # the bridge is down or gone: the client asks again
            log.info("%s: %s", room.service.network, error.strerror)

    def heard6(self, room: Room, message: dhcp6.Message, source: tuple[str, int, int, int]) -> None:
        if room.dhcp6 is None:
            return
        address = IPv6Address(source[0].partition("%")[0])
        mac = dhcp6.mac_of(message, address)
        fixed = fixed6(room.service)
        if fixed and mac not in fixed:
            mac = self._neighbour(room.index, address) or mac
        answer = room.dhcp6.answer(message, mac, time.time())
        if answer:
            data = answer.data
            self._promise(room, list(answer.leases), lambda: _try(room.send6, data, source))

    def _neighbour(self, index: int, address: IPv6Address) -> str:
        """The MAC address the kernel knows of a link-local address: clients solicit a router
        before they ask for an address."""
        body = struct.pack("=BxxxiHBB", socket.AF_INET6, 0, 0, 0, 0) + nl.u32(_NDA_IFINDEX, index)
        try:
            found = self._netlink.dump(_RTM_GETNEIGH, body, "neighbours")
        except OSError:
            return ""
        for payload in found:
            attrs = nl.attributes(payload, 12)
            if attrs.get(_NDA_DST) == address.packed:
                return attrs.get(_NDA_LLADDR, b"").hex(":")
        return ""

    # -- leases before answers

    def _promise(self, room: Room, leases: list[Lease], send: Callable[[], None]) -> None:
        """Write the leases down, then send; many clients at once share one write."""
        now = time.time()
        for lease in leases:
            if lease.until > now and lease.client:
                room.book.bind(lease, now)
            self._rows.append((room.service.network, lease))
        if not self._sends:
            asyncio.get_running_loop().call_soon(self._flush)
        self._sends.append(send)

    def _flush(self) -> None:
        rows, sends = self._rows, self._sends
        self._rows, self._sends = [], []
        try:
            if rows:
                self._journal.write(rows)
            self._shorten()
        except OSError as error:
            log.error("leases cannot be written: %s; nothing is given", error.strerror)
            return
        for send in sends:
            send()

    def _shorten(self) -> None:
        count = sum(1 for room in self._rooms.values() for _lease in room.book)
        if not self._journal.is_long(count):
            return
        all_ = {name: dict(leases) for name, leases in self._past.items()}
        for name, room in self._rooms.items():
            all_[name] = {str(lease.address): lease for lease in room.book}
        self._journal.rewrite(journal.living(all_, self._services, time.time()))


def _nothing() -> None:
    """Nothing to send."""


def _try(
    send: Callable[[bytes, tuple[str, int, int, int]], None],
    data: bytes,
    target: tuple[str, int, int, int],
) -> None:
    with contextlib.suppress(OSError):  # the client asks again
        send(data, target)


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _names(data: bytes) -> list[str]:
    found = []
    for kind, _flags, _sequence, payload in nl.messages(data):
        if kind in (_RTM_NEWLINK, _RTM_DELLINK):
            name = nl.attributes(payload, 16).get(_IFLA_IFNAME, b"")
            found.append(name.rstrip(b"\0").decode(errors="replace"))
    return found


class _Sparse(logging.Filter):
    """A tenant who makes trouble must not fill the disk with what is said about it."""

    def __init__(self) -> None:
        super().__init__()
        self._allowance = Allowance(rate=0.2, most=100, left=100)

    def filter(self, record: logging.LogRecord) -> bool:
        return self._allowance.take(record.created)


def _listen(path: Path) -> socket.socket:
    """A socket that only root may speak to. One that a killed process left is in the way."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    path.chmod(0o600)
    sock.listen(16)
    return sock


def _claim(directory: Path) -> int:
    """The descriptor that holds the lock as long as this process lives. Raises OSError."""
    file = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _raise_limit() -> None:
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
        return
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dvn-services")
    parser.add_argument("directory", type=Path)
    parser.add_argument("leases", type=Path)
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger().handlers[0].addFilter(_Sparse())
    try:
        _raise_limit()
        _claim(options.directory)
        server = Server(options.directory, os.open(options.leases, os.O_RDONLY | os.O_DIRECTORY))
        give_up(*account())
    except (OSError, LookupError) as error:
        log.error("cannot start: %s", error)
        return 1
    asyncio.run(server.run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
