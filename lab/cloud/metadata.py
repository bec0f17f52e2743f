"""What the instance metadata service says of an instance (AWS: "Instance metadata categories")."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Metadata:
    """One instance's view of itself. `user_data` is what RunInstances was given, decoded."""

    instance: str
    type: str
    image: str
    zone: str
    hostname: str
    mac: str
    private_address: str
    public_address: str | None
    groups: tuple[str, ...] = ()
    user_data: bytes | None = None
    interrupted: datetime | None = None  # when a spot instance will be taken away
    rebalance: datetime | None = None  # since when EC2 recommends to move what runs on it
    spot: bool = False
    launch_index: int = 0
    enabled: bool = True
    token_required: bool = True
    hop_limit: int = 1


def tree(data: Metadata) -> Mapping[str, bytes]:
    """path below /latest/ -> content; folders are not listed here."""
    region = data.zone.rstrip("abcdef")
    document = {
        "instanceId": data.instance,
        "instanceType": data.type,
        "imageId": data.image,
        "availabilityZone": data.zone,
        "region": region,
        "privateIp": data.private_address,
        "architecture": "x86_64",
        "version": "2017-09-30",
    }
    nic = f"network/interfaces/macs/{data.mac}"
    items = {
        "ami-id": data.image,
        "ami-launch-index": str(data.launch_index),
        "hostname": data.hostname,
        "instance-id": data.instance,
        "instance-life-cycle": "spot" if data.spot else "on-demand",
        "instance-type": data.type,
        "local-hostname": data.hostname,
        "local-ipv4": data.private_address,
        "mac": data.mac,
        "placement/availability-zone": data.zone,
        "placement/region": region,
        "public-keys/": "",
        "security-groups": "\n".join(data.groups),
        f"{nic}/local-ipv4s": data.private_address,
    }
    if data.public_address:
        items["public-ipv4"] = data.public_address
        items[f"{nic}/public-ipv4s"] = data.public_address
    if data.rebalance is not None:
        since = data.rebalance.strftime("%Y-%m-%dT%H:%M:%SZ")
        items["events/recommendations/rebalance"] = json.dumps({"noticeTime": since})
    if data.interrupted is not None:
        when = data.interrupted.strftime("%Y-%m-%dT%H:%M:%SZ")
        items["spot/instance-action"] = json.dumps({"action": "terminate", "time": when})
        items["spot/termination-time"] = when
    found = {f"meta-data/{path}": text.encode() for path, text in items.items()}
    found["dynamic/instance-identity/document"] = json.dumps(document, indent=2).encode()
    if data.user_data is not None:
        found["user-data"] = data.user_data
    return found


def lookup(items: Mapping[str, bytes], path: str) -> bytes | None:
    """The content at a path below /latest/, a listing for a folder, None for nothing there."""
    path = path.strip("/")
    for candidate in (path, f"{path}/"):
        if candidate in items:
            return items[candidate]
    prefix = f"{path}/" if path else ""
    names = {_first(name.removeprefix(prefix)) for name in items if name.startswith(prefix)}
    return "\n".join(sorted(names)).encode() if names else None


def _first(rest: str) -> str:
    head, slash, _ = rest.partition("/")
    return head + slash
