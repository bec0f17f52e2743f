"""`dvn lab ...`: commands that exist where the lab is installed (`pip install 'dvn[lab]'`).

The command line finds them by the entry point group `dvn.commands`; it never imports the lab.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.output import Format, fail, line, table

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The lab: networks in a box, to try and to attack.",
)

BROKEN, WRONG, NO_KERNEL = 1, 2, 125
_SHOWN_LEAKS = 20


@app.callback()
def lab() -> None:
    """The lab: networks in a box, to try and to attack."""


@app.command()
def attack(
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write the result there."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Only attacks whose name begins so."),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            metavar="RULE|SET",
            help="Break the gateway: without rules that say this, or with this set empty.",
        ),
    ] = None,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Then break each rule by itself, and see what leaks.")
    ] = False,
    rules: Annotated[bool, typer.Option("--rules", help="Only list the rules.")] = False,
    catalogue: Annotated[bool, typer.Option("--list", help="Only list the attacks.")] = False,
) -> None:
    """Attack a gateway in the lab in every way we know, and show what came through.

    Each case has a control: the same kind of packet where it must pass.
    Status 0: every attack was blocked and every control passed.
    Needs root. Runs in namespaces of its own: here, or in a small VM.
    """
    from lab.attacks.case import dump
    from lab.attacks.store import cases

    try:
        chosen = [case for case in cases() if not only or case.attack.startswith(tuple(only))]
    except ImportError as error:
        raise fail(
            f"the attacks need scapy ({error}): pip install 'dvn[lab]'", Format.TEXT, WRONG
        ) from None
    if not chosen:
        raise fail(f"no attack is called {' or '.join(only or ())}", Format.TEXT, WRONG)
    if catalogue:
        _list(chosen)
        return
    with tempfile.TemporaryDirectory(prefix="dvn-attack-") as scratch:
        given, result = Path(scratch, "cases.json"), Path(scratch, "result.json")
        given.write_text(dump(chosen))
        options = [word for text in without or () for word in ("--without", text)]
        options += [*(["--matrix"] if matrix else []), *(["--rules"] if rules else [])]
        status = _run(given, result, options)
        if not result.exists():
            raise typer.Exit(status)
        found: dict[str, Any] = json.loads(result.read_text())
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n")
    if rules:
        for text in found["rules"]:
            line(text)
        return
    show(found)
    raise typer.Exit(status)


def _run(given: Path, result: Path, options: Sequence[str]) -> int:
    from lab.kernel import KernelError, run

    argv = [sys.executable, "-m", "lab.attacks.siege", str(given), str(result), *options]
    try:
        return run(argv, outputs=[result])
    except KernelError as error:
        raise fail(str(error), Format.TEXT, NO_KERNEL) from None


def _list(cases: Sequence[Any]) -> None:
    counts: dict[str, int] = {}
    about = {case.attack: case for case in cases}
    for case in cases:
        counts[case.attack] = counts.get(case.attack, 0) + 1
    rows = [[name, counts[name], case.tries, case.source] for name, case in about.items()]
    table("Attacks", ["attack", "cases", "tries", "source"], rows)


def show(found: Mapping[str, Any]) -> None:
    """The tables of a result, as people read it."""
    rows: list[Sequence[object]] = [
        [row["attack"], row["cases"], row["blocked"], row["controls_passed"], row["tries"]]
        for row in found["attacks"]
    ]
    columns = ["attack", "cases", "blocked", "controls passed", "tries"]
    table("Attacks", columns, rows)
    for leak in found["leaks"][:_SHOWN_LEAKS]:
        line(f"leak: {leak['case']}: seen at {', '.join(leak['seen_at'])} ({leak['source']})")
    _more(len(found["leaks"]), "leaks")
    missed = list(found["controls_missed"].items())
    for name, places in missed[:_SHOWN_LEAKS]:
        line(f"control of {name}: not seen at {', '.join(places)}")
    _more(len(missed), "controls")
    for why in sorted(set(found["left_out"].values())):
        count = sum(1 for each in found["left_out"].values() if each == why)
        line(f"{count} cases were not run: {why}")
    if "matrix" in found:
        _show_matrix(found["matrix"])
    if found["without"]:
        line(f"the gateway was broken on purpose: without {'; '.join(found['without'])}")
    line(
        f"{found['blocked']} of {found['cases']} attacks blocked, "
        f"{found['controls_passed']} of {found['controls']} controls passed, "
        f"{found['frames']} frames in {found['seconds']} s"
    )


def _more(count: int, what: str) -> None:
    if count > _SHOWN_LEAKS:
        line(f"and {count - _SHOWN_LEAKS} more {what}: --json FILE has them all")


def _show_matrix(rows: Sequence[Mapping[str, Any]]) -> None:
    shown = [
        [row["rule"], row["leaks"], len(row["controls_missed"]), ", ".join(row["attacks"])]
        for row in rows
    ]
    columns = ["rule", "leaks", "controls missed", "attacks that come through"]
    table("Without each rule", columns, shown)
    idle = sum(1 for row in rows if not row["leaks"] and not row["controls_missed"])
    line(f"{len(rows) - idle} of {len(rows)} rules are missed when they are gone")
