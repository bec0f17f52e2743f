"""`dvn gateway ...`: run the daemon, and see how it fares."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.asking import ask
from gateway.cli.client import Client
from gateway.cli.output import Format, Output, Socket, ago, as_json, fail, line, table

app = typer.Typer(no_args_is_help=True, help="The daemon: run it, and see how it fares.")


@app.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The site file.")],
    drain_on_exit: Annotated[
        bool,
        typer.Option(
            "--drain-on-exit",
            help="When told to stop, return every machine first.",
        ),
    ] = False,
    no_agent: Annotated[
        bool,
        typer.Option(
            "--no-agent", help="Start no network agent: another one serves `gateway.agent_socket`."
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log details, too.")] = False,
) -> None:
    """Run the daemon, in the foreground.

    SIGTERM or Ctrl-C ends it; its log goes to stderr.
    Machines stay, and the next start goes on with them.

    Started as root it starts the network agent, which needs
    CAP_NET_ADMIN, and then becomes `gateway.user` of the site file.
    """
    from dvn.located import SpecError
    from gateway import service, sitefile
    from gateway.logs import configure

    configure(verbose=verbose)
    try:
        site = sitefile.load(file)
    except SpecError as error:
        for problem in error.problems:
            sys.stderr.write(f"{problem}\n")
        raise typer.Exit(2) from None
    try:
        status = service.run(site, drain_on_exit=drain_on_exit, agent=not no_agent)
    except service.StartError as error:
        raise fail(str(error), Format.TEXT) from None
    raise typer.Exit(status)


@app.command()
def status(output: Output = Format.TEXT, socket: Socket = None) -> None:
    """Show whether all the daemon needs is well."""
    value = ask(Client(socket), output, "GET", "status")
    if output is Format.JSON:
        as_json(value)
        return
    line(
        f"dvn {value['version']}, site {value['site']}, process {value['pid']}, "
        f"up {ago(value['started'])}"
    )
    if value["hold"]:
        line(f"nothing new is rented: {value['hold']}")
    line()
    rows = [
        (
            service["name"],
            "answers" if service["ok"] else "does not answer" if service["since"] else "not asked",
            ago(service["since"]),
            f"in {_until(service['retry_at'], value['now'])}" if service["retry_at"] else "",
            service["error"],
        )
        for service in value["services"]
    ]
    table("Services", ("service", "state", "for", "retry", "error"), rows)
    line()
    table(
        "Loops",
        ("loop", "rounds", "last", "took", "bugs", "last bug"),
        [
            (
                loop["name"],
                loop["rounds"],
                f"{ago(loop['last'])} ago" if loop["last"] else "never",
                f"{loop['seconds']:.1f}s",
                loop["bugs"],
                loop["last_bug"],
            )
            for loop in value["loops"]
        ],
    )
    enrolment = value["enrolment"]
    if enrolment:
        line()
        line(f"Enrolment at {enrolment['url']}: {enrolment['error'] or 'listens'}")
    _show_drift(value["drift"])
    counted = ", ".join(f"{count} {state}" for state, count in value["leases"].items())
    line(f"Leases: {counted or 'none'}")
    for action, error in value["failed_actions"].items():
        line(f"did not succeed: {action}: {error}")


_REPAIRS_SHOWN = 5


def _show_drift(drift: dict[str, Any] | None) -> None:
    """What the agent repaired, and what stands in the way of our packets."""
    if drift is None:
        return
    if not drift["watching"]:
        line(f"drift: the kernel's events are not heard: {drift['error'] or 'not started'}")
    for words in (*drift["held"].values(), *drift["foreign"]):
        line(f"drift: {words}")
    for repair in drift["repairs"][-_REPAIRS_SHOWN:]:
        what = repair["message"] or "; ".join(repair["steps"][:3])
        who = f", by {repair['who']}" if repair["who"] else ""
        within = f" within {repair['seconds']:.1f} s" if repair["seconds"] is not None else ""
        line(f"drift: {repair['action']}{within}, {ago(repair['time'])} ago{who}: {what}")


def _until(instant: str, now: str) -> str:
    from datetime import datetime

    left = datetime.fromisoformat(instant) - datetime.fromisoformat(now)
    return f"{max(0, round(left.total_seconds()))}s"
