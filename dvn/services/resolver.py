"""DNS for the networks: machines' names from the leases, all else from the host's own resolvers.

A forwarder without a cache: the host's resolver has one. Each question goes out from a port and
with an id of its own, both random (RFC 5452). What one network may have under way is bounded, so
that it cannot keep the others from being answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

from dvn.ipam import Address
from dvn.services import names
from dvn.services.names import AAAA, A, Question

log = logging.getLogger(__name__)

RESOLV_CONF = Path("/etc/resolv.conf")
MOST_AT_ONCE, MOST_CONNECTIONS = 200, 20
GATEWAY = "gateway"
_NEXT_S, _GIVE_UP_S, _TCP_S = 1.5, 6.0, 20.0
_DATAGRAM = 65535

Look = Callable[[str, int], tuple[Address, ...] | None]


class Upstream:
    """The host's resolvers, as resolv.conf(5) names them now."""

    def __init__(self, path: Path = RESOLV_CONF) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._servers: tuple[str, ...] = ()

    def servers(self) -> tuple[str, ...]:
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_ino)
            if seen != self._seen:
                self._seen, self._servers = seen, nameservers(self._path.read_text())
        except OSError as error:
            log.warning("%s: %s", self._path, error.strerror)
            self._servers = ()
        return self._servers


def nameservers(text: str) -> tuple[str, ...]:
    """The first three, as the C library takes them."""
    rows = (line.split() for line in text.splitlines() if line.startswith("nameserver"))
    return tuple(row[1] for row in rows if len(row) >= 2 and row[0] == "nameserver")[:3]


class Resolver:
    """Answers the questions of one network; `look` (name, version) has the addresses of a name of
    the network's domain: None where the name is not there."""

    def __init__(self, upstream: Upstream, domain: str, look: Look) -> None:
        self._upstream, self._domain, self._look = upstream, domain, look
        self._under_way: set[_Query] = set()
        self._connections: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        for query in tuple(self._under_way):
            query.end()
        for task in self._connections:
            task.cancel()

    def datagram(self, data: bytes, reply: Callable[[bytes], None]) -> None:
        """One query; `reply` is called with the answer, at once or later, or never."""
        asked = names.question(data)
        if asked is None:
            return
        answer = self._own(asked)
        servers = () if answer else self._upstream.servers()
        if answer is None and not servers:
            answer = names.response(asked, names.SERVER_FAILURE)
        if answer is not None:
            reply(answer)
        elif len(self._under_way) < MOST_AT_ONCE:
            self._under_way.add(_Query(data, asked, servers, reply, self._under_way.discard))

    def connection(self, client: socket.socket) -> None:
        """Take over a TCP connection."""
        if len(self._connections) >= MOST_CONNECTIONS:
            client.close()
            return
        task = asyncio.get_running_loop().create_task(self._converse(client))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    def _own(self, asked: Question) -> bytes | None:
        """Of the network's own domain; None: somebody else knows."""
        if not self._domain or not f".{asked.name}".endswith(f".{self._domain}"):
            return None
        label = asked.name.removesuffix(self._domain).rstrip(".")
        version = {A: 4, AAAA: 6}.get(asked.kind, 0)
        found = () if not label else self._look(label, version)
        if found is None:
            return names.response(asked, names.NO_NAME)
        return names.response(asked, names.NO_ERROR, found)

    async def _converse(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(_TCP_S):
                while data := await _message(client):
                    asked = names.question(data)
                    if asked is None:
                        return
                    answer = self._own(asked) or await self._ask(data, asked)
                    await _send(client, answer)

    async def _ask(self, data: bytes, asked: Question) -> bytes:
        for server in self._upstream.servers():
            with contextlib.suppress(OSError), _to(server, socket.SOCK_STREAM) as upstream:
                await asyncio.get_running_loop().sock_connect(upstream, (server, 53))
                await _send(upstream, data)
                answer = await _message(upstream)
                if answer and names.answers_to(answer, asked, asked.id):
                    return answer
        return names.response(asked, names.SERVER_FAILURE)


class _Query:
    """One question on its way: to the first resolver, and after a while to the next as well."""

    def __init__(
        self,
        data: bytes,
        asked: Question,
        servers: tuple[str, ...],
        reply: Callable[[bytes], None],
        ended: Callable[[_Query], None],
    ) -> None:
        self._data, self._asked, self._reply, self._ended = data, asked, reply, ended
        self._loop = asyncio.get_running_loop()
        self._id = secrets.randbits(16)
        self._left = list(servers)
        self._sockets: list[socket.socket] = []
        self._timers = [self._loop.call_later(_GIVE_UP_S, self.end)]
        self._next()

    def _next(self) -> None:
        while self._left:
            server = self._left.pop(0)
            sock = _to(server, socket.SOCK_DGRAM)
            try:
                sock.connect((server, 53))  # answers from elsewhere do not get in
                sock.send(names.with_id(self._data, self._id))
            except OSError:
                sock.close()
                continue
            self._sockets.append(sock)
            self._loop.add_reader(sock, self._read, sock)
            if self._left:
                self._timers.append(self._loop.call_later(_NEXT_S, self._next))
            return

    def _read(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(_DATAGRAM)
        except OSError:  # nobody listens there
            self._loop.remove_reader(sock)
            self._next()
            return
        if names.answers_to(data, self._asked, self._id):
            self.end()
            self._reply(names.with_id(data, self._asked.id))

    def end(self) -> None:
        for timer in self._timers:
            timer.cancel()
        for sock in self._sockets:
            self._loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()
        self._ended(self)


def _to(server: str, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    sock = socket.socket(family, kind)
    sock.setblocking(False)
    return sock


async def _message(sock: socket.socket) -> bytes:
    """One message with its length before it (RFC 1035, 4.2.2); b"" at the end."""
    head = await _exactly(sock, 2)
    return await _exactly(sock, int.from_bytes(head, "big")) if head else b""


async def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = await asyncio.get_running_loop().sock_recv(sock, size - len(data))
        if not part:
            return b""
        data += part
    return data


async def _send(sock: socket.socket, data: bytes) -> None:
    message = len(data).to_bytes(2, "big") + data
    await asyncio.get_running_loop().sock_sendall(sock, message)
