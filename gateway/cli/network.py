"""`dvn validate | show | destroy FILE`, and where the commands on site files are put together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gateway.cli import change, diagnose
from gateway.cli.output import Format, Output, as_json, counted, line, table
from gateway.cli.session import PANEL, File, engine, session

if TYPE_CHECKING:
    from dvn.engine import Engine
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

    change.add_to(app, loader)
    diagnose.add_to(app, loader)

    @app.command(rich_help_panel=PANEL)
    def show(file: File, output: Output = Format.TEXT) -> None:
        """Show what the kernel has of FILE's site."""
        with session(output):
            site, _doc = loader(file)
            _show(engine(), site.site, output)

    return app


def _show(kernel: Engine, site: str, output: Format) -> None:
    import dataclasses

    from dvn.present import state_to_json

    state = state_to_json(kernel.show(site))
    tunnels = kernel.tunnels(site)
    if output is Format.JSON:
        counters = {name: dataclasses.asdict(found) for name, found in tunnels.items()}
        as_json({"ok": True, "site": site, **state, "tunnels": counters})
        return
    if not state["links"] and not state["nft_tables"]:
        line(f"nothing of site {site} is in the kernel")
        return
    rows = [
        [
            link["name"],
            link["kind"],
            "up" if link["up"] else "down",
            link["mtu"],
            link["master"],
            link["stamp"].split(":", 2)[-1],
            " ".join(a["address"] for a in state["addresses"] if a["link"] == link["name"]),
        ]
        for link in state["links"]
    ]
    table("Links", ["link", "kind", "state", "mtu", "bridge", "what", "addresses"], rows)
    if tunnels:
        rows = [
            [name, t.local, t.remote, t.key, t.rx_packets, t.rx_bytes, t.tx_packets, t.tx_bytes]
            for name, t in sorted(tunnels.items())
        ]
        columns = ["tunnel", "local", "remote", "key", "rx", "rx bytes", "tx", "tx bytes"]
        table("Tunnels", columns, rows)
    rows = [[t["family"], t["name"], t["rules"], t["elements"]] for t in state["nft_tables"]]
    table("nft tables", ["family", "table", "rules", "elements"], rows)


app = make_app()
