"""HTTP on a socket somebody else made, as the lab's hosts give them (Host.listen)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self


class WsgiServer:
    """Serves a WSGI application with one thread a request. A context manager."""

    def __init__(self, app: Callable[..., Any], listener: socket.socket) -> None:
        from werkzeug.serving import WSGIRequestHandler, make_server  # seconds in a VM

        class Handler(WSGIRequestHandler):
            def log_request(self, *_: object) -> None:
                """The lab's output is not an access log."""

        host, port = listener.getsockname()[:2]
        self.url = f"http://{host}:{port}"
        # werkzeug duplicates the descriptor
        self._server = make_server(
            host, port, app, threaded=True, request_handler=Handler, fd=listener.fileno()
        )
        listener.close()
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.05},  # s; how long a shutdown takes
            name=f"http-{host}-{port}",
            daemon=True,
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
