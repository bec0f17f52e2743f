"""Kernel state for people and for programs: JSON-able values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from dvn.kernel.nftcommands import (
    AddChain,
    AddRule,
    AddSet,
    AddTable,
    LoadTable,
    NftCommand,
)
from dvn.kernel.state import KernelState
from dvn.kernel.steps import NftChange, Plan


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
        "things": [{"kind": thing.kind, "is": str(thing)} for thing in state.things],
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


def plan_lines(plan: Plan, *, verbose: bool = False) -> Iterator[str]:
    """A plan as a diff. A new nft table is one line and its elements: the rules are the same for
    every site, and `verbose` has them."""
    for step in plan.steps:
        if verbose or not isinstance(step, NftChange):
            yield from str(step).splitlines()
        else:
            yield from _nft_lines(step.commands)


def _nft_lines(commands: tuple[NftCommand, ...]) -> Iterator[str]:
    new = {command.table for command in commands if isinstance(command, AddTable)}
    for command in commands:
        if isinstance(command, AddTable):
            inside = [
                c for c in commands if not isinstance(c, LoadTable) and c.table == command.table
            ]
            sets = sum(isinstance(c, AddSet) for c in inside)
            chains = sum(isinstance(c, AddChain) for c in inside)
            rules = sum(isinstance(c, AddRule) for c in inside)
            yield f"{command.shown()}: {sets} sets, {chains} chains, {rules} rules"
        elif isinstance(command, AddSet | AddChain | AddRule) and command.table in new:
            continue
        else:
            yield from command.shown().splitlines()
