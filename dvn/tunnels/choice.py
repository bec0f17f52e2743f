"""What carries a tunnel: what the file says, or for `auto` what was found to be best."""

from __future__ import annotations

from collections.abc import Iterator

from dvn.checks.transports import may_become
from dvn.kernel.state import Host
from dvn.spec import Site, Tunnel
from dvn.spec.tunnel import Carried


def carried(host: Host, tunnel: Tunnel) -> Carried | None:
    """None for `auto` until its path has been probed: a tunnel is made when it is known how."""
    if tunnel.transport != "auto":
        return tunnel.transport
    chosen = host.chosen.get(tunnel.full_name)
    return next((each for each in may_become(tunnel) if each == chosen), None)


def waiting(site: Site, host: Host) -> Iterator[str]:
    """A word for each tunnel that is not made, since nothing is known that can carry it."""
    for tunnel in site.tunnels():
        if carried(host, tunnel) is None:
            yield (
                f"tunnel {tunnel.full_name} is not made: nobody knows what its path lets through; "
                "run `dvn tunnel probe` on both ends"
            )
