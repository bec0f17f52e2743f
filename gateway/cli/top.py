"""`dvn burst top`: jobs, machines, money and flashes at one look, live at a terminal."""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.asking import ask, money
from gateway.cli.client import Client
from gateway.cli.output import Format, Output, Socket, ago, as_json, clock, line, table

if TYPE_CHECKING:
    from rich.console import Group

_JOBS_SHOWN = 15


def register(app: typer.Typer) -> None:
    app.command()(top)


@dataclass(frozen=True, slots=True)
class Look:
    """What the daemon said at one moment."""

    status: dict[str, Any]
    leases: list[dict[str, Any]]
    jobs: list[dict[str, Any]]
    flashes: list[dict[str, Any]]

    @classmethod
    def at(cls, client: Client, output: Format) -> Look:
        return cls(
            ask(client, output, "GET", "status"),
            ask(client, output, "GET", "leases"),
            ask(client, output, "GET", "jobs"),
            ask(client, output, "GET", "flashes"),
        )

    @property
    def headline(self) -> str:
        counts = Counter(f"{job['state']} {job['where']}".strip() for job in self.jobs)
        jobs = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        hold = f"; nothing new is rented: {self.status['hold']}" if self.status["hold"] else ""
        silent = [service["name"] for service in self.status["services"] if not service["ok"]]
        dumb = f"; silent: {', '.join(silent)}" if silent else ""
        return (
            f"{self.status['site']} at {clock(self.status['now'])}: jobs {jobs or 'none'}; "
            f"{len(self.leases)} machines{hold}{dumb}"
        )

    def tables(self) -> list[tuple[str, tuple[str, ...], list[tuple[Any, ...]]]]:
        found = [
            ("Machines", _MACHINES, [_machine(lease) for lease in self.leases]),
            ("Waiting jobs", _WAITING, self._waiting()),
            ("Budgets", _BUDGETS, [_budget(budget) for budget in self.status["budgets"]]),
            ("Flashes", _FLASHES, [_flash(one) for one in self.flashes]),
        ]
        return [(title, columns, rows) for title, columns, rows in found if rows]

    def _waiting(self) -> list[tuple[Any, ...]]:
        waiting = [job for job in self.jobs if job["state"] in ("pending", "held")]
        rows: list[tuple[Any, ...]] = [
            (job["id"], job["user"], job["cores"], ago(job["submitted"]), _why(job))
            for job in waiting[:_JOBS_SHOWN]
        ]
        if len(waiting) > _JOBS_SHOWN:
            rows.append(("...", "", "", "", f"{len(waiting) - _JOBS_SHOWN} more"))
        return rows


_MACHINES = ("node", "state", "for", "type", "tunnel", "cost", "what")
_WAITING = ("job", "user", "cores", "waiting", "why")
_BUDGETS = ("tenant", "period", "spent", "reserved", "free", "limit", "unit")
_FLASHES = ("flash", "tenant", "cores", "joined", "coming", "until", "cost")


def _machine(lease: dict[str, Any]) -> tuple[Any, ...]:
    link = lease["link"]
    tunnel = "" if link is None else (link["state"] or "up") if link["up"] else "down"
    return (
        lease["node"],
        lease["state"],
        ago(lease["wanted"]),
        lease["type"],
        tunnel,
        money(lease["cost"]),
        (lease["why"] or {}).get("message", ""),
    )


def _why(job: dict[str, Any]) -> str:
    return str((job["why"] or {}).get("message") or job["lrms_reason"])


def _budget(budget: dict[str, Any]) -> tuple[Any, ...]:
    amounts = (money(budget[key]) for key in ("spent", "reserved", "free", "limit"))
    return (budget["tenant"], budget["period"], *amounts, budget["unit"])


def _flash(one: dict[str, Any]) -> tuple[Any, ...]:
    return (
        one["id"],
        one["tenant"],
        one["cores"],
        one["joined"],
        one["coming"],
        clock(one["ends"]),
        money(one["cost"]),
    )


def top(
    interval: Annotated[
        float, typer.Option("--interval", "-i", min=0.2, help="Seconds between two looks.")
    ] = 2.0,
    count: Annotated[
        int | None,
        typer.Option("--count", "-n", min=1, help="So many looks; at a terminal until Ctrl-C."),
    ] = None,
    output: Output = Format.TEXT,
    socket: Socket = None,
) -> None:
    """Watch jobs, machines, money and flashes.

    Live at a terminal; into a file or a pipe one look as plain text.
    """
    client = Client(socket)
    if output is Format.JSON:
        look = Look.at(client, output)
        as_json(
            {
                "status": look.status,
                "leases": look.leases,
                "jobs": look.jobs,
                "flashes": look.flashes,
            }
        )
        return
    if not sys.stdout.isatty():
        _repeat(lambda: _print(Look.at(client, output)), count or 1, interval)
        return
    from rich.live import Live

    with Live(_drawn(Look.at(client, output)), screen=True, auto_refresh=False) as live:

        def show() -> None:
            live.update(_drawn(Look.at(client, output)), refresh=True)

        _repeat(show, count, interval)


def _repeat(act: Callable[[], None], count: int | None, interval: float) -> None:
    looks = itertools.count() if count is None else range(count)
    try:
        for number in looks:
            if number:
                time.sleep(interval)
            act()
    except KeyboardInterrupt:
        return


def _print(look: Look) -> None:
    line(look.headline)
    for title, columns, rows in look.tables():
        line()
        table(title, columns, rows)


def _drawn(look: Look) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [Text(look.headline, style="bold")]
    for title, columns, rows in look.tables():
        shown = Table(*columns, title=title, title_justify="left", expand=True)
        for row in rows:
            shown.add_row(*(Text(str(cell), overflow="ellipsis", no_wrap=True) for cell in row))
        parts.append(shown)
    return Group(*parts)
