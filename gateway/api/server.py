"""The API's Unix socket. Who may open the file may use the API: there is no other check."""

from __future__ import annotations

import grp
import logging
import os
import secrets
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn

    from gateway.api.view import View

log = logging.getLogger(__name__)

_STOP_S = 5.0


class ApiError(Exception):
    """The socket cannot be had; the message says which and why."""


class ApiServer:
    """`bind()` makes the socket at once: a client that comes before `start()` only waits."""

    def __init__(self, path: str, mode: int, group: str | None) -> None:
        self._path = Path(path)
        self._mode = mode
        self._group = group
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False

    def bind(self) -> None:
        """Listen. Raises `ApiError`. The file appears with its mode and group already right."""
        draft = self._path.with_name(f".{self._path.name[:40]}.{secrets.token_hex(3)}")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            listening.bind(str(draft))
            if self._group is not None:
                os.chown(draft, -1, grp.getgrnam(self._group).gr_gid)
            draft.chmod(self._mode)
            listening.listen(64)
            draft.rename(self._path)
        except (OSError, KeyError) as error:
            listening.close()
            draft.unlink(missing_ok=True)
            why = error.strerror if isinstance(error, OSError) else f"no group {self._group!r}"
            raise ApiError(f"cannot listen on {self._path}: {why}; see gateway.socket") from error
        self._socket = listening

    def start(self, view: View) -> None:
        self._thread = threading.Thread(target=self._serve, args=(view,), name="api", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(_STOP_S)
        if self._socket is not None:
            self._socket.close()
            self._path.unlink(missing_ok=True)

    def _serve(self, view: View) -> None:
        import uvicorn

        from gateway.api.app import make_app

        config = uvicorn.Config(
            make_app(view),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
            ws="none",
            loop="asyncio",
            http="h11",
        )
        self._server = uvicorn.Server(config)
        if self._stopping or self._socket is None:
            return
        log.info("event=api socket=%s", self._path)
        self._server.run(sockets=[self._socket])
