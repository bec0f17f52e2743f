"""The command `dvn`. What a command needs it imports itself, so that help and completion are
quick: nothing here loads pydantic, boto3 or a web framework."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gateway.cli import agent, burst, gateway, hosts, network, tunnel
from gateway.cli.more import WithMore
from gateway.cli.output import line
from gateway.cli.session import PANEL

app = typer.Typer(
    name="dvn",
    cls=WithMore,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    epilog="Write a site file; then: dvn validate FILE, dvn plan FILE, dvn gateway run FILE.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from gateway.version import version

        line(f"dvn {version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Dynamic Virtual Networks, and machines that a batch farm borrows through them."""


_DAEMON = "The daemon, and what it borrows"
app.add_typer(network.app)
app.add_typer(tunnel.app, name="tunnel", rich_help_panel=PANEL)
app.add_typer(gateway.app, name="gateway", rich_help_panel=_DAEMON)
app.add_typer(hosts.app, name="hosts", rich_help_panel=_DAEMON)
app.add_typer(agent.app, name="agent", rich_help_panel=_DAEMON)
app.add_typer(burst.app, name="burst", rich_help_panel=_DAEMON)


def whole() -> Any:
    """The whole command, with those of other packages, as the command line library sees it."""
    command: Any = typer.main.get_command(app)
    command.look()
    return command


def main() -> None:
    app(prog_name="dvn")


if __name__ == "__main__":
    main()
