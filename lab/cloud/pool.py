"""The public addresses the lab cloud gives out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network


class PoolEmptyError(Exception):
    """No public address is free."""


class AddressPool:
    """Gives the address that was longest unused: a recycled address confuses least."""

    def __init__(self, network: str, reserved: Iterable[str] = ()) -> None:
        self.network = IPv4Network(network)
        kept = {IPv4Address(a) for a in reserved}
        self._free = deque(str(a) for a in self.network.hosts() if a not in kept)

    def take(self, wanted: str | None = None) -> str:
        """An address, or just the wanted one. Raises `PoolEmptyError`."""
        if wanted is not None:
            if wanted not in self._free:
                raise PoolEmptyError(f"the public address {wanted} is not free")
            self._free.remove(wanted)
            return wanted
        if not self._free:
            raise PoolEmptyError(f"all public addresses of {self.network} are in use")
        return self._free.popleft()

    def give_back(self, address: str) -> None:
        """The address may be given again. A foreign one is ignored."""
        if IPv4Address(address) in self.network and address not in self._free:
            self._free.append(address)

    def __contains__(self, address: object) -> bool:
        return isinstance(address, str) and IPv4Address(address) in self.network
