"""What hosts ask of the gateway, and its answers (dvn/hosts/gateway.py has the words).

A host shows its token. It is refused with 410 when the site file names it no more, so that it takes
down what it has; with 403 when its token is void or no token, so that it keeps what it has.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dvn.hosts.joining import nics_from_json
from dvn.hosts.slices import slice_of, version_of
from dvn.spec import Site
from gateway.enrolment import Answer, RequestError
from gateway.hosts.reports import Heard, Reports
from gateway.limits import Limits
from gateway.tokens import SiteSecret

log = logging.getLogger(__name__)

# A host asks every few seconds, and a hypervisor may have a thousand machines.
LIMITS = Limits(
    connections=256, body=1 << 20, deadline=30.0, requests_burst=200, requests_rate=50.0
)
_STATE_LENGTH = 2000


@dataclass(frozen=True)
class _Part:
    site: Site  # of which it was made
    version: str
    json: dict[str, Any]


class HostService:
    """`site_now`: the site with all that runs; `changed` is called when a host says something
    new."""

    def __init__(
        self,
        site: Site,
        reports: Reports,
        secret: SiteSecret,
        *,
        site_now: Callable[[], Site],
        changed: Callable[[], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._hosts = site.hosts
        self._reports = reports
        self._secret = secret
        self._site_now = site_now
        self._changed = changed
        self._clock = clock
        self._parts: dict[str, _Part] = {}
        self._lock = threading.Lock()
        self.refusals = 0

    def answer(
        self, method: str, path: str, bearer: str, body: Mapping[str, Any], peer: str
    ) -> Answer:
        """The answer to one request."""
        try:
            if (method, path) != ("POST", "/host"):
                raise RequestError(404, "there is only POST /host")
            return self._host(bearer, body)
        except RequestError as error:
            if error.status == 403:
                self.refusals += 1
                log.warning("event=host-refused peer=%s error=%r", peer, str(error))
            return Answer(error.status, {"error": str(error)})

    def token(self, host: str) -> str:
        """What the host shows. KeyError if the site has no such host."""
        return self._secret.host_token(host, self._hosts[host].invitation)

    def _host(self, bearer: str, body: Mapping[str, Any]) -> Answer:
        name, invitation = self._secret.host_of_token(bearer) or ("", 0)
        if not name:
            raise RequestError(403, "the token is not recognised: invite this host again")
        host = self._hosts.get(name)
        if host is None:
            raise RequestError(410, f"{name} is no host of this site any more")
        if invitation != host.invitation:
            raise RequestError(403, f"the token of {name} was made void: invite it again")
        nics, wrong = nics_from_json(body.get("nics"))
        if wrong:
            log.warning("event=bad-nic host=%s error=%r", name, wrong)
        state, version = body.get("state"), str(body.get("version", ""))
        heard = Heard(self._clock(), version[:64], _state(state))
        if self._reports.report(name, nics, heard):
            self._changed()
        part = self._part(name, self._site_now())
        refused = [
            {"interface": nic.interface, "mac": nic.mac, "why": one.why}
            for nic, one in self._reports.refused(name)
        ]
        return Answer(
            200,
            {
                "version": part.version,
                "site": None if version == part.version else part.json,
                "refused": refused,
            },
        )

    def version(self, host: str, site: Site) -> str:
        """Of the host's part of the site."""
        return self._part(host, site).version

    def _part(self, host: str, site: Site) -> _Part:
        with self._lock:
            known = self._parts.get(host)
            if known is None or known.site is not site:
                part = slice_of(site, host)
                known = _Part(site, version_of(part), part.model_dump(mode="json"))
                self._parts[host] = known
            return known


def _state(value: object) -> dict[str, Any]:
    """What the host says of itself, for an operator's terminal: short, and without escapes."""
    if not isinstance(value, dict):
        return {}
    lists = {key: value.get(key) for key in ("notes", "wrong")}
    return {
        "error": _plain(value.get("error", "")),
        **{
            key: tuple(_plain(each) for each in some[:100]) if isinstance(some, list) else ()
            for key, some in lists.items()
        },
    }


def _plain(value: object) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(value))[:_STATE_LENGTH]
