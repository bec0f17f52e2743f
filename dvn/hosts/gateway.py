"""Asks the gateway for this host's part of the site, and tells it which machines run here.

    POST /host  {"version", "nics", "state"}  -> 200 {"version", "site" | null, "refused": [...]}

`site` is null while the version that the host has is the current one. The gateway is known by its
pin, before anything is said to it; the host by its token.
"""

from __future__ import annotations

import hmac
import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from dvn.hosts.joining import Nic
from dvn.hosts.pinning import pin_of

_MAX_ANSWER = 64 << 20  # bytes; a part with 4,000 networks has 1 MiB


class GatewayAway(ConnectionError):  # noqa: N818 - a state of the world, not a mistake
    """Nobody answers there, or somebody who is not the gateway: worth trying again."""


class GatewayRefuses(RuntimeError):  # noqa: N818 - its word, not a mistake
    """The gateway answered no. `gone`: this host is not of the site any more."""

    def __init__(self, words: str, *, gone: bool = False) -> None:
        super().__init__(words)
        self.gone = gone


@dataclass(frozen=True)
class Told:
    """The gateway's answer. `site`: the new part as JSON; None if it has not changed. `refused`:
    why, by (interface, MAC address)."""

    version: str
    site: object | None
    refused: Mapping[tuple[str, str], str]


class Gateway(Protocol):
    def report(self, version: str, nics: Sequence[Nic], state: Mapping[str, Any]) -> Told:
        """Raises GatewayAway, GatewayRefuses."""


class HttpsGateway:
    """`url`: https://ADDRESS:PORT; `timeout` in seconds, for connecting and for each answer."""

    def __init__(self, url: str, pin: str, token: str, *, timeout: float = 10.0) -> None:
        parts = urlsplit(url)
        self._where = (parts.hostname or "", parts.port or 443)
        self._url = url
        self._pin = pin
        self._token = token
        self._timeout = timeout
        # The pin decides, not who signed: the certificate is the gateway's own.
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE

    def report(self, version: str, nics: Sequence[Nic], state: Mapping[str, Any]) -> Told:
        said = [nic.model_dump(mode="json") for nic in nics]
        body = json.dumps({"version": version, "nics": said, "state": state}).encode()
        try:
            status, answer = self._exchange(body)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, GatewayAway):
                raise
            words = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise GatewayAway(f"{self._url} does not answer: {words}") from error
        if status != 200:
            words = str(answer.get("error", f"status {status}"))
            if status >= 500 or status == 429:
                raise GatewayAway(f"{self._url}: {words}")
            raise GatewayRefuses(words, gone=status == 410)
        return _told(answer)

    def _exchange(self, body: bytes) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPSConnection(
            *self._where, timeout=self._timeout, context=self._context
        )
        try:
            connection.connect()
            shown = connection.sock.getpeercert(binary_form=True) or b""
            if not hmac.compare_digest(pin_of(shown) or "", self._pin):
                raise GatewayAway(
                    f"{self._url} is not our gateway: its key has another pin ({pin_of(shown)}); "
                    "if the gateway has a new key, invite this host again"
                )
            headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
            connection.request("POST", "/host", body, headers)
            response = connection.getresponse()
            raw = response.read(_MAX_ANSWER)
        finally:
            connection.close()
        try:
            answer = json.loads(raw or b"{}")
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise GatewayAway(f"{self._url} answers what is not JSON")
        return response.status, answer


def _told(answer: Mapping[str, Any]) -> Told:
    refused = answer.get("refused")
    return Told(
        str(answer.get("version", "")),
        answer.get("site"),
        {
            (str(one.get("interface")), str(one.get("mac"))): str(one.get("why"))
            for one in (refused if isinstance(refused, list) else ())
            if isinstance(one, dict)
        },
    )
