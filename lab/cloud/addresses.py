"""Public addresses of moto's resources, out of the lab's pool instead of moto's imagination."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lab.cloud.errors import ApiError
from lab.cloud.pool import AddressPool, PoolEmptyError


class PublicAddresses:
    """Replaces a moto backend's allocation of Elastic IPs and looks after automatic addresses."""

    def __init__(self, backend: Any, pool: AddressPool) -> None:
        self._backend = backend
        self._pool = pool
        self._automatic: dict[str, str] = {}  # interface -> its address that is no Elastic IP
        self._allocate = backend.allocate_address
        self._release = backend.release_address
        backend.allocate_address = self.allocate
        backend.release_address = self.release

    def allocate(
        self, domain: str, address: str | None = None, tags: dict[str, str] | None = None
    ) -> Any:
        """AllocateAddress."""
        return self._allocate(domain, self._take(address), tags)

    def release(self, address: str | None = None, allocation_id: str | None = None) -> None:
        """ReleaseAddress; EC2 refuses it while the address is associated, moto does not."""
        public = address
        if allocation_id:
            found = self._backend.address_by_allocation([allocation_id])[0]
            if found.association_id:
                raise ApiError(
                    "InvalidIPAddress.InUse",
                    f"Address with allocation id {allocation_id} is in use: disassociate it first",
                )
            address, public = None, found.public_ip
        self._release(address=address, allocation_id=allocation_id)
        if public:
            self._pool.give_back(public)

    def disassociate(self, instance: Any) -> None:
        """Take all Elastic IPs from an instance."""
        nics = list(instance.nics.values())
        for address in list(self._backend.addresses):
            if address.instance is instance or address.eni in nics:
                self._backend.disassociate_address(association_id=address.association_id)

    def settle(self, instances: Iterable[Any]) -> None:
        """Put right what moto's own steps left at the instances' interfaces."""
        for instance in instances:
            for nic in instance.nics.values():
                self._settle(nic)

    def _settle(self, nic: Any) -> None:
        if nic.public_ip and self._moved_on(nic):
            nic.public_ip = None
        before = self._automatic.get(nic.id)
        if nic.public_ip and nic.public_ip not in self._pool:
            nic.public_ip = self._take()  # moto made one up
            self._automatic[nic.id] = nic.public_ip
        if before and before != nic.public_ip:
            self._pool.give_back(before)
            if self._automatic[nic.id] == before:
                del self._automatic[nic.id]

    def _moved_on(self, nic: Any) -> bool:
        owners = [a for a in self._backend.addresses if a.public_ip == nic.public_ip]
        return any(a.eni is not nic for a in owners)

    def _take(self, wanted: str | None = None) -> str:
        try:
            return self._pool.take(wanted)
        except PoolEmptyError as error:
            raise ApiError("AddressLimitExceeded", str(error)) from error
