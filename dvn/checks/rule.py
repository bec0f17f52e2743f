"""What every rule needs: what a file declared, paths, and words."""

from __future__ import annotations

from dataclasses import dataclass

from dvn.problems import Path_
from dvn.values import Address, Prefix


@dataclass(frozen=True)
class Declared:
    """What a file names, also where the thing itself is wrong and so not in the `Site`:
    to refer to that is not a second mistake. `networks`: (tenant, network)."""

    networks: frozenset[tuple[str, str]]
    underlay: bool


def net_path(tenant: str, network: str, *rest: str | int) -> Path_:
    return ("tenants", tenant, "networks", network, *rest)


def is_reserved(address: Address, prefix: Prefix) -> bool:
    if address == prefix.network_address:
        return True
    return prefix.version == 4 and address == prefix.broadcast_address


def listed(prefixes: tuple[Prefix, ...]) -> str:
    return " and ".join(map(str, prefixes))
