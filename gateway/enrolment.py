"""How a booted machine proves which lease it is, and fetches what it needs to join.

    POST /claim   {"token", "nonce", "index"}     -> 200 which lease this machine of a batch is
    POST /enrol   {"token", "nonce"}              -> 200 the bundle, and a session key
    POST /report  {"stage", "ok", "detail"}       -> 204
    POST /notice  {"ends"}                        -> 204: the provider takes the machine back
    GET  /alive                                   -> 200, or 410 when the lease is over

A token is good once: it is bound to the nonce it first comes with, so that a machine whose
answer was lost may ask again and nobody else may. Refusals are 403 (for good), 503 with
Retry-After (too early, or the bundle cannot be built now), 429 (too often). The session key goes
in `Authorization: Bearer`; before there is one, a report carries token and nonce.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from burst.join.bundle import Bundle, BundleError
from burst.join.userdata import inner_mac
from burst.model import FailureClass, Lease
from gateway.tokens import SiteSecret, token_hash

log = logging.getLogger(__name__)

DETAIL_LENGTH = 2000
_NONCE = re.compile(r"[0-9a-f]{32,64}")
_STAGE = re.compile(r"[a-z][a-z0-9_.-]{0,39}")
_RETRY_AFTER_S = 2


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a token does not get its bundle; with `retry`, it may later."""

    reason: str
    retry: bool = False


class TokenStore(Protocol):
    """What the server keeps between requests. Called from several threads at once."""

    def mint(self, lease_id: str, token_hash: str, expires: datetime) -> None:
        """Know this token, before the launch; a repeat changes nothing, least of all a nonce."""

    def redeem(self, token_hash: str, nonce: str, now: datetime, peer: str) -> str | Refused:
        """The lease id, if this token may be used with this nonce now; binds an unbound token.

        Refused: an unknown hash; another nonce than the bound one; an unbound token past its
        expiry; a lease later than JOINED; a JOINED one by an unbound token. Refused with `retry`,
        and left unbound: a lease still WANTED or REQUESTED (the machine was faster than our loop).
        """

    def member(self, batch: str, index: int) -> Lease | None:
        """The lease at this place of a batch."""

    def enrolled(self, lease_id: str, now: datetime) -> Refused | None:
        """The bundle is about to be handed out; refused where the lease was let go meanwhile.

        Once a lease is stored as let go, nobody is given its bundle who had not been before.
        """

    def report(self, lease_id: str, stage: str, ok: bool, detail: str, now: datetime) -> None:
        """What the machine says of its joining: `joined`, or a failure, `stage` then a class."""

    def noticed(self, lease_id: str, ends: datetime | None, now: datetime) -> None:
        """Its provider takes the machine back at `ends`, or (None) may do so soon."""

    def seen(self, lease_id: str, now: datetime) -> bool:
        """The machine lives; False when its lease does not any more."""


_BEFORE_JOINING = frozenset(
    {
        "prerequisites",
        "metadata",
        "enrol",
        "apply",
        "clock",
        "preflight",
        "version",
        "dns",
    }
)


def failure_class(stage: str) -> FailureClass:
    """What a machine's failure at this stage of `join.sh` or `apply.py` says of the lease."""
    if stage in ("link", "reach", "mtu"):
        return FailureClass.TUNNEL
    if stage in _BEFORE_JOINING:
        return FailureClass.BOOTSTRAP
    return FailureClass.JOIN


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: Mapping[str, Any] | None = None
    retry_after: int | None = None


