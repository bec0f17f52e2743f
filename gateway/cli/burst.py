"""`dvn burst ...`: what is borrowed, why, and giving it back. Asks the daemon; loads little."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from gateway.cli import flash, money, simulate, top
from gateway.cli.asking import amounts, ask
from gateway.cli.client import ApiFailure, Client
from gateway.cli.output import Format, Output, Socket, ago, as_json, clock, fail, line, table

app = typer.Typer(no_args_is_help=True, help="See, explain and return borrowed machines.")


class Subject(StrEnum):
    """What can be explained."""

    JOB = "job"
    LEASE = "lease"
    POOL = "pool"


@app.command()
def status(output: Output = Format.TEXT, socket: Socket = None) -> None:
    """Show pools, machines by state, and money."""
    value = ask(Client(socket), output, "GET", "status")
    if output is Format.JSON:
        as_json({key: value[key] for key in ("hold", "leases", "pools", "budgets")})
        return
    if value["hold"]:
        line(f"Nothing new is rented: {value['hold']} (`dvn burst resume` ends this)")
    table(
        "Pools",
        ("pool", "tenant", "provider", "machines", "states", "why"),
        [
            (
                pool["name"],
                pool["tenant"],
                pool["provider"],
                f"{pool['machines']}/{pool['max_machines']}",
                _counts(pool["states"]),
                (pool["why"] or {}).get("message", ""),
            )
            for pool in value["pools"]
        ],
    )
    if value["budgets"]:
        line()
        _budgets(value["budgets"])


@app.command()
def leases(
    ended: Annotated[bool, typer.Option("--all", "-a", help="Those that have ended, too.")] = False,
    output: Output = Format.TEXT,
    socket: Socket = None,
) -> None:
    """List borrowed machines."""
    value = ask(Client(socket), output, "GET", "leases", ended=ended)
    if output is Format.JSON:
        as_json(value)
        return
    table(
        "Leases",
        ("lease", "node", "state", "for", "machine", "type", "address", "tunnel", "cost"),
        [
            (
                lease["id"][:8],
                lease["node"],
                lease["state"] + (f" ({lease['failure']['kind']})" if lease["failure"] else ""),
                ago(lease["wanted"]),
                lease["machine"],
                lease["type"],
                lease["address"],
                _link(lease["link"]),
                f"{float(lease['cost']):.4f}",
            )
            for lease in value
        ],
    )


@app.command()
def jobs(
    every: Annotated[bool, typer.Option("--all", "-a", help="Those that have ended, too.")] = False,
    output: Output = Format.TEXT,
    socket: Socket = None,
) -> None:
    """List jobs: where they run, why they wait."""
    value = ask(Client(socket), output, "GET", "jobs")
    if not every:
        value = [job for job in value if job["state"] not in ("done", "failed")]
    if output is Format.JSON:
        as_json(value)
        return
    table(
        "Jobs",
        ("job", "user", "state", "where", "nodes", "partitions", "waiting", "why"),
        [
            (
                job["id"],
                job["user"],
                job["state"],
                job["where"],
                ",".join(job["nodes"]),
                ",".join(job["partitions"]),
                "" if job["started"] else ago(job["submitted"]),
                (job["why"] or {}).get("message") or job["lrms_reason"],
            )
            for job in value
        ],
    )


@app.command()
def explain(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="JOB|LEASE|POOL",
            help="A job's id; a lease's id, node or machine; a pool's name.",
        ),
    ],
    kind: Annotated[
        Subject | None, typer.Option("--kind", help="What it is; found out unless given.")
    ] = None,
    output: Output = Format.TEXT,
    socket: Socket = None,
) -> None:
    """Say why a job, machine or pool is as it is.

    Why a job is not moved, why nothing is rented, why a lease failed:
    the rule, what it looked at, and what would change it.
    """
    client = Client(socket)
    value = _explanation(client, subject, kind, output)
    if output is Format.JSON:
        as_json(value)
        return
    line(value["text"])
    if value["rule"]:
        line(f"rule: {value['rule']}")
    if value["inputs"]:
        line()
        table("Inputs", ("input", "value"), [(f["name"], f["value"]) for f in value["inputs"]])
    if value["change"]:
        line()
        line(f"what would change it: {'; '.join(value['change'])}")
    if value["events"]:
        line()
        table(
            "Timeline",
            ("at", "event", "what"),
            [
                (clock(event["at"]), event["state"] or event["kind"], event["message"])
                for event in value["events"]
            ],
        )


@app.command()
def drain(
    lease: Annotated[
        str | None,
        typer.Argument(metavar="LEASE", help="Its id (or the beginning), node or machine."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every machine, and rent none until `resume`.")
    ] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the lease.")] = (
        "an operator asked"
    ),
    output: Output = Format.TEXT,
    socket: Socket = None,
) -> None:
    """Return machines when their jobs have ended.

    From now on they take no new job. Running jobs are not touched.
    """
    if (lease is None) != every:
        raise fail("name one LEASE, or give --all", output, 2)
    client = Client(socket)
    if lease is None:
        value = ask(client, output, "POST", "drain", reason=reason)
    else:
        value = ask(client, output, "POST", "leases", lease, "drain", reason=reason)
    if output is Format.JSON:
        as_json(value)
        return
    for name in value["leases"]:
        line(f"draining {name}")
    if value["hold"]:
        line("nothing new is rented until `dvn burst resume`")


@app.command()
def resume(output: Output = Format.TEXT, socket: Socket = None) -> None:
    """Rent again, after `drain --all` or when the cause of a pause is mended."""
    value = ask(Client(socket), output, "POST", "resume")
    if output is Format.JSON:
        as_json(value)
    else:
        line("renting is allowed again")


class OnOff(StrEnum):
    ON = "on"
    OFF = "off"


@app.command()
def mixed(
    provider: Annotated[str, typer.Argument(help="A provider with `mixed` in the site file.")],
    turn: Annotated[OnOff | None, typer.Argument(help="Only shown unless given.")] = None,
    output: Output = Format.TEXT,
    socket: Socket = None,
) -> None:
    """Turn virtual machines beside batch jobs on or off on one host; what runs there goes on."""
    client = Client(socket)
    if turn is None:
        value = ask(client, output, "GET", "mixed", provider)
    else:
        on = str(turn is OnOff.ON).lower()
        value = ask(client, output, "POST", "mixed", provider, on=on)
    if output is Format.JSON:
        as_json(value)
        return
    line(f"{provider}: mixed mode is {'on' if value['on'] else 'off'}")
    if value["leases"] and not value["on"]:
        line(f"{len(value['leases'])} machines are still there; their cores go back as they end")


@app.command()
def plan(output: Output = Format.TEXT, socket: Socket = None) -> None:
    """Show what the next round would do, without doing it."""
    value = ask(Client(socket), output, "GET", "plan")
    if output is Format.JSON:
        as_json(value)
    elif not value["ready"]:
        line("the daemon has not looked at the farm yet; ask again in a moment")
    elif not value["steps"]:
        line("nothing to do")
    else:
        for step in value["steps"]:
            line(f"{step['action']:<10} {step['text'] or step['about']}")
        if value["machines"]:
            line(f"in all {value['machines']} machines, {amounts(value['reserve'])} set aside")


def _explanation(client: Client, subject: str, kind: Subject | None, output: Format) -> Any:
    if kind is not None:
        return ask(client, output, "GET", "explain", kind, subject)
    # Job ids are numbers nearly everywhere, so a job is looked for first.
    refusals = []
    for guess in ("job", "pool", "lease"):
        try:
            return client.get("explain", guess, subject)
        except ApiFailure as error:
            refusals.append(str(error))
            if "/run" in str(error) or "socket" in str(error):
                break
    raise fail(refusals[0] if len(set(refusals)) == 1 else "; ".join(refusals), output)


def _counts(states: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _link(link: dict[str, Any] | None) -> str:
    if link is None:
        return ""
    if not link["up"]:
        return "down"
    state = link.get("state") or "up"
    return state if link["rtt_ms"] is None else f"{state} {link['rtt_ms']:.0f} ms"


def _budgets(budgets: list[dict[str, Any]]) -> None:
    columns = ("tenant", "period", "limit", "soft", "spent", "reserved", "free", "unit")
    rows = [tuple(budget[key] for key in columns) for budget in budgets]
    table("Budgets", columns, rows)


money.register(app)
flash.register(app)
top.register(app)
simulate.register(app)
