"""What the daemon measured of the tunnels of leases, for pictures and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dvn import addresses
from dvn.diagnose.topology import Seen, State

_ID = 15  # characters of a lease's id in its tunnel's name (loops/network.py, tunnel_name)


def measured(leases: Iterable[Mapping[str, Any]]) -> dict[str, Seen]:
    """By device, from the API's list of leases; those without a tunnel yet are not in it."""
    found = {}
    for lease in leases:
        link = lease.get("link")
        if not link:
            continue
        device = addresses.tunnel_name(lease["tenant"], f"l{lease['id'][:_ID]}")
        words = [link["detail"]] if link["detail"] else []
        if link["rtt_ms"] is not None:
            words.append(f"{link['rtt_ms']:.1f} ms")
        if link["loss"]:
            words.append(f"{link['loss']:.0%} lost")
        found[device] = Seen(State(link["state"]), ", ".join(words))
    return found
