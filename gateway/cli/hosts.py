"""`dvn hosts ...`: the other hosts of a site, as its gateway sees them."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.asking import ask
from gateway.cli.client import Client
from gateway.cli.output import Format, Output, Socket, ago, as_json, line, table

app = typer.Typer(no_args_is_help=True, help="The site's hypervisors, and who may be one.")


@app.command("list")
def list_(output: Output = Format.TEXT, socket: Socket = None) -> None:
    """Show the site's hosts: whether they ask, and what is not as it should be."""
    found = ask(Client(socket), output, "GET", "hosts")
    if output is Format.JSON:
        as_json(found)
        return
    table(
        "Hosts",
        ("host", "asked", "its part", "machines", "error"),
        [
            (
                host["name"],
                f"{ago(host['seen'])} ago" if host["seen"] else "not yet",
                "current" if host["current"] else "old" if host["seen"] else "unknown",
                host["machines"],
                host["error"],
            )
            for host in found
        ],
    )
    for host in found:
        for problem in host["problems"]:
            line(problem)


@app.command()
def invite(
    host: Annotated[str, typer.Argument(metavar="HOST", help="Its name under `hosts`.")],
    output: Output = Format.TEXT,
    socket: Socket = None,
) -> None:
    """Print the file that the agent on HOST needs, as /etc/dvn/agent.yaml.

    It has a secret: carry it there by ssh, for root alone. The same each time,
    until `hosts.HOST.invitation` is raised in the site file.
    """
    found = ask(Client(socket), output, "POST", "hosts", host, "invite")
    if output is Format.JSON:
        as_json(found)
        return
    typer.echo(found["text"], nl=False)
