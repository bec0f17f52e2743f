"""Services as things of the kernel's state: seen, made and ended like routes and queues."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dvn.kernel.netlink import Socket
from dvn.kernel.things import Sight, Thing
from dvn.services.config import Service
from dvn.services.process import Process


class ServicesDriver:
    """One process serves all networks of a site: what changes is told to it at once."""

    kinds = frozenset({"service"})

    def observe(self, _socket: Socket, sight: Sight) -> Iterable[Thing]:
        return Process(sight.site).serving()

    def change(self, put: Sequence[Thing], gone: Sequence[Thing]) -> int:
        """Serve `put`, and not `gone` any more. Returns how many processes were told."""
        services = [thing for thing in (*put, *gone) if isinstance(thing, Service)]
        for site in sorted({service.site for service in services}):
            process = Process(site)
            wanted = {service.network: service for service in process.told()}
            for thing in gone:
                if isinstance(thing, Service) and thing.site == site:
                    wanted.pop(thing.network, None)
            for thing in put:
                if isinstance(thing, Service) and thing.site == site:
                    wanted[thing.network] = thing
            process.serve(tuple(wanted.values()))
        return len({service.site for service in services})
