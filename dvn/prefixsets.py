"""Sets of prefixes joined to names or marks, made so that a search does not grow with the networks.

The kernel searches ranges that are joined to something in time that grows with their number
(nft_set_pipapo.c), and copies all of them at each change; what is exact it finds by a hash. So
prefixes of the usual length stand, by their network address, in an exact set of their own, and a
rule asks there with a mask; the others stand in a set of ranges. Measured among 10,000 networks,
the two searches that each packet meets were a quarter of what it costs.
"""

from __future__ import annotations

from collections.abc import Mapping

from dvn.values import Prefix

USUAL: Mapping[int, int] = {4: 24, 6: 64}
"""The usual length by IP version; RFC 4291, 2.5.1 for IPv6."""
_MASKS = {4: "255.255.255.0", 6: "ffff:ffff:ffff:ffff::"}


def exact(name: str, version: int) -> str:
    """The name of the exact set beside the set of ranges `name` (`prefix`, `sources`)."""
    return f"{name}{version}_{USUAL[version]}"


def place(name: str, prefix: Prefix) -> tuple[str, str]:
    """(the set that a prefix stands in, how it is written there)."""
    if prefix.prefixlen == USUAL[prefix.version]:
        return exact(name, prefix.version), str(prefix.network_address)
    return f"{name}{prefix.version}", str(prefix)


def masked(field: str, version: int) -> str:
    """What to look for in the exact set."""
    return f"{field} & {_MASKS[version]}"


def whole(address: str, version: int) -> str:
    """The prefix that an element of the exact set stands for."""
    return f"{address}/{USUAL[version]}"
