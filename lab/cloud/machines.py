"""What carries an instance: the protocol between the EC2 API and the lab's hypervisor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from lab.cloud.network import Interface, Subnet, Vpc
from lab.cloud.types import InstanceType


@dataclass(frozen=True, slots=True)
class Launch:
    """All that is fixed when an instance is powered on."""

    id: str
    type: InstanceType
    nic: Interface
    subnet: Subnet
    vpc: str
    first_boot: bool  # cloud-init runs user data only then


class Machines(Protocol):
    """The hypervisor. The calls return at once; what became of them is told by the API's
    `powered_on` and `powered_off`."""

    def power_on(self, launch: Launch) -> None: ...

    def power_off(self, instance_id: str) -> None:
        """At once; `powered_off` follows, also when it was off already."""

    def console(self, instance_id: str) -> str:
        """What the machine wrote to its console."""


class Network(Protocol):
    """The packet side."""

    def sync(self, vpcs: tuple[Vpc, ...]) -> None:
        """Make the rules and routes these, before returning."""
