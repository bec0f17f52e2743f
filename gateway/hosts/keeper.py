"""The gateway's side of its hosts, put together: reports, service and server; what is shown."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address

from burst.join.userdata import inner_mac
from dvn.spec import Site
from gateway.hosts.reports import Reports
from gateway.hosts.service import LIMITS, HostService
from gateway.https import HttpsServer
from gateway.sitefile import SiteFile
from gateway.tls import TlsIdentity
from gateway.tokens import SiteSecret

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HostView:
    """A host as it is shown. `seen`: when it asked last, since the daemon's start; `current`:
    whether it has its part of the site as it is now."""

    name: str
    seen: datetime | None
    current: bool
    machines: int
    error: str
    problems: tuple[str, ...]


class HostKeeper:
    """`serve` first, then `listen` as often as one likes."""

    def __init__(
        self,
        file: SiteFile,
        reports: Reports,
        secret: SiteSecret,
        identity: TlsIdentity,
        clock: Callable[[], datetime],
    ) -> None:
        self._file = file
        self._secret = secret
        self._identity = identity
        self._clock = clock
        self._service: HostService | None = None
        self._server: HttpsServer | None = None
        self._listening = False
        self.reports = reports
        self.error = ""
        self.since: datetime | None = None  # since when it listens, or does not

    def serve(self, site_now: Callable[[], Site], changed: Callable[[], None]) -> None:
        underlay, listen = self._file.site.underlay, self._file.gateway.hosts
        assert underlay is not None, "checks/hosts.py sees to it"
        self._service = HostService(
            self._file.site,
            self.reports,
            self._secret,
            site_now=site_now,
            changed=changed,
            clock=self._clock,
        )
        self._server = HttpsServer(
            self._service,
            address=str(listen.address or underlay.address[0]),
            port=listen.port,
            identity=self._identity,
            what="the hosts' server",
            where="gateway.hosts",
            limits=LIMITS,
        )

    def listen(self) -> None:
        """An address that is not there yet is tried again the next time."""
        if self._server is None or self._listening:
            return
        try:
            self._server.start()
        except OSError as error:
            if str(error) != self.error:
                log.error("event=no-hosts error=%r", str(error))
                self.since = self._clock()
            self.error = str(error)
        else:
            log.info("event=hosts url=%s", self._server.url)
            self._listening, self.error, self.since = True, "", self._clock()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
        self._listening = False

    def invitation(self, host: str) -> str:
        """The text of the agent's file on a host. KeyError if the site has none of this name."""
        assert self._service is not None
        underlay, port = self._file.site.underlay, self._file.gateway.hosts.port
        token = self._service.token(host)
        assert underlay is not None
        own = {a.version for a in self._file.site.hosts[host].underlay.address}
        outside = next(a for v in (4, 6) if v in own and (a := underlay.outside(v)))
        where = f"[{outside}]" if outside.version == 6 else str(outside)
        lines = {
            "host": host,
            "gateway": f"https://{where}:{port}",
            "pin": self._identity.pin,
            "token": token,
        }
        text = "".join(f"{key}: {value}\n" for key, value in lines.items())
        return f"# For root on {host} alone: who has it is believed to be that host.\n{text}"

    def views(self, site: Site) -> Iterator[HostView]:
        """`site`: as it is now."""
        heard = self.reports.heard()
        for name in self._file.site.hosts:
            last = heard.get(name)
            state = last.state if last else {}
            refused = tuple(str(one) for _nic, one in self.reports.refused(name))
            wrong = tuple(f"{each} (on {name})" for each in state.get("wrong", ()))
            yield HostView(
                name,
                last.at if last else None,
                bool(last and self._service and self._service.version(name, site) == last.version),
                len(self.reports.machines(name)),
                str(state.get("error", "")),
                (*refused, *wrong, *state.get("notes", ())),
            )


def make_hosts(file: SiteFile, clock: Callable[[], datetime]) -> HostKeeper | None:
    """None for a site of one host. One that has a `fabric` and no hosts any more still tells the
    last of them so. Raises SecretError, TlsError."""
    site, directory = file.site, file.gateway.state_directory
    if site.fabric is None or site.underlay is None:
        return None
    outside = str(site.underlay.outside(4) or site.underlay.outside(6))
    return HostKeeper(
        file,
        Reports(site, directory, dict(_reserved(file))),
        SiteSecret.load_or_create(directory),
        TlsIdentity.load_or_create(directory, outside, clock()),
        clock,
    )


def _reserved(file: SiteFile) -> Iterator[tuple[tuple[str, str], Mapping[object, str]]]:
    """What borrowed machines may come to have, by (tenant, network)."""
    found: dict[tuple[str, str], dict[object, str]] = {}
    for name, pool in file.burst.pools.items() if file.burst else ():
        some = found.setdefault((pool.tenant, pool.network), {})
        for address in pool.addresses:
            some |= {ip_address(address): f"pool {name}", inner_mac(address): f"pool {name}"}
    yield from found.items()
