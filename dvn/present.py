"""Kernel state for people and for programs: JSON-able values."""

from __future__ import annotations

import dataclasses
from typing import Any

from dvn.kernel.state import KernelState


def state_to_json(state: KernelState) -> dict[str, Any]:
    """`dvn show -o json`: links, ports, addresses, nft tables with their sizes."""
    return {
        "links": [
            {
                "name": link.name,
                "stamp": link.alias,
                "kind": link.params.kind,
                "mtu": link.mtu,
                "up": link.up,
                "master": link.master,
                "mac": link.mac,
                **{
                    key: value
                    for key, value in dataclasses.asdict(link.params).items()
                    if key != "kind"
                },
            }
            for link in state.links
        ],
        "ports": [dataclasses.asdict(port) for port in state.ports],
        "addresses": [dataclasses.asdict(address) for address in state.addresses],
        "nft_tables": [
            {
                "family": table.family,
                "name": table.name,
                "rules": sum(len(chain.rules) for chain in table.chains),
                "elements": sum(len(set_.elements) for set_ in table.sets),
            }
            for table in state.tables
        ],
    }
