"""The end of the lab EC2: nothing of an instance comes after it was closed."""

from __future__ import annotations

import threading
from typing import Any

from lab.cloud.faults import Faults
from lab.cloud.instance import Hypervisor
from lab.cloud.machines import Launch
from lab.cloud.network import Interface, Subnet
from lab.cloud.types import TYPES

_NOTHING: Any = None  # an instance that never boots needs neither a lab nor a network
_SUBNET = Subnet("subnet-a", "10.20.1.0/24")


def _launch(number: int) -> Launch:
    nic = Interface(f"eni-{number}", f"i-{number}", _SUBNET.id, "02:00:00:00:00:01", ("10.20.1.4",))
    return Launch(f"i-{number}", TYPES["t3.nano"], nic, _SUBNET, "vpc-1", first_boot=True)


def test_the_hypervisor_is_closed_when_each_end_was_told() -> None:
    """Telling an end syncs the network; after the fabric was closed that made a router again."""
    hypervisor = Hypervisor(_NOTHING, _NOTHING, Faults(boot_never=True))
    closed = threading.Event()
    told: list[str] = []
    early: list[str] = []

    def gone(instance_id: str, _by_guest: bool) -> None:
        if closed.wait(0.2):  # as long as close() would need to return too early
            early.append(instance_id)
        told.append(instance_id)

    hypervisor.gone = gone
    for number in range(3):
        hypervisor.power_on(_launch(number))
    hypervisor.close()
    closed.set()
    assert sorted(told) == ["i-0", "i-1", "i-2"]
    assert early == []
    assert hypervisor.instances == {}
