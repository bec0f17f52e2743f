"""What a new lease needs that no other may have: an inner address and a GRE key."""

from __future__ import annotations

from collections import deque

from burst.model import Pool
from burst.round import Round

_GRE_KEYS_OF_LEASES = 0x8000_0000  # the upper half: the site file's own tunnels use the lower


def gre_key(name: str, used: set[int]) -> int:
    """A key from the id, so that it is known before anything is stored; the next one if taken."""
    key = int(name[:8], 16) | _GRE_KEYS_OF_LEASES
    while key in used:
        key = (key + 1) % 2**32 | _GRE_KEYS_OF_LEASES
    used.add(key)
    return key


def free_addresses(paper: Round, pool: Pool) -> deque[str]:
    """Free inner addresses of the pool, those out of use for longest first: what others still
    remember of an address (ARP, conntrack) has then had time to fade."""
    used = {node.address for node in paper.world.nodes.values() if node.address}
    last_used: dict[str, float] = {}
    for lease in paper.leases.values():
        if (lease.tenant, lease.network) != (pool.tenant, pool.network):
            continue
        if lease.living:
            used.add(lease.address)
        elif lease.ended is not None:
            instant = lease.ended.timestamp()
            last_used[lease.address] = max(instant, last_used.get(lease.address, 0.0))
    free = [address for address in pool.addresses if address not in used]
    return deque(sorted(free, key=lambda address: last_used.get(address, 0.0)))
