"""The daemon: store, loops, enrolment and API put together, and taken apart in order.

Order of the start: what watches over machines that cost money comes first. The API's libraries
take seconds to load on a slow machine; its socket is there at once, and clients wait.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from datetime import datetime, timedelta

from burst.model import LeaseState
from gateway.api.server import ApiServer
from gateway.api.view import View
from gateway.loops.books import Books
from gateway.loops.burst import HOLD, BurstLoop
from gateway.loops.loop import Loop
from gateway.loops.network import NetworkLoop, NetworkView
from gateway.mixed import MixedMode
from gateway.parts import Joining, Parts
from gateway.sitefile import SiteFile
from gateway.steady import LastingClock
from gateway.store import Store

log = logging.getLogger(__name__)

_STOP_S = 30.0
_API_LATEST_S = 10.0  # its libraries wait so long for the first round
_HOUSEKEEPING = timedelta(minutes=10)
DRAINING = "the gateway is stopping and returns everything"


class Daemon:
    """Runs until `stop()`; `drain=True` first returns every machine."""

    def __init__(self, file: SiteFile, parts: Parts) -> None:
        self._file = file
        self._parts = parts
        self._stopping = threading.Event()
        self._drain = False
        self._returned = False
        self._enrol_error: str | None = ""  # None: it listens
        self._store = Store.open(file.gateway.state)
        self._clock = LastingClock(
            self._store, parts.clock, parts.monotonic, floor=self._store.latest_instant()
        )
        self._joining: Joining | None = None
        self._forget_draining()  # it may have been killed while it returned everything
        self.hosts = parts.hosts(file, self._clock)
        hosts = self.hosts
        self.network = NetworkLoop(
            site=file.site,
            agent=parts.agent(file),
            leases=self._store.leases,
            clock=self._clock,
            reconcile=file.gateway.reconcile,
            changed=self._wake_burst,
            machines=(lambda _site: hosts.reports.joined().site) if hosts else lambda site: site,
        )
        interval = file.gateway.interval
        self._network_loop = Loop(
            "network", self.network.round, interval=interval, clock=self._clock
        )
        if hosts:
            hosts.serve(self.network.site_now, self._network_loop.wake)
        self.burst = self._make_burst()
        self._burst_loop = Loop("burst", self._round, interval=interval, clock=self._clock)
        self._first_round = threading.Event()
        self._kept: datetime | None = None
        self.api = ApiServer(
            file.gateway.socket, file.gateway.socket_mode, file.gateway.socket_group
        )
        self.view = View(
            file=file,
            store=self._store,
            clock=self._clock,
            network=self.network,
            burst=self.burst,
            loops=lambda: (self._network_loop.status, self._burst_loop.status),
            enrolment=lambda: self._joining.server if self._joining else None,
            enrolment_error=lambda: self._enrol_error or "",
            wake=self._wake_burst,
            hosts=hosts,
            drift=parts.agent(file).drift,  # a connection of its own: no probe is in its way
        )

    def _make_burst(self) -> BurstLoop | None:
        config = self._file.burst
        if config is None:
            return None
        self._joining = self._parts.joining(self._file, self._store, self._clock)
        self._store.joins.changed = self._wake_burst
        books = Books(
            self._store, config.budgets, self._clock, self._network_loop.wake, config.quotas
        )
        providers = {name: self._parts.provider(self._file, name) for name in config.providers}
        MixedMode(self._file, self._store).connect(providers)
        return BurstLoop(
            pools=self._file.pools,
            policy=self._file.policy,
            store=self._store,
            books=books,
            lrms=self._parts.lrms(config),
            providers=providers,
            rules=tuple(rule.rule() for rule in config.direct),
            user_data=self._joining.user_data,
            network=self._network_view,
            clock=self._clock,
            answer_timeout=self._file.gateway.answer_timeout,
            resumed=self._clock_resumed,
        )

    def _clock_resumed(self) -> datetime | None:
        return self._clock.jumped

    def _network_view(self) -> NetworkView:
        view = self.network.view
        if self._enrol_error and not view.error:
            return replace(view, error=self._enrol_error)  # who cannot join is not rented
        return view

    def _listen(self) -> None:
        """Start the servers for hosts and for enrolment; an address that is not there yet is tried
        again."""
        if self.hosts:
            self.hosts.listen()
        server = self._joining.server if self._joining else None
        if server is None or self._enrol_error is None:
            return
        try:
            server.start()
        except OSError as error:
            if self._enrol_error != str(error):
                log.error("event=no-enrolment error=%r", str(error))
            self._enrol_error = str(error)
        else:
            log.info("event=enrolment url=%s", server.url)
            self._enrol_error = None

    def _wake_burst(self) -> None:
        self._burst_loop.wake()

    def run(self) -> None:
        """Work until `stop()`. What was begun stays as it is: the next start goes on with it."""
        self.api.bind()
        self._network_loop.start()
        self._listen()
        self._burst_loop.start()
        self._first_round.wait(_API_LATEST_S)
        self.api.start(self.view)
        log.info("event=started site=%s socket=%s", self._file.site.site, self._file.gateway.socket)
        self._stopping.wait()
        if self._drain:
            self._return_everything()
        self._close()

    def stop(self, *, drain: bool = False) -> None:
        """End `run()`. Called again without `drain` it does not wait for machines any more."""
        self._drain = drain
        self._stopping.set()
        self._burst_loop.wake()

    def _round(self) -> None:
        self._clock.keep()
        self._listen()
        if self.burst is not None:
            self.burst.round()
        now = self._clock()
        if self._kept is None or now - self._kept >= _HOUSEKEEPING:
            self._kept = now
            self._store.prune(now - self._file.gateway.keep)
            self._store.note("heartbeat", now.isoformat())
        self._first_round.set()

    def _return_everything(self) -> None:
        self._store.note(HOLD, DRAINING)
        while self._drain:
            living = self._store.leases()
            self._returned = not living
            if self._returned:
                break
            for lease in living:  # each time: a round under way may have wanted one more
                if not lease.drain_requested:
                    self._store.request_drain(lease.id, DRAINING, self._clock())
            waiting = sum(lease.state is not LeaseState.TERMINATING for lease in living)
            log.info("event=draining leases=%d jobs-or-nodes-left=%d", len(living), waiting)
            self._burst_loop.wake()
            self._network_loop.wake()
            threading.Event().wait(self._file.gateway.interval.total_seconds())

    def _forget_draining(self) -> None:
        if self._store.notes().get(HOLD) == DRAINING:
            self._store.note(HOLD, "")

    def _close(self) -> None:
        for loop in (self._burst_loop, self._network_loop):
            if not loop.stop(_STOP_S):
                log.warning("event=slow-stop loop=%s waited_s=%d", loop.name, _STOP_S)
        self._forget_draining()  # not before: a last round would rent for the queue that is left
        if self._returned:
            self.network.round()  # the last lease ended after the loop's last look, perhaps
        if self._joining is not None and self._joining.server is not None:
            self._joining.server.stop()
        if self.hosts:
            self.hosts.stop()
        self.api.stop()
        self._store.close()
        log.info("event=stopped")
