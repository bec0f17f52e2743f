"""The HTTPS server around the enrolment of borrowed machines; see `gateway.enrolment`.

Nothing but a genuine token reaches the store.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from burst.join.bundle import Bundle
from gateway.enrolment import Enrolment, Refused, TokenStore
from gateway.https import HttpsServer
from gateway.limits import Limits
from gateway.tls import TlsIdentity
from gateway.tokens import SiteSecret

__all__ = ["EnrolServer", "Refused", "TokenStore"]


class EnrolServer(HttpsServer):
    """Serves an `Enrolment`."""

    def __init__(
        self,
        *,
        address: str,
        port: int,
        identity: TlsIdentity,
        secret: SiteSecret,
        store: TokenStore,
        bundle: Callable[[str], Bundle],
        clock: Callable[[], datetime],
        limits: Limits | None = None,
        listener: socket.socket | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        token_lifetime: timedelta = timedelta(minutes=30),
        wall: Callable[[], datetime] | None = None,
    ) -> None:
        self._enrolment = Enrolment(secret, store, bundle, clock, token_lifetime, wall)
        super().__init__(
            self._enrolment,
            address=address,
            port=port,
            identity=identity,
            what="enrolment",
            where="gateway.enrol",
            limits=limits,
            listener=listener,
            monotonic=monotonic,
        )

    @property
    def last_error(self) -> str:
        """Why the last bundle could not be built; empty when it could."""
        return self._enrolment.last_error

    @property
    def refusals(self) -> int:
        """Requests with a token or key that was refused, since the start."""
        return self._enrolment.refusals
