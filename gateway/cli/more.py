"""Commands of other packages: the entry points of the group `dvn.commands`, each a Typer app.

`dvn lab` comes so, and the command line need not know the lab. Looked for only when a word is not
known, or when all commands are listed: finding entry points takes as long as starting `dvn`.
"""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

GROUP = "dvn.commands"


class WithMore(TyperGroup):
    """The commands of this package, then those of others."""

    _looked = False

    def list_commands(self, ctx: Any) -> list[str]:
        self.look()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is None and not self._looked:
            self.look()
            found = super().get_command(ctx, cmd_name)
        return found

    def look(self) -> None:
        """Take in the entry points, once. One that cannot be loaded is named and left out."""
        if self._looked:
            return
        self._looked = True
        from importlib.metadata import entry_points

        for point in sorted(entry_points(group=GROUP), key=lambda each: each.name):
            if point.name in self.commands:
                continue
            try:
                app = point.load()
            except (ImportError, AttributeError) as error:
                sys.stderr.write(f"dvn: the command {point.name} is not usable: {error}\n")
                continue
            command: Any = typer.main.get_command(app)
            command.name = point.name
            command.rich_help_panel = "More"
            self.commands[point.name] = command
