"""An HTTPS server that the whole internet can reach, around something that answers requests.

Requests are small and short-lived, a slow client holds only its own thread and not for long, and
who is refused too often is not answered any more.
"""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from types import TracebackType
from typing import Any, Protocol, Self, cast

from gateway.enrolment import Answer, RequestError
from gateway.limits import Limits, TokenBucket
from gateway.tls import TlsIdentity

log = logging.getLogger(__name__)


class Service(Protocol):
    """Answers requests; knows nothing of sockets."""

    def answer(
        self, method: str, path: str, bearer: str, body: Mapping[str, Any], peer: str
    ) -> Answer:
        """The answer to one request; `bearer` is empty when there is no such header."""


class HttpsServer:
    """`start` binds, `stop` leaves nothing behind. `what`, `where`: for the message when the
    address cannot be had: what cannot listen, and where the site file says on what."""

    def __init__(
        self,
        service: Service,
        *,
        address: str,
        port: int,
        identity: TlsIdentity,
        what: str,
        where: str,
        limits: Limits | None = None,
        listener: socket.socket | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._address = address
        self._port = port
        self._identity = identity
        self._what, self._where = what, where
        self._limits = limits or Limits()
        self._listener = listener  # made by somebody else, for address and port
        self._monotonic = monotonic
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Bind and serve in a thread of its own. `OSError` says which address could not be had."""
        try:
            self._server = _Server(
                (self._address, self._port),
                self._service,
                self._identity.context(),
                self._limits,
                self._monotonic,
                self._listener,
            )
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self._what} cannot listen on {self._address} port {self._port}: "
                f"{error.strerror}; see {self._where} in the site file",
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name=self._what
        )
        self._thread.daemon = True
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and cut what is open."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.cut_all()
            self._thread.join(timeout=5)
        self._server = self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        return self._server.server_address[1] if self._server else self._port

    @property
    def url(self) -> str:
        host = f"[{self._address}]" if ":" in self._address else self._address
        return f"https://{host}:{self.port}"

    @property
    def pin(self) -> str:
        return self._identity.pin


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self,
        address: tuple[str, int],
        service: Service,
        context: ssl.SSLContext,
        limits: Limits,
        monotonic: Callable[[], float],
        listener: socket.socket | None,
    ) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self.service = service
        self.limits = limits
        self.monotonic = monotonic
        self.failures = TokenBucket(limits.failures_burst, limits.failures_rate)
        self._requests = TokenBucket(limits.requests_burst, limits.requests_rate)
        self._context = context
        self._open: dict[socket.socket, float] = {}
        self._open_lock = threading.Lock()
        super().__init__(address, _Handler, bind_and_activate=listener is None)
        if listener is not None:
            self.socket.close()
            self.socket = listener
            self.server_address = listener.getsockname()

    def server_bind(self) -> None:
        # HTTPServer.server_bind looks the address up in DNS, which may take half a minute.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.socket.getsockname()[:2]

    def verify_request(self, request: Any, client_address: Any) -> bool:
        with self._open_lock:
            room = len(self._open) < self.limits.connections
        return room and self._requests.take(client_address[0], self.monotonic())

    def finish_request(self, request: Any, client_address: Any) -> None:
        # In the connection's own thread: a handshake that never ends must not stop the others.
        request.settimeout(self.limits.idle)
        connection = self._context.wrap_socket(
            request, server_side=True, do_handshake_on_connect=False
        )
        with self._open_lock:
            self._open[connection] = self.monotonic() + self.limits.deadline
        try:
            connection.do_handshake()
            _Handler(connection, client_address, self)
        except OSError as error:  # ssl.SSLError and TimeoutError too: scanners and lost peers
            log.debug("https: connection from %s: %s", client_address[0], error)
        finally:
            with self._open_lock:
                del self._open[connection]
            connection.close()

    def service_actions(self) -> None:
        now = self.monotonic()
        with self._open_lock:
            late = [connection for connection, limit in self._open.items() if now >= limit]
            for connection in late:
                _cut(connection)

    def cut_all(self) -> None:
        with self._open_lock:
            for connection in self._open:
                _cut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("https: request from %s failed", client_address[0])


def _cut(connection: socket.socket) -> None:
    """Wake the thread that waits on this connection: its read ends at once."""
    try:
        # Not SSLSocket.shutdown, which takes the TLS object away under the reading thread.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
    except OSError as error:
        log.debug("https: connection had ended already: %s", error)


class _Bounded:
    """A reader that ends after `limit` bytes; http.server by itself takes megabytes of headers."""

    def __init__(self, file: BufferedIOBase, limit: int) -> None:
        self._file = file
        self._left = limit

    def readline(self, size: int = -1) -> bytes:
        line = self._file.readline(self._left if size < 0 else min(size, self._left))
        self._left -= len(line)
        return line

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, self._left))

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed


class _Handler(BaseHTTPRequestHandler):
    server_version = "dvn"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        limits = self._server.limits
        self.rfile = cast(Any, _Bounded(self.rfile, limits.head + limits.body))

    @property
    def _server(self) -> _Server:
        return cast(_Server, self.server)

    def do_GET(self) -> None:
        self._serve({})

    def do_POST(self) -> None:
        try:
            body = self._body()
        except RequestError as error:
            self._send(Answer(error.status, {"error": str(error)}))
            return
        self._serve(body)

    def _serve(self, body: Mapping[str, Any]) -> None:
        peer = self.client_address[0]
        failures, now = self._server.failures, self._server.monotonic()
        if not failures.has(peer, now):
            self._send(Answer(429, {"error": "too many refused requests from you"}, 30))
            return
        scheme, _, key = self.headers.get("Authorization", "").partition(" ")
        bearer = key.strip() if scheme.lower() == "bearer" else ""
        answer = self._server.service.answer(self.command, self.path, bearer, body, peer)
        if answer.status in (400, 403, 404):
            failures.take(peer, now)
        self._send(answer)

    def _body(self) -> Mapping[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise RequestError(411, "Content-Length is needed")
        if int(length[:12]) > self._server.limits.body:
            raise RequestError(413, f"at most {self._server.limits.body} bytes are taken")
        raw = self.rfile.read(int(length))
        if len(raw) != int(length):
            raise RequestError(400, "the body ended early")
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise RequestError(400, "the body is not JSON") from error
        if not isinstance(body, dict):
            raise RequestError(400, "the body is not a JSON object")
        return body

    def _send(self, answer: Answer) -> None:
        content = json.dumps(answer.body).encode() if answer.body is not None else b""
        self.send_response(answer.status)
        if answer.body is not None:
            self.send_header("Content-Type", "application/json")
        if answer.retry_after is not None:
            self.send_header("Retry-After", str(answer.retry_after))
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        log.debug("https: %s %s", self.client_address[0], format % args)
