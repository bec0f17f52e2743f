"""`dvn agent ...`: what runs on a hypervisor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.output import Format, Output, ago, as_json, fail, line

app = typer.Typer(no_args_is_help=True, help="On a hypervisor: its part of the site.")
File = Annotated[
    Path, typer.Argument(metavar="FILE", help="What `dvn hosts invite` wrote on the gateway host.")
]
_FILE = Path("/etc/dvn/agent.yaml")


@app.command()
def run(file: File = _FILE) -> None:
    """Run the agent of this host, in the foreground; needs root.

    It follows the gateway and this host's machines, and repairs drift.
    When it ends the network stays, and traffic goes on.
    """
    from dvn.change.files import ChangeError
    from dvn.hosts import config, run
    from dvn.hosts.virtual import NoLibvirtError
    from dvn.problems import SpecError

    try:
        run.run(config.load(file))
    except SpecError as error:
        for problem in error.problems:
            sys.stderr.write(f"{problem}\n")
        raise typer.Exit(2) from None
    except (NoLibvirtError, ChangeError) as error:
        raise fail(str(error), Format.TEXT) from None
    except OSError as error:
        raise fail(f"the agent cannot start: {error}", Format.TEXT) from None


@app.command()
def status(file: File = _FILE, output: Output = Format.TEXT) -> None:
    """Show how the agent of this host fares, and who is in no network."""
    from dvn.change.files import ChangeError
    from dvn.hosts import config
    from dvn.hosts.kept import KeptPart
    from dvn.problems import SpecError

    try:
        found = KeptPart(Path(config.load(file).directory)).status()
    except (SpecError, ChangeError) as error:
        raise fail(str(error), output, 2) from None
    if found is None:
        raise fail("no agent has run here yet: dvn agent run", output)
    if output is Format.JSON:
        as_json(found)
        return
    line(f"host {found['host']}: {found['networks']} networks, {found['ports']} ports")
    line(f"gateway: {found['gateway']}, for {ago(found['since'])}")
    if found["error"]:
        line(f"the last change could not be made: {found['error']}")
    for words in (*found["notes"], *found["refused"]):
        line(words)
