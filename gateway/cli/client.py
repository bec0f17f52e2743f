"""The command line's way to the daemon: HTTP over its Unix socket, with the standard library."""

from __future__ import annotations

import http.client
import json
import os
import socket
from typing import Any
from urllib.parse import quote, urlencode

DEFAULT_SOCKET = "/run/dvn/gateway.sock"
SOCKET_VARIABLE = "DVN_SOCKET"
_TIMEOUT_S = 60.0  # a daemon that just started loads its API for some seconds


class ApiFailure(Exception):  # noqa: N818 - what is shown to the user
    """The daemon was not reached, or said no. The message is the whole of what a user needs."""


class Client:
    def __init__(self, path: str | None = None) -> None:
        self.path = path or os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET

    def get(self, *path: str, **query: object) -> Any:
        return self._ask("GET", path, query)

    def post(self, *path: str, **query: object) -> Any:
        return self._ask("POST", path, query)

    def _ask(self, method: str, path: tuple[str, ...], query: dict[str, object]) -> Any:
        given = {k: str(v).lower() if isinstance(v, bool) else v for k, v in query.items()}
        target = "/v1/" + "/".join(quote(part, safe="") for part in path)
        connection = _Connection(self.path)
        try:
            connection.request(method, target + ("?" + urlencode(given) if given else ""))
            answer = connection.getresponse()
            body = answer.read()
        except (FileNotFoundError, ConnectionRefusedError):
            raise ApiFailure(
                f"no daemon answers on {self.path}: start it with `dvn gateway run SITEFILE`, or "
                f"give its socket with --socket or {SOCKET_VARIABLE}"
            ) from None
        except PermissionError:
            raise ApiFailure(
                f"you may not use {self.path}: run this as root or as a member of its group"
            ) from None
        except TimeoutError:
            raise ApiFailure(
                f"the daemon on {self.path} did not answer within {_TIMEOUT_S:.0f} s; see its log"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise ApiFailure(f"talking to the daemon on {self.path} failed: {error}") from None
        finally:
            connection.close()
        return _checked(answer.status, body)


def _checked(status: int, body: bytes) -> Any:
    try:
        value = json.loads(body)
    except ValueError:
        raise ApiFailure(
            f"the daemon's answer (status {status}) is not JSON; see its log"
        ) from None
    if status == 200:
        return value
    said = value.get("error") or value.get("detail") if isinstance(value, dict) else None
    raise ApiFailure(str(said or f"the daemon answered with status {status}; see its log"))


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
