"""What a hypervisor's agent does: follow the gateway's word, and keep to the last one without it.

Each round looks at the machines that run, says so to the gateway, and makes the kernel as this
host's part of the site wants it: the part as it was told last, from a file if need be, and the
machines' own ports. A machine gets its network as soon as it runs; the gateway hears of it and has
the last word: a NIC that it refuses leaves the network again. Whoever is in no network reaches not
even this host.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Protocol

from dvn.change.files import ChangeError
from dvn.hosts.gateway import Gateway, GatewayAway, GatewayRefuses, Told
from dvn.hosts.joining import Nic, Refused, join
from dvn.hosts.kept import Kept, KeptPart
from dvn.hosts.slices import narrowed
from dvn.hosts.virtual import Machines
from dvn.problems import SpecError
from dvn.spec import Site, site_from_json

log = logging.getLogger(__name__)


class Network(Protocol):
    """This host's network, as the agent has it."""

    def apply(self, part: Site) -> tuple[str, ...]:
        """Make it so; returns notes on what was left out. Raises RuntimeError, SpecError."""

    def destroy(self, site: str) -> None:
        """Take all of the site away. Raises RuntimeError."""


@dataclass(frozen=True)
class FollowerStatus:
    """For people and for the gateway. `since`: when the gateway's state last changed."""

    host: str
    gateway: str = "not asked yet"  # "answers", or why not
    since: str = ""
    version: str = ""
    networks: int = 0
    ports: int = 0
    error: str = ""
    notes: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


class Follower:
    """One `round()` at a time; `run` makes one each `interval` seconds, or when woken."""

    def __init__(
        self,
        *,
        host: str,
        gateway: Gateway,
        machines: Callable[[], Machines | None],
        network: Network,
        kept: KeptPart,
        now: Callable[[], datetime],
        interval: float,
    ) -> None:
        self._host = host
        self._gateway = gateway
        self._machines = machines
        self._network = network
        self._store = kept
        self._now = now
        self._interval = interval
        self._kept = kept.load()
        self._part = self._read(self._kept.site)
        self._refused: dict[tuple[str, str], str] = {}
        self._applied: Site | None = None
        self._woken = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self.run, name="follower", daemon=True)
        self.status = FollowerStatus(host)

    def start(self) -> None:
        self._thread.start()

    def stop(self, patience_s: float) -> None:
        self._stopping = True
        self.wake()
        if self._thread.ident is not None:
            self._thread.join(patience_s)

    def wake(self) -> None:
        """Do not wait for the interval: something happened."""
        self._woken.set()

    def run(self) -> None:
        while not self._stopping:
            self._woken.clear()
            try:
                self.round()
            except (OSError, ChangeError) as error:  # the disk is full, say
                log.error("event=round-failed error=%r", str(error))
            self._woken.wait(self._interval)

    def round(self) -> None:
        """Raises OSError or ChangeError if what is known cannot be kept; all else is status."""
        self._look()
        # Before the gateway is asked: it may take its time, or be away.
        self._settle()
        try:
            told = self._gateway.report(
                self._kept.version if self._part else "", self._kept.nics, self._state()
            )
        except GatewayAway as error:
            self._show_gateway(str(error))
        except GatewayRefuses as error:
            self._show_gateway(str(error))
            if error.gone:
                self._leave()
        else:
            self._hear(told)
            self._settle()
        self._store.show(asdict(self.status))

    def _look(self) -> None:
        seen = self._machines()
        if seen is not None and seen != Machines(self._kept.nics, self._kept.wrong):
            self._keep(nics=seen.nics, wrong=seen.wrong)

    def _keep(self, **values: Any) -> None:
        self._kept = Kept(**{**vars(self._kept), **values})
        self._store.save(self._kept)

    def _state(self) -> dict[str, Any]:
        status = self.status
        return {"error": status.error, "notes": status.notes, "wrong": _words(self._kept.wrong)}

    def _hear(self, told: Told) -> None:
        self._refused = dict(told.refused)
        if told.site is not None:
            part = self._read(told.site)
            if part is None:
                self._show_gateway("answers with what is not a part of a site for this host")
                return
            self._part = part
            self._keep(version=told.version, site=told.site)
            log.info("event=part version=%s", told.version[:12])
        self._show_gateway("answers")

    def _read(self, site: object | None) -> Site | None:
        if site is None:
            return None
        try:
            part = site_from_json(site)
        except SpecError as error:
            log.error("event=bad-part error=%r", str(error))
            return None
        return part if part.here == self._host else None

    def _settle(self) -> None:
        """Make the kernel as it is to be, if it is not."""
        if self._part is None:
            return
        joined = join(
            _without_machines(self._part, self._host), [(self._host, n) for n in self._allowed()]
        )
        refused = (*joined.refused, *self._refused_here())
        closed = {one.interface for one in refused} | {w.interface for w in self._kept.wrong}
        wanted = narrowed(joined.site).model_copy(update={"closed": tuple(sorted(closed - {""}))})
        self._show(refused=(*map(str, refused), *_words(self._kept.wrong)))
        if wanted == self._applied:
            return
        try:
            notes = self._network.apply(wanted)
        except (RuntimeError, SpecError) as error:
            self._applied = None
            if str(error) != self.status.error:
                log.error("event=not-applied error=%r", str(error))
            self._show(error=str(error))
            return
        # With notes something was left out that may come: then the next round tries again.
        self._applied = None if notes else wanted
        ports = sum(len(net.on(self._host)) for _t, _n, net in wanted.networks())
        networks = sum(1 for _ in wanted.networks())
        self._show(error="", notes=notes, networks=networks, ports=ports)
        log.info("event=applied networks=%d ports=%d", networks, ports)

    def _allowed(self) -> list[Nic]:
        return [nic for nic in self._kept.nics if (nic.interface, nic.mac) not in self._refused]

    def _refused_here(self) -> list[Refused]:
        return [
            Refused(self._host, nic.interface, nic.machine, why)
            for nic in self._kept.nics
            if (why := self._refused.get((nic.interface, nic.mac)))
        ]

    def _leave(self) -> None:
        """This host is not of the site any more: nothing of it stays."""
        if self._part is None:
            return
        log.warning("event=not-of-this-site host=%s", self._host)
        try:
            self._network.destroy(self._part.site)
        except RuntimeError as error:
            self._show(error=str(error))
            return
        self._part, self._applied = None, None
        self._keep(version="", site=None)
        self._show(networks=0, ports=0)

    def _show_gateway(self, words: str) -> None:
        if words != self.status.gateway:
            log.log(
                logging.INFO if words == "answers" else logging.WARNING,
                "event=gateway is=%r",
                words,
            )
            self._show(gateway=words, since=self._now().isoformat(timespec="seconds"))

    def _show(self, **values: Any) -> None:
        version = self._kept.version[:12]
        self.status = FollowerStatus(**{**vars(self.status), "version": version, **values})


def _without_machines(part: Site, host: str) -> Site:
    """Without the ports of this host's machines: which there are, we know better."""
    tenants = {}
    for name, tenant in part.tenants.items():
        networks = {
            key: net.model_copy(
                update={"ports": tuple(p for p in net.ports if not (p.dynamic and p.host == host))}
            )
            for key, net in tenant.networks.items()
        }
        tenants[name] = tenant.model_copy(update={"networks": networks})
    return part.model_copy(update={"tenants": tenants})


def _words(wrong: Iterable[Any]) -> tuple[str, ...]:
    return tuple(f"{one.interface or 'a NIC'} of {one.machine}: {one.why}" for one in wrong)