class RequestError(Exception):
    def __init__(self, status: int, message: str, *, retry: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.retry = retry


class Enrolment:
    """What the answers are; knows nothing of sockets and threads."""

    def __init__(
        self,
        secret: SiteSecret,
        store: TokenStore,
        bundle: Callable[[str], Bundle],
        clock: Callable[[], datetime],
        token_lifetime: timedelta = timedelta(minutes=30),
        wall: Callable[[], datetime] | None = None,
    ) -> None:
        """`clock` stamps what decisions compare; `wall` is the system's, for the machines to set
        theirs by, and the same unless it is given."""
        self._wall = wall or clock
        self._token_lifetime = token_lifetime
        self._secret = secret
        self._store = store
        self._bundle = bundle
        self._clock = clock
        self.last_error = ""
        self.refusals = 0

    def answer(
        self, method: str, path: str, bearer: str, body: Mapping[str, Any], peer: str
    ) -> Answer:
        """The answer to one request; `bearer` is empty when there is no such header."""
        try:
            match method, path:
                case "POST", "/claim":
                    return self._claim(body, peer)
                case "POST", "/enrol":
                    return self._enrol(body, peer)
                case "POST", "/report":
                    return self._report(bearer, body, peer)
                case "POST", "/notice":
                    return self._notice(bearer, body)
                case "GET", "/alive":
                    return self._alive(bearer)
                case _:
                    raise RequestError(404, "there is /claim, /enrol, /report, /notice and /alive")
        except RequestError as error:
            if error.status == 403:
                self.refusals += 1
                log.warning("enrolment: %s %s from %s refused: %s", method, path, peer, error)
            return Answer(
                error.status, {"error": str(error)}, _RETRY_AFTER_S if error.retry else None
            )

    def _enrol(self, body: Mapping[str, Any], peer: str) -> Answer:
        lease_id = self._redeem(body, peer)
        try:
            bundle = self._bundle(lease_id)
        except BundleError as error:
            # Not the machine's fault and perhaps mended soon: it keeps asking until its watchdog.
            self.last_error = str(error)
            log.error("lease %s: no bundle can be built: %s", lease_id, error)
            raise RequestError(503, "the gateway cannot build the bundle", retry=True) from error
        self.last_error = ""
        now = self._clock()
        refused = self._store.enrolled(lease_id, now)
        if refused is not None:
            raise RequestError(403, refused.reason)
        log.info("lease %s enrolled from %s", lease_id, peer)
        return Answer(
            200,
            {
                "lease": lease_id,
                "session": self._secret.session(lease_id),
                "time": self._wall().timestamp(),
                **bundle.to_json(),
            },
        )

    def _claim(self, body: Mapping[str, Any], peer: str) -> Answer:
        """Machines of a batch have one user data, and are told apart by their launch index. Each
        place in a batch is given to the first who claims it, like a token."""
        token, index = body.get("token"), body.get("index")
        batch = self._secret.batch_of_token(token) if isinstance(token, str) else None
        if batch is None:
            raise RequestError(403, "the token is not recognised")
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise RequestError(400, "index: the machine's launch index is needed")
        lease = self._store.member(batch, index)
        if lease is None:
            raise RequestError(403, f"batch {batch} has no place {index}")
        own = self._secret.token(lease.id)
        asked = lease.attempted or lease.wanted
        self._store.mint(lease.id, token_hash(own), asked + self._token_lifetime)
        self._redeem({"token": own, "nonce": body.get("nonce")}, peer)
        said = {
            "lease": lease.id,
            "node": lease.node,
            "key": lease.gre_key,
            "mac": inner_mac(lease.address),
            "address": lease.address,
            "token": own,
        }
        return Answer(200, said)

    def _report(self, bearer: str, body: Mapping[str, Any], peer: str) -> Answer:
        lease_id = self._session(bearer) if bearer else self._redeem(body, peer)
        stage, ok, detail = body.get("stage"), body.get("ok"), body.get("detail", "")
        if not (isinstance(stage, str) and _STAGE.fullmatch(stage)):
            raise RequestError(400, "stage: a short lower-case word is needed")
        if not isinstance(ok, bool) or not isinstance(detail, str):
            raise RequestError(400, "ok must be true or false, detail a text")
        # The machine's words end in an operator's terminal: no escape sequences.
        printable = "".join(c if c.isprintable() or c == "\n" else "?" for c in detail)
        said = printable[:DETAIL_LENGTH]
        if ok:
            self._store.report(lease_id, stage, True, said, self._clock())
        else:
            kind = failure_class(stage)
            self._store.report(lease_id, kind.value, False, f"{stage}: {said}", self._clock())
        log.log(
            logging.INFO if ok else logging.WARNING,
            "lease %s: %s %s %s", lease_id, stage, "ok" if ok else "failed", printable[-200:],
        )  # fmt: skip
        return Answer(204)

    def _notice(self, bearer: str, body: Mapping[str, Any]) -> Answer:
        lease_id = self._session(bearer)
        ends, now = body.get("ends"), self._clock()
        try:
            when = None if ends in (None, "") else datetime.fromisoformat(str(ends))
        except ValueError as error:
            raise RequestError(400, "ends: an instant as ISO 8601 has it is needed") from error
        if when is not None and when.tzinfo is None:
            raise RequestError(400, "ends: an instant with its time zone is needed")
        log.warning("lease %s: its provider takes it back %s", lease_id, when or "perhaps soon")
        self._store.noticed(lease_id, when, now)
        return Answer(204)

    def _alive(self, bearer: str) -> Answer:
        if self._store.seen(self._session(bearer), self._clock()):
            return Answer(200, {"ok": True})
        return Answer(410, {"ok": False, "error": "this lease is over: power off"})

    def _session(self, bearer: str) -> str:
        lease_id = self._secret.lease_of_session(bearer)
        if lease_id is None:
            raise RequestError(403, "the session key is not recognised")
        return lease_id

    def _redeem(self, body: Mapping[str, Any], peer: str) -> str:
        token, nonce = body.get("token"), body.get("nonce")
        if not isinstance(token, str) or not isinstance(nonce, str) or not _NONCE.fullmatch(nonce):
            raise RequestError(400, "a token and a nonce of 32 to 64 hex digits are needed")
        lease_id = self._secret.lease_of_token(token)
        if lease_id is None:
            raise RequestError(403, "the token is not recognised")
        redeemed = self._store.redeem(token_hash(token), nonce, self._clock(), peer)
        if isinstance(redeemed, Refused):
            status = 503 if redeemed.retry else 403
            raise RequestError(status, redeemed.reason, retry=redeemed.retry)
        if redeemed != lease_id:
            raise RequestError(403, "the token is not recognised")
        return lease_id
