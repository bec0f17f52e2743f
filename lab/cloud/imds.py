"""The instance metadata service, version 2, at 169.254.169.254 (AWS: "Use IMDSv2").

A session token is got by PUT and shown in a header. The answer to PUT leaves with the instance's
hop limit as its IP TTL, so that with a limit of 1 it does not reach a container behind the
instance. Who asks is known by the source address, which the VPC's source check has vouched for.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lab.cloud.metadata import Metadata, lookup, tree

TOKEN_HEADER = "X-aws-ec2-metadata-token"
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
LONGEST = 21600  # s


class MetadataService:
    """Serves on `listener` until `close`. `find` gives what an address may know."""

    def __init__(
        self,
        listener: socket.socket,
        find: Callable[[str], Metadata | None],
        clock: Callable[[], datetime],
    ) -> None:
        self._find = find
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: dict[str, tuple[str, datetime]] = {}  # token -> instance, end
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            server_version = "EC2ws"
            timeout = 30

            def do_GET(self) -> None:
                service.get(self)

            def do_PUT(self) -> None:
                service.put(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """No access log."""

        self._server = ThreadingHTTPServer(
            listener.getsockname()[:2], Handler, bind_and_activate=False
        )
        self._server.socket.close()
        self._server.socket = listener
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.2},
            name="imds",
            daemon=True,
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def put(self, request: Any) -> None:
        """PUT /latest/api/token."""
        request.rfile.read(int(request.headers.get("Content-Length") or 0))
        data = self._find(request.client_address[0])
        if data is None or not data.enabled or request.headers.get("X-Forwarded-For"):
            return _answer(request, 403)
        if request.path.rstrip("/") != "/latest/api/token":
            return _answer(request, 404)
        seconds = request.headers.get(TTL_HEADER, "")
        if not seconds.isdigit() or not 1 <= int(seconds) <= LONGEST:
            return _answer(request, 400)
        token = secrets.token_urlsafe(42)
        with self._lock:
            now = self._clock()
            self._tokens = {t: v for t, v in self._tokens.items() if v[1] > now}
            self._tokens[token] = (data.instance, now + timedelta(seconds=int(seconds)))
        request.connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, data.hop_limit)
        return _answer(request, 200, token.encode(), {TTL_HEADER: seconds})

    def get(self, request: Any) -> None:
        """GET below /latest/."""
        data = self._find(request.client_address[0])
        if data is None or not data.enabled:
            return _answer(request, 403)
        token = request.headers.get(TOKEN_HEADER)
        if not self._allowed(data, token):
            return _answer(request, 401)
        path = request.path.partition("?")[0]
        version, _, rest = path.strip("/").partition("/")
        if version != "latest":
            return _answer(request, 404)
        content = lookup(tree(data), rest)
        return _answer(request, 404 if content is None else 200, content or b"")

    def _allowed(self, data: Metadata, token: str | None) -> bool:
        if token is None:
            return not data.token_required
        with self._lock:
            instance, end = self._tokens.get(token, ("", self._clock()))
        return instance == data.instance and end > self._clock()


def _answer(
    request: Any, status: int, body: bytes = b"", headers: dict[str, str] | None = None
) -> None:
    request.send_response(status)
    for name, value in {"Content-Type": "text/plain", **(headers or {})}.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
