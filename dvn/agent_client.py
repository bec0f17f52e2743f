"""Speaks to the agent. Reconnects by itself; one request at a time, from any thread."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from pathlib import Path
from typing import Any

from dvn.protocol import MAX_LINE, problems_from_json
from dvn.spec import Site
from dvn.status import Applied, Probe, TunnelStatus


class AgentUnavailable(ConnectionError):  # noqa: N818 - a state of the world, not a mistake
    """No agent answers on the socket; worth trying again later."""


class AgentError(RuntimeError):
    """The agent answered that it could not; its words are for people."""


class AgentClient:
    """`timeout`: seconds one answer may take."""

    def __init__(self, path: Path | str, *, timeout: float = 30.0) -> None:
        self._path = str(path)
        self._timeout = timeout
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._rest = b""

    def close(self) -> None:
        with self._lock:
            self._drop()

    def ping(self) -> dict[str, Any]:
        return self._ask({"op": "ping"})

    def plan(self, site: Site) -> tuple[str, ...]:
        """The lines of the plan; empty if there is nothing to do."""
        answer = self._ask({"op": "plan", "site": site.model_dump(mode="json")})
        return tuple(answer["steps"])

    def apply(self, site: Site) -> Applied:
        return _applied(self._ask({"op": "apply", "site": site.model_dump(mode="json")}))

    def destroy(self, site_name: str) -> Applied:
        return _applied(self._ask({"op": "destroy", "site": site_name}))

    def show(self, site_name: str | None = None) -> dict[str, Any]:
        found: dict[str, Any] = self._ask({"op": "show", "site": site_name})["state"]
        return found

    def tunnels(self, site_name: str | None = None) -> dict[str, TunnelStatus]:
        found = self._ask({"op": "tunnels", "site": site_name})["tunnels"]
        return {key: TunnelStatus(**value) for key, value in found.items()}

    def probe(self, address: str, network: str, count: int = 1, timeout: float = 1.0) -> Probe:
        """Echo requests from the bridge of `network` (`tenant/name`)."""
        answer = self._ask(
            {
                "op": "probe",
                "address": address,
                "network": network,
                "count": count,
                "timeout": timeout,
            },
            patience=count * timeout,
        )
        return Probe(**answer["probe"])

    def drift(self) -> dict[str, Any]:
        """What the agent repaired by itself, and whose rules would drop our packets."""
        found: dict[str, Any] = self._ask({"op": "drift"})["drift"]
        return found

    def _ask(self, request: dict[str, Any], *, patience: float = 0.0) -> dict[str, Any]:
        """Raises AgentUnavailable, AgentError, SpecError."""
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            # A kept connection may be to an agent that has been restarted: try a new one once.
            fresh = self._socket is None
            try:
                answer = self._exchange(line, patience)
            except (ConnectionError, TimeoutError) as error:
                self._drop()
                if fresh or isinstance(error, TimeoutError):
                    raise self._unavailable(error) from error
                try:
                    answer = self._exchange(line, patience)
                except OSError as again:
                    self._drop()
                    raise self._unavailable(again) from again
            except OSError as error:
                self._drop()
                raise self._unavailable(error) from error
        if answer.get("ok"):
            return answer
        if answer.get("kind") == "spec":
            raise problems_from_json(answer.get("problems"))
        raise AgentError(str(answer.get("error")))

    def _exchange(self, line: bytes, patience: float) -> dict[str, Any]:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._rest = b""
            self._socket.settimeout(self._timeout)
            self._socket.connect(self._path)
        self._socket.settimeout(self._timeout + patience)
        self._socket.sendall(line)
        pieces = [self._rest]
        while b"\n" not in pieces[-1]:
            piece = self._socket.recv(1 << 16)
            if not piece:
                raise ConnectionResetError("the agent closed the connection")
            pieces.append(piece)
            if sum(map(len, pieces)) > MAX_LINE:
                raise ConnectionResetError("the agent's answer has no end")
        answer, _, self._rest = b"".join(pieces).partition(b"\n")
        try:
            found = json.loads(answer)
        except ValueError:
            raise ConnectionResetError("the agent's answer is no JSON") from None
        if not isinstance(found, dict):
            raise ConnectionResetError("the agent's answer is no object")
        return found

    def _drop(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
        self._socket = None
        self._rest = b""

    def _unavailable(self, error: OSError) -> AgentUnavailable:
        words = error.strerror or str(error) or type(error).__name__
        return AgentUnavailable(f"no agent answers on {self._path}: {words}")


def _applied(answer: dict[str, Any]) -> Applied:
    found = answer["applied"]
    return Applied(**{**found, "steps": tuple(found["steps"]), "notes": tuple(found["notes"])})
