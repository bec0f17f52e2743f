"""`dvn addresses FILE`: which address which machine has, as DHCP gave them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from gateway.cli.output import Format, Output, as_json, fail, line, table
from gateway.cli.session import PANEL, RUNTIME_FAILURE, File, session

if TYPE_CHECKING:
    from gateway.cli.session import Loader


def add_to(app: typer.Typer, loader: Loader) -> None:
    """The command, reading files with `loader`, which raises SpecError for a wrong one."""

    @app.command(rich_help_panel=PANEL)
    def addresses(file: File, output: Output = Format.TEXT) -> None:
        """Show the addresses that DHCP has given to machines of FILE's site, and until when."""
        from dvn.services import journal
        from dvn.services.process import LIB

        with session(output):
            site, _doc = loader(file)
            path = LIB / site.site / "services" / journal.NAME
            try:
                data = path.read_bytes() if path.exists() else b""
            except OSError as error:
                raise fail(
                    f"{path}: {error.strerror}; only root may read it", output, RUNTIME_FAILURE
                ) from None
            now = datetime.now(UTC)
            found = [
                {
                    "network": network,
                    "address": str(lease.address),
                    "mac": lease.mac,
                    "name": lease.name,
                    "until": datetime.fromtimestamp(lease.until, UTC).isoformat(timespec="seconds"),
                }
                for network, leases in sorted(journal.last_leases(data).items())
                for lease in sorted(leases.values(), key=lambda lease: int(lease.address))
                if lease.until > now.timestamp() and lease.client
            ]
            if output is Format.JSON:
                as_json({"ok": True, "site": site.site, "addresses": found})
            elif not found:
                line("DHCP has given no address that is still in use")
            else:
                columns = ["network", "address", "mac", "name", "until"]
                table("Addresses", columns, [[row[key] for key in columns] for row in found])
