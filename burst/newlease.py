"""A new lease, wanted: with what no other may have, an inner address and a GRE key."""

from __future__ import annotations

from collections import deque
from decimal import Decimal

from burst.model import Lease, LeaseState, Offer, Pool
from burst.round import Round

_GRE_KEYS_OF_LEASES = 0x8000_0000  # the upper half: the site file's own tunnels use the lower


def want(
    paper: Round,
    pool: Pool,
    offer: Offer,
    reserve: Decimal,
    address: str,
    keys: set[int],
    *,
    flash: str = "",
) -> Lease:
    """One more machine of the offer, written on the paper. `keys` are the GRE keys in use; the new
    one is added. `flash` is the id of the request that it is rented for."""
    name = paper.new_id()
    lease = Lease(
        id=name,
        pool=pool.name,
        tenant=pool.tenant,
        network=pool.network,
        provider=pool.provider,
        type=offer.type,
        zone=offer.zone,
        cores=offer.cores,
        memory_mb=offer.memory_mb,
        price_per_hour=offer.price_per_hour,
        state=LeaseState.WANTED,
        node=f"{pool.name}-{name[:8]}",
        address=address,
        gre_key=gre_key(name, keys),
        wanted=paper.world.now,
        reserved=reserve if offer.price_per_hour else Decimal(0),
        spot=offer.spot,
        unit=offer.unit,
        flash=flash,
    )
    paper.keep(lease)
    paper.by_pool.setdefault(pool.name, []).append(name)
    paper.wants.append(lease)
    return lease


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
    fresh = [address for address in free if address not in last_used]
    rested = [address for address in free if address in last_used]
    return deque([*fresh, *sorted(rested, key=last_used.__getitem__)])
