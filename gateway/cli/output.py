"""How commands print: JSON for programs, tables for people, plain columns when not a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"


Output = Annotated[Format, typer.Option("--output", "-o", help="For people, or for programs.")]
Socket = Annotated[
    str | None,
    typer.Option(
        "--socket",
        metavar="PATH",
        help="The daemon's socket; /run/dvn/gateway.sock unless given.",
        envvar="DVN_SOCKET",
    ),
]


def as_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def line(text: str = "") -> None:
    sys.stdout.write(text + "\n")


def counted(count: int, noun: str) -> str:
    """`1 network`, `2 networks`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def fail(message: str, output: Format, status: int = 1, **more: Any) -> typer.Exit:
    """Print the message on stderr, and for programs as JSON with `more` on stdout.

    `raise fail(...)` ends the command.
    """
    if output is Format.JSON:
        as_json({"ok": False, "error": message, **more})
    sys.stderr.write(f"dvn: {message}\n")
    return typer.Exit(status)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """One table; as plain aligned columns when the output goes to a file or a pipe."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(title, columns, cells)
        return
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    for row in [[column.upper() for column in columns], *cells]:
        padded = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        line(padded.rstrip())


def _rich_table(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(*columns, title=title, title_justify="left", header_style="bold")
    for row in cells:
        shown.add_row(*map(Text, row))
    Console().print(shown)


def ago(instant: str | None, now: datetime | None = None) -> str:
    """`2m10s`: how long ago an instant of the API was."""
    if not instant:
        return ""
    passed = (now or datetime.now(UTC)) - datetime.fromisoformat(instant)
    seconds = max(0, int(passed.total_seconds()))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02d}h"


def clock(instant: str | None) -> str:
    """The instant in the reader's own time zone."""
    if not instant:
        return ""
    return datetime.fromisoformat(instant).astimezone().strftime("%Y-%m-%d %H:%M:%S")
