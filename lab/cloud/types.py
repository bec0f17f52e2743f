"""The instance types the lab EC2 rents out, and what they cost.

vCPUs and memory are those of the AWS page "Amazon EC2 instance types"; real EC2 has hundreds more.
The prices are a fixed lab list of the order of Linux on-demand prices in Milan (eu-south-1): made
for comparing types with each other and for adding up a bill, not for predicting one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class InstanceType:
    """One type: memory in MiB, price in currency units per hour, billed by the second."""

    name: str
    vcpus: int
    memory_mb: int
    price_per_hour: Decimal


def _table(*rows: tuple[str, int, int, str]) -> Mapping[str, InstanceType]:
    return MappingProxyType(
        {
            name: InstanceType(name, cpus, memory, Decimal(price))
            for name, cpus, memory, price in rows
        }
    )


TYPES: Mapping[str, InstanceType] = _table(
    ("t3.nano", 2, 512, "0.0060"),
    ("t3.micro", 2, 1024, "0.0120"),
    ("t3.small", 2, 2048, "0.0240"),
    ("t3.medium", 2, 4096, "0.0480"),
    ("c5.large", 2, 4096, "0.1010"),
    ("c5.xlarge", 4, 8192, "0.2020"),
    ("c5.2xlarge", 8, 16384, "0.4040"),
    ("m5.large", 2, 8192, "0.1120"),
    ("m5.xlarge", 4, 16384, "0.2240"),
    ("m5.2xlarge", 8, 32768, "0.4480"),
    ("r5.large", 2, 16384, "0.1480"),
    ("r5.xlarge", 4, 32768, "0.2960"),
)
