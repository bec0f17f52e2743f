"""One heartbeat of many TARDIS drones, and one step of COBalD; runs in the peers' environment.

The drones are TARDIS's own on its fake site and its fake batch system, which answer at once, and
without plugins (its registry would write each change of state to SQLite; here none changes).
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import statistics
import sys
import time
from importlib.metadata import version
from typing import Any

from cobald.composite.factory import FactoryPool
from cobald.controller.linear import LinearController
from tardis.adapters.batchsystems.fakebatchsystem import FakeBatchSystemAdapter
from tardis.adapters.sites.fakesite import FakeSiteAdapter
from tardis.agents.batchsystemagent import BatchSystemAgent
from tardis.agents.siteagent import SiteAgent
from tardis.configuration.configuration import Configuration
from tardis.interfaces.siteadapter import ResourceStatus
from tardis.resources.drone import Drone
from tardis.resources.dronestates import AvailableState

CORES = 16
_REPEATS = 5


class AtOnce:
    """What its simulators are: something that is asked for a number."""

    def get_value(self) -> float:
        return 0.0


def drones(number: int) -> list[Drone]:
    Configuration(
        {
            "Sites": [{"name": "Fake", "adapter": "FakeSite", "quota": number * CORES}],
            "Fake": {
                "MachineTypes": ["m1"],
                "MachineTypeConfiguration": {"m1": {}},
                "MachineMetaData": {"m1": {"Cores": CORES, "Memory": 64, "Disk": 100}},
            },
            "BatchSystem": {
                "adapter": "FakeBatchSystem",
                "allocation": 1.0,
                "utilisation": 1.0,
                "machine_status": "Available",
            },
        }
    )
    Configuration().Fake.update(api_response_delay=AtOnce(), resource_boot_time=AtOnce())
    site = SiteAgent(FakeSiteAdapter(machine_type="m1", site_name="Fake"))
    batch = BatchSystemAgent(FakeBatchSystemAdapter())
    made = [Drone(site, batch, state=AvailableState()) for _ in range(number)]
    for drone in made:
        drone.resource_attributes.resource_status = ResourceStatus.Running
    return made


async def heartbeat(some: list[Drone]) -> None:
    """What `Drone.run` does between two pauses, for all of them."""
    await asyncio.gather(*(drone.state.run(drone) for drone in some))


def main(number: int) -> dict[str, Any]:
    logging.disable(logging.CRITICAL)
    some = drones(number)
    pool = FactoryPool(*some, factory=lambda: None)
    controller = LinearController(pool)
    cpus: list[float] = []
    for _ in range(_REPEATS):
        gc.collect()
        begin = time.process_time()
        asyncio.run(heartbeat(some))
        controller.regulate(1)
        cpus.append(time.process_time() - begin)
    if pool.supply != number * CORES or not all(isinstance(d.state, AvailableState) for d in some):
        raise RuntimeError(f"{pool.supply} of {number * CORES} cores are available")
    return {
        "version": f"TARDIS {version('cobald-tardis')}, COBalD {version('cobald')}",
        "what": "one heartbeat of all drones and one step of the controller",
        "drones": number,
        "cpu_seconds": round(statistics.median(cpus), 4),
        "cpu_seconds_spread": [round(min(cpus), 4), round(max(cpus), 4)],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(int(sys.argv[1]))) + "\n")
