"""What the commands on site files share: the file, the engine, messages and exit statuses.

Exit status 0: done. 1: the kernel would not, or what was asked for says no. 2: the file, or this
host, is not as it must be, and nothing was changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from gateway.cli.output import Format, as_json, fail, line

if TYPE_CHECKING:
    from dvn.engine import Engine
    from dvn.located import Located
    from dvn.spec import Site
    from dvn.status import Applied

    Loader: TypeAlias = Callable[[Path], tuple[Site, Located]]

File = Annotated[Path, typer.Argument(metavar="FILE", help="The site file.", show_default=False)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also every nft rule.")]

RUNTIME_FAILURE, WRONG_INPUT = 1, 2
PANEL = "Networks, from a site file"
COLOURS = {"+": typer.colors.GREEN, "-": typer.colors.RED, "~": typer.colors.YELLOW}


def engine() -> Engine:
    from dvn.change.memory import SwitchMemory
    from dvn.change.names import COMMAND, call_thread
    from dvn.engine import Engine

    call_thread(COMMAND)
    return Engine(memory=SwitchMemory())


@contextmanager
def session(output: Format) -> Iterator[list[Located]]:
    """Turns what can go wrong into messages and an exit status. The list takes the file's
    contents once read, so that problems of the host find their line."""
    from dvn.change.files import ChangeError
    from dvn.engine import ApplyError
    from dvn.kernel.driver import KernelError
    from dvn.problems import SpecError

    placed: list[Located] = []
    try:
        yield placed
    except SpecError as error:
        problems = (error.placed(placed[0]) if placed else error).problems
        lines = [str(problem) for problem in problems]
        if output is Format.JSON:
            told = [_problem(problem) for problem in problems]
            as_json({"ok": False, "error": "\n".join(lines), "problems": told})
        sys.stderr.write("".join(f"{text}\n" for text in lines))
        raise typer.Exit(WRONG_INPUT) from None
    except (ApplyError, KernelError) as error:
        undone = error.undone if isinstance(error, ApplyError) else True
        raise fail(str(error), output, RUNTIME_FAILURE, unchanged=undone) from None
    except ChangeError as error:
        raise fail(str(error), output, RUNTIME_FAILURE) from None


def _problem(problem: Any) -> dict[str, Any]:
    return {
        "file": problem.file,
        "line": problem.line,
        "message": problem.what,
        "fix": problem.fix,
    }


def report(
    applied: Applied, output: Format, settled: str, *, heard: int = 0, revision: int = 0
) -> None:
    writes = {
        "netlink": applied.netlink_writes,
        "nft": applied.nft_writes,
        "sysctl": applied.sysctl_writes,
    }
    if output is Format.JSON:
        as_json(
            {
                "ok": True,
                "steps": list(applied.steps),
                "writes": writes,
                "verified": applied.verified,
                "heard": heard,
                "revision": revision or None,
                "notes": list(applied.notes),
            }
        )
        return
    for note in applied.notes:
        line(f"note: {note}")
    if not applied.steps:
        line(f"nothing to do: {settled}")
        return
    counts = ", ".join(f"{count} {kind}" for kind, count in writes.items())
    answering = f", {heard} that answered before answer still" if heard else ""
    kept = f"; revision {revision}" if revision else ""
    line(f"done and verified: {settled} ({counts} writes{answering}){kept}")


def coloured(text: str, *, indent: int = 0) -> None:
    colour = COLOURS.get(text[:1])
    typer.secho(" " * indent + text, fg=colour if sys.stdout.isatty() else None)
