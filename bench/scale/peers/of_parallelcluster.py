"""`InstanceManager.add_instances` of aws-parallelcluster-node; runs in the peers' environment.

EC2 is made up by the hook that the package has for it (`slurm_plugin.overrides`), DynamoDB and
`scontrol` by objects that count. Batches are of its default size (`launch_max_batch_size` and
`assign_node_max_batch_size`), and its log is off.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import time
import types
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import count
from typing import Any

from botocore.config import Config
from common.schedulers import slurm_commands
from slurm_plugin import instance_manager

BATCH = 500
_REPEATS = 5
_NOW = datetime(2024, 1, 1, tzinfo=UTC)


class Counted:
    """The calls that would have left the process."""

    def __init__(self) -> None:
        self.launches: list[int] = []
        self.commands = 0
        self.items = 0
        self._numbers = count(1)

    def run_instances(self, region: str, boto3_config: Any, **asked: Any) -> dict[str, Any]:
        self.launches.append(asked["MaxCount"])
        return {"Instances": [self._instance() for _ in range(asked["MaxCount"])]}

    def _instance(self) -> dict[str, Any]:
        number = next(self._numbers)
        address = f"10.20.{number // 250}.{number % 250 + 1}"
        name = f"ip-{address.replace('.', '-')}.internal"
        card = {
            "Attachment": {"NetworkCardIndex": 0, "DeviceIndex": 0},
            "PrivateIpAddress": address,
            "PrivateIpAddresses": [{"PrivateIpAddress": address}],
        }
        return {
            "InstanceId": f"i-{number:017x}",
            "PrivateIpAddress": address,
            "PrivateDnsName": name,
            "LaunchTime": _NOW,
            "NetworkInterfaces": [card],
        }

    @contextmanager
    def batch_writer(self) -> Any:
        yield self

    def put_item(self, Item: dict[str, Any]) -> None:  # noqa: N803 - boto3's own name
        self.items += 1

    def run_command(self, *_: Any, **__: Any) -> None:
        self.commands += 1


def once(nodes: list[str]) -> tuple[float, Counted]:
    seen = Counted()
    overrides = types.ModuleType("slurm_plugin.overrides")
    overrides.run_instances = seen.run_instances  # type: ignore[attr-defined]
    sys.modules["slurm_plugin.overrides"] = overrides
    slurm_commands.run_command = seen.run_command
    manager = instance_manager.InstanceManager(
        region="eu-south-1",
        cluster_name="bench",
        boto3_config=Config(),
        table_name="bench",
        head_node_private_ip="10.0.0.1",
        head_node_hostname="head",
        fleet_config={
            "q1": {"c1": {"Api": "run-instances", "Instances": [{"InstanceType": "c5.2xlarge"}]}}
        },
    )
    manager._table = seen
    begin = time.process_time()
    manager.add_instances(nodes, launch_batch_size=BATCH, assign_node_batch_size=BATCH)
    took = time.process_time() - begin
    if manager.failed_nodes or seen.items != len(nodes):
        raise RuntimeError(f"{seen.items} of {len(nodes)} nodes: {manager.failed_nodes}")
    return took, seen


def main(machines: int) -> dict[str, Any]:
    logging.disable(logging.CRITICAL)
    nodes = [f"q1-dy-c1-{number}" for number in range(1, machines + 1)]
    found = [once(nodes) for _ in range(_REPEATS)]
    cpus = [took for took, _ in found]
    seen = found[-1][1]
    return {
        "version": version("aws-parallelcluster-node"),
        "what": "add_instances",
        "machines": machines,
        "cpu_seconds": round(statistics.median(cpus), 4),
        "cpu_seconds_spread": [round(min(cpus), 4), round(max(cpus), 4)],
        "provider_calls": len(seen.launches),
        "table_items": seen.items,
        "scontrol_calls": seen.commands,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(int(sys.argv[1]))) + "\n")
