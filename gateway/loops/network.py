"""The network loop: the tunnels that leases need, in the kernel; and how those tunnels fare."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import AddressValueError, IPv4Address
from typing import Any, Protocol

from burst.join.userdata import inner_mac
from burst.model import Lease, LeaseState, LinkHealth
from dvn.agent_client import AgentError, AgentUnavailable
from dvn.located import SpecError
from dvn.spec import Site, Tunnel
from dvn.status import Applied, Probe, TunnelStatus
from gateway.loops.backoff import Backoff
from gateway.loops.links import Counters, Watch

log = logging.getLogger(__name__)

_TUNNELLED = frozenset(
    {
        LeaseState.BOOTING,
        LeaseState.TUNNELLED,
        LeaseState.JOINED,
        LeaseState.DRAINING,
        LeaseState.LEAVING,
        # Not TERMINATING: no node registers again while its machine is ended (burst/round.py).
    }
)
PROBE_TIMEOUT_S = 1.0
LONG_OUTAGE = timedelta(seconds=10)
_PROBING = timedelta(seconds=6)  # in one round; who was not probed is first in the next


class Agent(Protocol):
    """What the loop needs of `dvn.agent_client.AgentClient`."""

    def apply(self, site: Site) -> Applied: ...

    def tunnels(self, site_name: str | None = None) -> Mapping[str, TunnelStatus]: ...

    def probe(self, address: str, network: str, count: int = 1, timeout: float = 1.0) -> Probe: ...

    def drift(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class NetworkView:
    """What the burst loop and the status may know; replaced as a whole after each round."""

    links: Mapping[str, LinkHealth] = field(default_factory=dict)  # by lease id
    error: str = "the network was not set up yet"
    since: datetime | None = None  # since when `error` is what it is
    applied: datetime | None = None  # the last time the kernel was made as wanted
    failures: int = 0
    retry_at: datetime | None = None
    recovered: datetime | None = None  # the end of the last long outage


def tunnel_name(lease: Lease) -> str:
    return f"l{lease.id[:15]}"


def has_tunnel(lease: Lease) -> bool:
    """From when its machine has shown its token until its node is removed.

    Not before: until then the address may be somebody else's (cloud addresses are used again), and
    a machine that has no tunnel yet would answer our packets with ICMP errors.
    """
    return has_link(lease) and not in_network(lease)


def in_network(lease: Lease) -> bool:
    """Whether the machine is in its tenant's network from the start, as a hypervisor's is: then
    it is reached at its address there, and needs no tunnel."""
    return bool(lease.underlay) and lease.underlay == lease.address


def has_link(lease: Lease) -> bool:
    """Whether packets to the machine say something of its health."""
    return lease.state in _TUNNELLED and bool(lease.underlay) and lease.enrolled is not None


def wanted_tunnels(leases: Iterable[Lease]) -> tuple[Tunnel, ...]:
    """One for each lease that has one now; a lease with an impossible address is left out.

    What comes out of a lease's tunnel has the lease's address, and the MAC address that its
    machine gives the tunnel device (burst/join/userdata.py).
    """
    tunnels = []
    for lease in leases:
        if not has_tunnel(lease):
            continue
        try:
            remote, address = IPv4Address(lease.underlay), IPv4Address(lease.address)
        except AddressValueError as error:
            log.warning("event=bad-address lease=%s error=%r", lease.id, error)
            continue
        tunnels.append(
            Tunnel(
                tenant=lease.tenant,
                name=tunnel_name(lease),
                network=lease.network,
                remote=remote,
                key=lease.gre_key,
                addresses=(address,),
                macs=(inner_mac(str(address)),),
                dynamic=True,
            )
        )
    return tuple(tunnels)


class NetworkLoop:
    """One `round()`; the thread around it is `gateway.loops.loop.Loop`."""

    def __init__(
        self,
        *,
        site: Site,
        agent: Agent,
        leases: Callable[[], Sequence[Lease]],
        clock: Callable[[], datetime],
        reconcile: timedelta,
        changed: Callable[[], None] = lambda: None,
        machines: Callable[[Site], Site] = lambda site: site,
        backoff: Backoff | None = None,
    ) -> None:
        self._site = site
        self._agent = agent
        self._leases = leases
        self._clock = clock
        self._reconcile = reconcile
        self._changed = changed
        self._machines = machines
        self._composing = threading.Lock()
        self._wanted: tuple[Site, tuple[Tunnel, ...], Site] | None = None
        self._backoff = backoff or Backoff(timedelta(seconds=0.5), timedelta(seconds=10))
        self._applied: Site | None = None
        self._due: datetime | None = None
        self._notes: tuple[str, ...] = ()
        self._watches: dict[str, Watch] = {}
        self._turn: list[str] = []  # lease ids in the order of their last probe
        self.view = NetworkView()

    def round(self) -> None:
        now = self._clock()
        if self.view.retry_at is not None and now < self.view.retry_at:
            return
        leases = self._leases()
        tunnels = wanted_tunnels(leases)
        try:
            if self._compose(tunnels) is not self._applied or self._due is None or now >= self._due:
                self._apply(tunnels, now)
            self._observe([lease for lease in leases if has_link(lease)])
        except (AgentUnavailable, AgentError, SpecError) as error:
            self._applied = None
            self._failed(str(error))
            return
        self._backoff.success()
        self._show("", applied=self._due and self._due - self._reconcile)

    def _apply(self, tunnels: tuple[Tunnel, ...], now: datetime) -> None:
        wanted = self._compose(tunnels)
        applied = self._agent.apply(wanted)
        if applied.notes != self._notes:
            self._notes = applied.notes
            for note in applied.notes:
                log.warning("event=note note=%r", note)
        if applied.steps:
            log.info(
                "event=applied tunnels=%d steps=%d verified=%s",
                len(tunnels),
                len(applied.steps),
                applied.verified,
            )
        self._applied, self._due = wanted, now + self._reconcile

    def site_now(self) -> Site:
        """The site with the machines of its hosts, and the leases' tunnels of the last round."""
        return self._compose(self._wanted[1] if self._wanted else ())

    def _compose(self, tunnels: tuple[Tunnel, ...]) -> Site:
        """The same object until something changes."""
        with self._composing:
            base, known = self._machines(self._site), self._wanted
            if known is None or known[0] is not base or known[1] != tunnels:
                known = self._wanted = (base, tunnels, self.with_tunnels(tunnels, base))
            return known[2]

    def with_tunnels(self, tunnels: tuple[Tunnel, ...], base: Site | None = None) -> Site:
        """The site with the leases' tunnels; one that cannot be does not keep out the others."""
        base = base or self._site
        try:
            return base.with_tunnels(tunnels) if tunnels else base
        except SpecError:
            site, possible = base, list[Tunnel]()
            for tunnel in tunnels:
                try:
                    site = base.with_tunnels([*possible, tunnel])
                except SpecError as error:
                    log.warning("event=impossible-tunnel tunnel=%s error=%r", tunnel.name, error)
                else:
                    possible.append(tunnel)
            return site

    def _observe(self, leases: Sequence[Lease]) -> None:
        now = self._clock()
        wanted = {lease.id: lease for lease in leases}
        self._watches = {
            lease_id: self._watches.get(lease_id) or Watch.begin(now) for lease_id in wanted
        }
        if not wanted:
            return
        counted = self._agent.tunnels(self._site.site)
        for lease_id, lease in wanted.items():
            status = counted.get(f"{lease.tenant}/{tunnel_name(lease)}")
            if status is not None:
                counters = Counters(status.rx_packets, status.tx_packets)
                self._watches[lease_id] = self._watches[lease_id].counted(now, counters)
        self._probe(wanted, now + _PROBING)

    def _probe(self, wanted: Mapping[str, Lease], until: datetime) -> None:
        turn = [lease_id for lease_id in self._turn if lease_id in wanted]
        turn += [lease_id for lease_id in wanted if lease_id not in turn]
        probed: list[str] = []
        for lease_id in turn:
            if not self._watches[lease_id].needs_probe:
                continue
            if self._clock() >= until:
                break
            lease = wanted[lease_id]
            network = f"{lease.tenant}/{lease.network}"
            answer = self._agent.probe(lease.address, network, 1, PROBE_TIMEOUT_S)
            watch, now = self._watches[lease_id], self._clock()
            self._watches[lease_id] = (
                watch.unanswered(now, answer.detail or "no answer to a ping")
                if answer.rtt_ms is None
                else watch.answered(now, answer.rtt_ms)
            )
            probed.append(lease_id)
        self._turn = [lease_id for lease_id in turn if lease_id not in probed] + probed

    def _failed(self, error: str) -> None:
        if error != self.view.error:
            log.warning("event=no-network error=%r", error)
        wait = self._backoff.failure()
        self._show(error, applied=self.view.applied, retry_at=self._clock() + wait)

    def _show(
        self, error: str, *, applied: datetime | None, retry_at: datetime | None = None
    ) -> None:
        before = self.view
        now = self._clock()
        # While nobody can look, nothing is known: neither up nor down.
        watches = {} if error else self._watches
        links = {lease_id: watch.health for lease_id, watch in watches.items()}
        for lease_id, health in links.items():
            old = before.links.get(lease_id)
            if old is None or old.up != health.up:
                log.info("event=link lease=%s up=%s detail=%r", lease_id, health.up, health.detail)
        same = before.since is not None and bool(before.error) == bool(error)
        long = before.since is not None and now - before.since >= LONG_OUTAGE
        self.view = NetworkView(
            links=links,
            error=error,
            since=before.since if same else now,
            recovered=now if before.error and not error and long else before.recovered,
            applied=applied,
            failures=self._backoff.failures,
            retry_at=retry_at,
        )
        if bool(before.error) != bool(error) or any(
            lease_id not in before.links or before.links[lease_id].up != health.up
            for lease_id, health in links.items()
        ):
            self._changed()
