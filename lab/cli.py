"""`dvn lab ...`: commands that exist where the lab is installed (`pip install 'dvn[lab]'`).

The command line finds them by the entry point group `dvn.commands`; it never imports the lab.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from enum import StrEnum
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


class Ground(StrEnum):
    """Where the attacks are made."""

    WIRE = "wire"
    PLAN = "plan"
    BOTH = "both"


@app.callback()
def lab() -> None:
    """The lab: networks in a box, to try and to attack."""


@app.command()
def attack(
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write the result there."),
    ] = None,
    on: Annotated[
        Ground, typer.Option("--on", help="With packets, in a simulation of the plan, or both.")
    ] = Ground.BOTH,
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
    On the wire it needs root, and runs in namespaces of its own: here, or in a small VM.
    """
    from lab.attacks.both import together
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
    if rules:
        _rules()
        return
    broken = tuple(without or ())
    plan = _on_plan(chosen, broken, matrix) if on is not Ground.WIRE else None
    wire = _on_wire(chosen, broken, matrix) if on is not Ground.PLAN else None
    found = together(wire, plan)
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n")
    show(found)
    held = found["blocked"] == found["cases"] and found["controls_passed"] == found["controls"]
    raise typer.Exit(0 if held else BROKEN)


def _rules() -> None:
    from lab.attacks import change, plan

    for part in change.rules(plan.state()):
        line(str(part))


def _on_plan(cases: Sequence[Any], without: Sequence[str], matrix: bool) -> Mapping[str, Any]:
    from lab.attacks import change, plan

    state = plan.state()
    try:
        parts = [part for text in without for part in change.find(state, text)]
    except change.NoSuchPartError as error:
        raise fail(str(error), Format.TEXT, WRONG) from None
    for part in parts:
        state = change.without(state, part)
    found = plan.walk_all(cases, state).as_json() | {"without": [str(part) for part in parts]}
    return found | ({"matrix": plan.matrix(cases, state)} if matrix else {})


def _on_wire(cases: Sequence[Any], without: Sequence[str], matrix: bool) -> Mapping[str, Any]:
    """The siege's result; ends the command where there is none."""
    from lab.attacks.case import dump
    from lab.kernel import KernelError, run

    with tempfile.TemporaryDirectory(prefix="dvn-attack-") as scratch:
        given, result = Path(scratch, "cases.json"), Path(scratch, "result.json")
        given.write_text(dump(cases))
        argv = [sys.executable, "-m", "lab.attacks.siege", str(given), str(result)]
        argv += [word for text in without for word in ("--without", text)]
        argv += ["--matrix"] if matrix else []
        try:
            status = run(argv, outputs=[result])
        except KernelError as error:
            raise fail(str(error), Format.TEXT, NO_KERNEL) from None
        if not result.exists():
            raise typer.Exit(status or BROKEN)
        found: dict[str, Any] = json.loads(result.read_text())
    return found


def _list(cases: Sequence[Any]) -> None:
    counts: dict[str, int] = {}
    about = {case.attack: case for case in cases}
    for case in cases:
        counts[case.attack] = counts.get(case.attack, 0) + 1
    rows = [[name, counts[name], case.tries, case.source] for name, case in about.items()]
    table("Attacks", ["attack", "cases", "tries", "source"], rows)


def show(found: Mapping[str, Any]) -> None:
    """The tables of a result, as people read it."""
    from lab.attacks.both import why_left_out

    names = [name for name in ("wire", "plan") if name in found]
    columns = ["attack", *(f"{name}: blocked, controls" for name in names), "tries"]
    rows = [
        [row["attack"], *(_counts(row.get(name)) for name in names), row["tries"]]
        for row in found["attacks"]
    ]
    table("Attacks", columns, rows)
    for leak in found["leaks"][:_SHOWN_LEAKS]:
        places = ", ".join(leak["seen_at"])
        line(f"leak on the {leak['on']}: {leak['case']}: seen at {places} ({leak['source']})")
    _more(len(found["leaks"]), "leaks")
    missed = list(found["controls_missed"].items())
    for name, places in missed[:_SHOWN_LEAKS]:
        line(f"control of {name}: not seen at {', '.join(places)}")
    _more(len(missed), "controls")
    for text in why_left_out(found):
        line(text)
    for name in names:
        run = found[name]
        if "matrix" in run:
            _show_matrix(run["matrix"])
        broken = f" without {'; '.join(run['without'])}" if run.get("without") else ""
        line(f"on the {name}{broken}: {run['frames']} frames in {run['seconds']} s")
    line(
        f"{found['blocked']} of {found['cases']} attacks blocked, "
        f"{found['controls_passed']} of {found['controls']} controls passed"
    )


def _counts(row: Mapping[str, int] | None) -> str:
    """`41/41 41/41`: blocked, and controls that passed, of all."""
    if row is None:
        return "-"
    return f"{row['blocked']}/{row['cases']} {row['controls_passed']}/{row['cases']}"


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
