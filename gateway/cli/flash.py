"""`dvn burst flash`: machines now, whatever the queue says; with a quote before, progress after."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from gateway.cli.asking import amounts, ask, money
from gateway.cli.client import Client
from gateway.cli.output import Format, Output, Socket, as_json, clock, fail, line, table

_LOOK_S = 2.0  # between two looks at its progress


def register(app: typer.Typer) -> None:
    app.command()(flash)


def flash(
    cores: Annotated[
        int | None, typer.Option("--cores", min=1, help="How many, beside what is there.")
    ] = None,
    length: Annotated[
        str, typer.Option("--for", metavar="TIME", help="From now on, such as 2h.")
    ] = "",
    tenant: Annotated[str, typer.Option("--tenant", help="Whose network, and whose money.")] = "",
    provider: Annotated[str, typer.Option("--provider", help="From there only.")] = "",
    max_cost: Annotated[
        str,
        typer.Option("--max-cost", metavar="AMOUNT", help="The most it may cost until its end."),
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask after the quote.")] = False,
    quote: Annotated[bool, typer.Option("--quote", help="Only the quote.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Show the progress until all cores are there.")
    ] = True,
    cancel: Annotated[
        str | None, typer.Option("--cancel", metavar="FLASH", help="End this one now.")
    ] = None,
    output: Output = Format.TEXT,
    socket: Socket = None,
) -> None:
    """Ask for cores now, for a time and a price; list requests if nothing is asked.

    The machines are rented ahead of the queue, and kept until the end,
    also when idle. The tenant's hard budget and the pools' caps hold.
    After the end, or `--cancel`, they are ordinary ones: kept while
    there is work, then returned. Jobs are never killed.
    """
    client = Client(socket)
    if cancel is not None:
        _cancelled(ask(client, output, "POST", "flashes", cancel, "cancel"), output)
        return
    if cores is None and not length and not tenant:
        _list(ask(client, output, "GET", "flashes"), output)
        return
    if cores is None or not length or not tenant:
        raise fail("a flash needs --cores, --for and --tenant", output, 2)
    query = {
        "cores": cores,
        "length": length,
        "tenant": tenant,
        "provider": provider,
        "max_cost": max_cost,
    }
    asked = ask(client, output, "POST", "flashes", **query, commit=False)
    if output is Format.TEXT:
        _quote(asked["quote"])
    if quote:
        if output is Format.JSON:
            as_json(asked)
        return
    if not yes and not _agreed(output):
        line("nothing was asked for")
        return
    made = ask(client, output, "POST", "flashes", **query, commit=True)
    if output is Format.JSON:
        as_json(made)
        return
    name = made["flash"]["id"]
    line(f"flash {name} stands until {clock(made['flash']['ends'])}; `dvn burst flash` shows it")
    if wait:
        _follow(client, name)


def _agreed(output: Format) -> bool:
    """Without a terminal nobody can say yes: then `--yes` must have."""
    if not sys.stdin.isatty() or output is Format.JSON:
        raise fail("this costs money: give --yes to ask for it, or --quote to only see", output, 2)
    return typer.confirm("Ask for it?")


def _quote(value: dict[str, Any]) -> None:
    if value["parts"]:
        table(
            "Quote",
            ("pool", "provider", "type", "machines", "cores", "an hour, each", "unit"),
            [
                (
                    part["pool"],
                    part["provider"],
                    part["type"] + (" (spot)" if part["spot"] else ""),
                    part["count"],
                    part["cores"],
                    money(part["price_per_hour"]),
                    part["unit"],
                )
                for part in value["parts"]
            ],
        )
    line(
        f"{value['got']} of {value['cores']} cores until {clock(value['ends'])}: "
        f"{amounts(value['cost'])}, {amounts(value['reserved'])} set aside"
    )
    for why in value["short"]:
        line(f"no more: {why}")
    for why in value["slow"]:
        line(f"slower: {why}")


def _list(value: list[dict[str, Any]], output: Format) -> None:
    if output is Format.JSON:
        as_json(value)
        return
    if not value:
        line("no flash stands; ask for one with --cores, --for and --tenant")
        return
    table(
        "Flashes",
        ("flash", "tenant", "cores", "joined", "coming", "until", "cost", "at the end", "why"),
        [
            (
                one["id"],
                one["tenant"],
                one["cores"],
                one["joined"],
                one["coming"],
                clock(one["ends"]),
                money(one["cost"]),
                money(one["committed"]),
                (one["why"] or {}).get("message", ""),
            )
            for one in value
        ],
    )


def _cancelled(value: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        as_json(value)
        return
    line(f"flash {value['id']} is cancelled; its machines are returned when they are idle")


def _follow(client: Client, name: str) -> None:
    """A line for each change, until all cores are there or the flash is over. Ctrl-C ends the
    watching, not the flash."""
    last = ""
    try:
        while True:
            one = ask(client, Format.TEXT, "GET", "flashes", name)
            states = ", ".join(f"{count} {state}" for state, count in one["machines"].items())
            text = (
                f"{one['joined']} of {one['cores']} cores joined, {one['coming']} coming"
                f"{f' ({states})' if states else ''}"
            )
            why = (one["why"] or {}).get("message", "")
            if one["joined"] < one["cores"] and one["joined"] + one["coming"] < one["cores"]:
                text += f": {why}" if why else ""
            if text != last:
                line(f"{text}; {money(one['cost'])} spent")
                last = text
            if one["state"] != "active" or one["joined"] >= one["cores"]:
                return
            time.sleep(_LOOK_S)
    except KeyboardInterrupt:
        line(f"not watched any more; the flash stands, `dvn burst flash --cancel {name}` ends it")
