"""Asking the daemon for a command: its answer, or the end of the command with one message."""

from __future__ import annotations

from typing import Any

from gateway.cli.client import ApiFailure, Client
from gateway.cli.output import Format, fail


def ask(client: Client, output: Format, method: str, *path: str, **query: object) -> Any:
    """The daemon's answer; ends the command with one message when there is none."""
    try:
        return client.get(*path, **query) if method == "GET" else client.post(*path, **query)
    except ApiFailure as error:
        raise fail(str(error), output) from None


def money(amount: object, unit: str = "") -> str:
    """An amount for people: four places, so that cents of cents are seen."""
    text = f"{float(str(amount)):.4f}"
    return f"{text} {unit}" if unit else text


def amounts(by_unit: dict[str, Any]) -> str:
    """`1.2500 EUR and 12.0000 core-hours`."""
    return " and ".join(money(amount, unit) for unit, amount in by_unit.items()) or money(0)
