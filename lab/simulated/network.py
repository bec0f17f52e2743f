"""Tunnels: up when both ends are there and the path between them passes packets."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from burst.model import Lease, LinkHealth
from gateway.loops.network import NetworkView, has_tunnel
from lab.simulated.site import EPOCH

if TYPE_CHECKING:
    from lab.simulated.guests import Guest
    from lab.simulated.world import World

_NOTICED = timedelta(seconds=6)  # until a silent tunnel is called down
_LONG = timedelta(seconds=10)


class SimulatedNetwork:
    """The gateway's side follows the leases, as the network loop makes it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._ends: dict[str, Lease] = {}  # by lease id: the tunnels that are in the kernel
        self._links: dict[str, LinkHealth] = {}
        self._last: dict[str, datetime] = {}  # when a packet last came
        self._since = EPOCH
        self._error = ""
        self._recovered: datetime | None = None
        self._away_until = EPOCH
        self._begun: datetime | None = None

    def restart(self) -> None:
        """The daemon is new: its tunnels stay in the kernel, what it knew of them is gone."""
        self._links.clear()
        self._error, self._begun = "the network was not set up yet", None
        self._since = self.world.gateway_now()
        self._recovered = None

    def passes(self, guest: Guest) -> bool:
        lease_id = self.world.lease_of(guest.instance)
        end = self._ends.get(lease_id)
        return end is not None and end.underlay == guest.instance.address and guest.tunnel_works()

    def view(self) -> NetworkView:
        """A round of the network loop, and what it shows."""
        world = self.world
        now = world.gateway_now()
        if world.chance(world.faults.outage):
            self._away_until = world.now + timedelta(seconds=world.rng.uniform(5, 40))
        error = "the agent restarts" if world.now < self._away_until else ""
        if bool(error) != bool(self._error):
            long = now - self._since >= _LONG
            self._recovered = now if not error and long else self._recovered
            self._since = now
        self._error = error
        if error:
            return NetworkView(error=error, since=self._since, recovered=self._recovered)
        leases = {lease.id: lease for lease in world.living() if has_tunnel(lease)}
        self._ends = leases
        known, self._links = self._links, {}
        for lease_id in leases:
            guest = world.guest_of(lease_id)
            up = guest is not None and self.passes(guest)
            if up:
                self._last[lease_id] = world.now
            elif lease_id in self._last and world.now - self._last[lease_id] < _NOTICED:
                up = True
            old = known.get(lease_id)
            since = old.since if old is not None and old.up == up else now
            self._links[lease_id] = LinkHealth(up=up, since=since)
        return NetworkView(
            links=dict(self._links), error="", recovered=self._recovered, applied=now
        )
