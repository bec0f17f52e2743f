"""The EC2 endpoint: a WSGI application in front of the backend.

It reads the EC2 query protocol, checks the signature, throttles, applies the faults that concern
requests, and answers errors as EC2 does. Beside the API it has, for whoever drives the lab:
`GET /_lab/state`, `GET` and `POST /_lab/faults`, `POST /_lab/interrupt`,
`POST /_lab/rebalance`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl
from uuid import uuid4

from lab.cloud import errors
from lab.cloud.backend import MotoEc2
from lab.cloud.errors import ApiError
from lab.cloud.faults import Faults, UnknownFaultError
from lab.cloud.prices import price_list
from lab.cloud.query import Answer, with_ports
from lab.cloud.signature import parse_authorization, verify
from lab.cloud.throttle import Throttler

_log = logging.getLogger(__name__)
Environ = dict[str, Any]
LOST_ANSWER_LIMIT = 600.0  # s; nobody waits longer for an answer that never comes


class AnswerLostError(ConnectionError):
    """Makes the server drop the connection without an answer."""


class Api:
    """WSGI. `backend` may still be loading: a request waits for `ready` then."""

    def __init__(
        self,
        backend: MotoEc2,
        faults: Faults,
        *,
        credentials: Mapping[str, str],
        clock: Callable[[], datetime],
        throttler: Throttler | None = None,
        ready: Callable[[], object] = lambda: None,
        interrupt: Callable[[str, float], None] | None = None,
    ) -> None:
        self._backend = backend
        self._faults = faults
        self._credentials = credentials
        self._clock = clock
        self._throttler = throttler or Throttler()
        self._ready = ready
        self._interrupt = interrupt
        self.requests: list[str] = []  # the actions asked for, in order

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length) if length else b""
        path = environ.get("PATH_INFO", "/")
        if path.startswith("/_lab/"):
            answer = self._lab(environ["REQUEST_METHOD"], path, body)
        elif self._faults.api_down:
            answer = Answer(503, b"<html>Service Unavailable</html>", {"Content-Type": "text/html"})
        else:
            answer = self._ec2(environ, body)
        headers = {
            k: v for k, v in answer.headers.items() if k.lower() in ("content-type", "server")
        }
        headers["Content-Length"] = str(len(answer.body))
        start_response(
            f"{answer.status} {_REASONS.get(answer.status, 'Error')}", [*headers.items()]
        )
        return [answer.body]

    def _ec2(self, environ: Environ, body: bytes) -> Answer:
        if self._faults.answer_delay > 0:
            time.sleep(self._faults.answer_delay)
        try:
            service = self._authenticate(environ, body)
            self._ready()
            if service == "pricing":
                return price_list(body, self._backend.region)
            params = dict(parse_qsl(body.decode(), keep_blank_values=True))
            action = params.get("Action", "")
            self.requests.append(action)
            self._check_rate(action, params)
            answer = self._backend.call(with_ports(params))
        except ApiError as error:
            return Answer(error.status, error.xml(str(uuid4())), {"Content-Type": "text/xml"})
        except Exception as error:  # noqa: BLE001 - the trace for us, EC2's form for the client
            _log.exception("the lab EC2 failed")
            broken = ApiError("InternalError", f"An internal error has occurred: {error!r}", 500)
            return Answer(500, broken.xml(str(uuid4())), {"Content-Type": "text/xml"})
        if action == "RunInstances" and answer.status == 200 and self._faults.take_lost_answer():
            self._lose_answer()
        return answer

    def _authenticate(self, environ: Environ, body: bytes) -> str:
        header = environ.get("HTTP_AUTHORIZATION", "")
        if not header:
            raise ApiError(
                "MissingAuthenticationToken", "Request is missing Authentication Token", 403
            )
        credential = parse_authorization(header)
        if credential is None:
            raise ApiError("IncompleteSignature", "Authorization is not AWS4-HMAC-SHA256", 400)
        secret = self._credentials.get(credential.key)
        if secret is None or not verify(
            credential,
            secret,
            method=environ["REQUEST_METHOD"],
            path=environ.get("PATH_INFO", "/"),
            query=environ.get("QUERY_STRING", ""),
            headers=_headers(environ),
            body=body,
        ):
            raise ApiError(
                "AuthFailure",
                "AWS was not able to validate the provided access credentials",
                401,
            )
        if credential.service not in ("ec2", "pricing"):
            raise errors.invalid(f"The lab has no {credential.service}", "UnknownEndpoint")
        if credential.service == "ec2" and credential.region != self._backend.region:
            raise errors.invalid(
                f"The lab has the region {self._backend.region}, not {credential.region}",
                "UnknownEndpoint",
            )
        return credential.service

    def _check_rate(self, action: str, params: Mapping[str, str]) -> None:
        instances = sum(key.startswith("InstanceId.") for key in params)
        if action == "RunInstances" and params.get("MaxCount", "").isdigit():
            instances = int(params["MaxCount"])
        if not self._throttler.allows(action, self._clock(), self._faults.throttle, instances):
            raise errors.throttled()

    def _lose_answer(self) -> None:
        """Hold the connection until the faults are changed, then drop it."""
        with self._faults.changed:
            self._faults.changed.wait(LOST_ANSWER_LIMIT)
        raise AnswerLostError("the answer is lost on purpose")

    def _lab(self, method: str, path: str, body: bytes) -> Answer:
        try:
            given = json.loads(body) if body else {}
            if path == "/_lab/faults":
                if method == "POST":
                    self._faults.update(given)
                return _json(self._faults.shown())
            if path == "/_lab/interrupt" and method == "POST" and self._interrupt is not None:
                self._interrupt(str(given["instance"]), float(given.get("notice_s", 120)))
                return _json({})
            if path == "/_lab/rebalance" and method == "POST":
                self._backend.recommend_rebalance(str(given["instance"]))
                return _json({})
            if path == "/_lab/state":
                self._ready()
                now = self._clock()
                states = self._backend.states()
                bill = self._backend.ledger
                return _json(
                    {
                        "instances": {
                            i: {"state": state, "cost": str(bill.cost(now, i))}
                            for i, state in states.items()
                        },
                        "cost": str(bill.cost(now)),
                        "requests": len(self.requests),
                    }
                )
        except (UnknownFaultError, json.JSONDecodeError, KeyError, ValueError) as error:
            return _json({"error": str(error)}, 400)
        except ApiError as error:
            return _json({"error": error.message}, 400)
        return _json({"error": f"there is no {method} {path}"}, 404)


_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}


def _json(value: object, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _headers(environ: Mapping[str, Any]) -> dict[str, str]:
    found = {
        key.removeprefix("HTTP_").replace("_", "-").lower(): str(value)
        for key, value in environ.items()
        if key.startswith("HTTP_")
    }
    for key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if key in environ:
            found[key.replace("_", "-").lower()] = str(environ[key])
    return found
