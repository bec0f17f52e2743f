"""`dvn burst cost`, `usage` and `history`: what was spent on what."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.asking import amounts, ask, money
from gateway.cli.client import Client
from gateway.cli.output import Format, Output, Socket, as_json, clock, fail, line, table

Since = Annotated[
    str, typer.Option("--since", metavar="WHEN", help="From then on: 2026-03-01, or 7d ago.")
]
Before = Annotated[
    str, typer.Option("--before", metavar="WHEN", help="Until then: 2026-04-01, or 1d ago.")
]
Tenant = Annotated[str, typer.Option("--tenant", help="Of this tenant only.")]


class By(StrEnum):
    """What a bill is added up by."""

    TENANT = "tenant"
    PROVIDER = "provider"
    POOL = "pool"
    TYPE = "type"
    DAY = "day"
    JOB = "job"
    USER = "user"
    ACCOUNT = "account"
    LEASE = "lease"


class Sheet(StrEnum):
    """How a bill is printed."""

    TEXT = "text"
    JSON = "json"
    CSV = "csv"


class Records(StrEnum):
    """How usage records are printed: rows, OGF Usage Records 2.0, or APEL's messages."""

    TEXT = "text"
    JSON = "json"
    CSV = "csv"
    UR = "ur"
    APEL = "apel"


def register(app: typer.Typer) -> None:
    app.command()(cost)
    app.command()(usage)
    app.command()(history)


_COLUMNS = ("amount", "unit", "machine_hours", "core_hours", "idle_core_hours", "leases", "jobs")


def cost(
    by: Annotated[By, typer.Option("--by", help="What is added up.")] = By.TENANT,
    since: Since = "",
    before: Before = "",
    tenant: Tenant = "",
    output: Annotated[
        Sheet, typer.Option("--output", "-o", help="For people, programs, or a spreadsheet.")
    ] = Sheet.TEXT,
    socket: Socket = None,
) -> None:
    """Show what was spent, on whom and on what.

    Machines that run are counted until now. A day is one in UTC.
    A job pays for the cores it held; what nobody held is `(no job)`.
    """
    plain = Format.JSON if output is Sheet.JSON else Format.TEXT
    query = {"by": by.value, "since": since, "before": before, "tenant": tenant}
    value = ask(Client(socket), plain, "GET", "cost", **query)
    if output is Sheet.JSON:
        as_json(value)
        return
    if output is Sheet.CSV:
        _csv((by.value, *_COLUMNS), [[c["key"], *(c[k] for k in _COLUMNS)] for c in value["costs"]])
        return
    if not value["costs"]:
        line("nothing was spent")
        return
    table(
        f"Cost by {by.value}",
        (by.value, "cost", "unit", "machine h", "core h held", "core h idle", "machines", "jobs"),
        [
            (
                c["key"],
                money(c["amount"]),
                c["unit"],
                f"{float(c['machine_hours']):.2f}",
                f"{float(c['core_hours']):.2f}",
                f"{float(c['idle_core_hours']):.2f}",
                c["leases"],
                c["jobs"],
            )
            for c in value["costs"]
        ],
    )
    line(f"total {amounts(value['total'])}")


def usage(
    since: Since = "",
    before: Before = "",
    tenant: Tenant = "",
    output: Annotated[
        Records,
        typer.Option(
            "--output",
            "-o",
            help="`ur`: OGF Usage Records 2.0; `apel`: APEL's individual job messages.",
        ),
    ] = Records.TEXT,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="DIRECTORY",
            help="Write one file for each message there, as APEL's SSM sends them.",
        ),
    ] = None,
    socket: Socket = None,
) -> None:
    """Print usage records of machines that were returned.

    Rows are one for each job on each machine; `ur` and `apel` have
    one record for each job.
    """
    plain = Format.JSON if output is Records.JSON else Format.TEXT
    if to is not None and output not in (Records.UR, Records.APEL, Records.CSV):
        raise fail("--to writes csv, ur or apel: give one of them with -o", plain, 2)
    query = {"since": since, "before": before, "tenant": tenant}
    client = Client(socket)
    if output in (Records.TEXT, Records.JSON):
        rows = ask(client, plain, "GET", "usage", **query)
        if output is Records.JSON:
            as_json(rows)
        else:
            _rows(rows)
        return
    value = ask(client, plain, "GET", "usage", output.value, **query)
    if to is not None:
        _files(value, to, plain)
        return
    for text in value["texts"]:
        sys.stdout.write(text)


def history(
    since: Since = "",
    tenant: Tenant = "",
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, help="At most so many, the latest.")
    ] = 50,
    events: Annotated[
        bool, typer.Option("--events", help="What happened, instead of the machines.")
    ] = False,
    output: Output = Format.TEXT,
    socket: Socket = None,
) -> None:
    """List borrowed machines of now and of the past, and what each cost.

    Bills are kept for ever; what happened to a machine for `gateway.keep`.
    """
    client = Client(socket)
    if events:
        _events(client, output, limit)
        return
    value = ask(client, output, "GET", "history", since=since, tenant=tenant, limit=limit)
    if output is Format.JSON:
        as_json(value)
        return
    if not value:
        line("nothing was borrowed")
        return
    table(
        "History",
        ("lease", "tenant", "pool", "type", "from", "to", "jobs", "cost", "unit", "end"),
        [
            (
                past["lease"][:8],
                past["tenant"],
                past["pool"],
                past["type"],
                clock(past["started"]),
                clock(past["ended"]),
                past["jobs"],
                money(past["amount"]),
                past["unit"],
                (past["outcome"] or "as planned") if past["ended"] else "lives",
            )
            for past in value
        ],
    )


def _events(client: Client, output: Format, limit: int) -> None:
    found: list[dict[str, Any]] = []
    while page := ask(
        client, output, "GET", "events", after=found[-1]["id"] if found else 0, limit=10_000
    ):
        found = [*found, *page][-limit:]
    if output is Format.JSON:
        as_json(found)
        return
    table(
        "Events",
        ("at", "lease", "event", "what"),
        [(clock(e["at"]), e["lease"][:8], e["state"] or e["kind"], e["message"]) for e in found],
    )


def _rows(rows: list[dict[str, Any]]) -> None:
    if not rows:
        line("no machine was returned in that time")
        return
    table(
        "Usage",
        ("tenant", "node", "type", "job", "user", "cores", "from", "to", "cost", "unit"),
        [
            (
                row["tenant"],
                row["node"],
                row["type"],
                row["job"] or "(no job)",
                row["user"],
                row["cores"],
                clock(row["started"]),
                clock(row["ended"]),
                money(row["cost"]),
                row["unit"],
            )
            for row in rows
        ],
    )


def _files(value: dict[str, Any], to: Path, output: Format) -> None:
    """One file a message, whole or not there: the sender may look at any time."""
    ending = {"csv": "csv", "ur": "xml", "apel": "msg"}[value["format"]]
    try:
        to.mkdir(parents=True, exist_ok=True)
        for number, text in enumerate(value["texts"], 1):
            path = to / f"dvn-{number:06d}.{ending}"
            draft = path.with_suffix(".part")
            draft.write_text(text, encoding="utf-8")
            draft.rename(path)
            line(str(path))
    except OSError as error:
        raise fail(f"cannot write to {to}: {error.strerror}", output) from None


def _csv(columns: tuple[str, ...], rows: list[list[Any]]) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
