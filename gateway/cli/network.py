"""`dvn validate | show | destroy FILE`, and where the commands on site files are put together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli import addresses, change, diagnose, showing
from gateway.cli.output import Format, Output, as_json, counted, line
from gateway.cli.session import PANEL, File, engine, session

if TYPE_CHECKING:
    from dvn.located import Located
    from dvn.spec import Site
    from gateway.cli.session import Loader


def load_site_file(path: Path) -> tuple[Site, Located]:
    """The whole site file, checked with its gateway and burst sections."""
    from dvn import located
    from gateway import sitefile

    doc = located.load(path)
    return sitefile.parse(doc, path).site, doc


def make_app(loader: Loader = load_site_file) -> typer.Typer:
    """The commands, reading files with `loader`, which raises SpecError for a wrong one."""
    app = typer.Typer(
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Networks, tunnels and NAT from one file.",
    )

    @app.command(rich_help_panel=PANEL)
    def validate(file: File, output: Output = Format.TEXT) -> None:
        """Check FILE; name every problem and its fix.

        Each problem is one line: file, line, what is wrong, how to mend it.
        """
        with session(output):
            site, _doc = loader(file)
            networks, tunnels = len(list(site.networks())), len(site.tunnels())
            if output is Format.JSON:
                as_json({"ok": True, "site": site.site, "networks": networks, "tunnels": tunnels})
            else:
                had = f"{counted(networks, 'network')}, {counted(tunnels, 'tunnel')}"
                line(f"{file}: site {site.site}, {had}; valid")

    addresses.add_to(app, loader)
    change.add_to(app, loader)
    diagnose.add_to(app, loader)

    @app.command(rich_help_panel=PANEL)
    def show(
        file: File,
        tenant: Annotated[
            list[str] | None, typer.Option("--tenant", help="Only this one; may be repeated.")
        ] = None,
        devices: Annotated[
            bool, typer.Option("--devices", help="Each link and nft table of the site, too.")
        ] = False,
        output: Output = Format.TEXT,
    ) -> None:
        """Show what the kernel has of FILE's site: networks, ports, tunnels, drops.

        With the packets each counted, and which rules dropped how many.
        """
        with session(output):
            site, _doc = loader(file)
            if tenant:
                diagnose.known_tenants(site, tenant)
            showing.show(engine(), site, output, tenants=tenant or (), devices=devices)

    return app


app = make_app()
