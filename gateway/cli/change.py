"""`dvn plan | apply | try | confirm | history | rollback | destroy`: changing a site safely."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.output import Format, Output, as_json, clock, fail, line, table
from gateway.cli.session import (
    PANEL,
    RUNTIME_FAILURE,
    WRONG_INPUT,
    File,
    Verbose,
    coloured,
    engine,
    report,
    session,
)
from gateway.cli.trial import (
    attempt,
    decided,
    finish_left,
    groups,
    report_done,
    show_plan,
    watched,
)

if TYPE_CHECKING:
    from dvn.change.changes import Changes, Wish
    from dvn.change.history import Revision
    from dvn.spec import Site
    from gateway.cli.session import Loader

Which = Annotated[
    str | None,
    typer.Argument(
        metavar="[SITE]", help="The site's name, or its file; the only one unless given."
    ),
]
Probe = Annotated[
    bool,
    typer.Option(
        "--probe/--no-probe",
        help="Undo a change that silences who answered before it.",
    ),
]


def add_to(app: typer.Typer, loader: Loader) -> None:
    """The commands, reading files with `loader`, which raises SpecError for a wrong one."""

    @app.command(rich_help_panel=PANEL)
    def plan(file: File, output: Output = Format.TEXT, verbose: Verbose = False) -> None:
        """Show what `apply` would change now.

        `+` is made, `~` changed in place, `-` removed, network by network.
        """
        from dvn.change import view

        with session(output) as placed:
            site, doc = loader(file)
            placed.append(doc)
            finish_left(_changes(probe=False), output)
            found = engine().plan(site, keep_dynamic=True)
            all_ = view.groups(found, site, verbose=verbose)
            if output is Format.JSON:
                as_json({"ok": True, "steps": list(found.lines()), **view.as_json(all_)})
                return
            show_plan(all_, verbose)
            if not found:
                line("nothing to do: the kernel is as the file says")

    @app.command(rich_help_panel=PANEL)
    def apply(
        file: File, probe: Probe = True, output: Output = Format.TEXT, verbose: Verbose = False
    ) -> None:
        """Make the kernel as FILE says.

        The result is checked, also by packets: machines and tunnel ends
        that answered before must answer after. If one does not, or the
        kernel refuses something, all of it is undone.
        What is right already is not written again.
        Tunnels of borrowed machines stay: they are the daemon's.
        """
        with session(output) as placed:
            site, doc = loader(file)
            placed.append(doc)
            changes = _changes(probe=probe)
            finish_left(changes, output)
            if output is Format.TEXT:
                show_plan(groups(engine().plan(site, keep_dynamic=True), site, verbose), verbose)
            done = changes.apply(_wish(site, file))
            report_done(done, output, "the kernel is as the file says")

    @app.command("try", rich_help_panel=PANEL)
    def try_(
        file: File,
        timeout: Annotated[
            int, typer.Option("--timeout", min=1, max=86400, help="Seconds until it is undone.")
        ] = 120,
        watch: Annotated[
            str | None,
            typer.Option(
                "--watch",
                metavar="ADDRESS",
                help="Undo it when this address is lost; your ssh client's unless given.",
            ),
        ] = None,
        yes: Annotated[
            bool,
            typer.Option("--yes", help="Keep it by itself if nothing is lost for 5 s."),
        ] = False,
        probe: Probe = True,
        output: Output = Format.TEXT,
    ) -> None:
        """Apply FILE, and undo it unless it is confirmed in time.

        Enter keeps it, or `dvn confirm SITE` from anywhere; Ctrl-C
        undoes it at once. It is undone as well when the way you came by
        is lost, and when this command is killed: a process of its own
        sees to it.
        """
        with session(output) as placed:
            site, doc = loader(file)
            placed.append(doc)
            attempt(_changes(probe=probe), _wish(site, file), timeout, watched(watch), yes, output)

    @app.command(rich_help_panel=PANEL)
    def confirm(
        which: Which = None,
        undo: Annotated[
            bool, typer.Option("--undo", help="Undo it at once instead of keeping it.")
        ] = False,
        output: Output = Format.TEXT,
    ) -> None:
        """Keep what `dvn try` changed."""
        with session(output):
            changes = _changes(probe=False)
            finish_left(changes, output)
            site = _the_site(which, changes.pending.sites(), loader, "waits to be confirmed")
            if undo:
                kept = changes.undo(site, "the operator said so")
                if kept is None:
                    raise fail(f"no change of site {site} waits", output, RUNTIME_FAILURE)
            else:
                kept = changes.confirm(site)
            decided(kept, output)

    @app.command(rich_help_panel=PANEL)
    def history(
        which: Which = None,
        revision: Annotated[
            int | None,
            typer.Option("--revision", "-r", metavar="REV", help="Show this one: plan and file."),
        ] = None,
        output: Output = Format.TEXT,
    ) -> None:
        """List what was applied and tried, who did it, and what came of it."""
        with session(output):
            changes = _changes(probe=False)
            site = _the_site(which, changes.history.sites(), loader, "has a history")
            if revision is not None:
                found = changes.history.get(site, revision)
                if found is None:
                    raise fail(f"site {site} has no revision {revision}", output, WRONG_INPUT)
                _show_revision(found, output)
                return
            _show_history(changes, site, output)

    @app.command(rich_help_panel=PANEL)
    def rollback(
        revision: Annotated[
            int, typer.Argument(metavar="REV", help="Its number in `dvn history`.", min=1)
        ],
        which: Which = None,
        probe: Probe = True,
        output: Output = Format.TEXT,
    ) -> None:
        """Apply an earlier revision again.

        The file itself stays as it is: mend it, or the next apply brings the change back.
        """
        with session(output):
            changes = _changes(probe=probe)
            finish_left(changes, output)
            site = _the_site(which, changes.history.sites(), loader, "has a history")
            wish = changes.rollback(site, revision)
            if output is Format.TEXT:
                found = engine().plan(wish.site, keep_dynamic=True)
                show_plan(groups(found, wish.site, False), False)
            done = changes.apply(wish)
            report_done(done, output, f"site {site} is as in revision {revision}")

    @app.command(rich_help_panel=PANEL)
    def destroy(file: File, output: Output = Format.TEXT) -> None:
        """Remove FILE's site from the kernel.

        What goes is what carries the site's name. Nothing else is touched.
        """
        with session(output):
            site, _doc = loader(file)
            changes = _changes(probe=False)
            finish_left(changes, output)
            applied = changes.destroy(site.site, str(file))
            if output is Format.TEXT:
                for text in applied.steps:
                    coloured(text)
            report(applied, output, f"nothing of site {site.site} is left")


def _changes(*, probe: bool) -> Changes:
    from dvn.change.changes import changes_on_this_host
    from dvn.change.files import state_directory

    return changes_on_this_host(engine(), state_directory(), probe=probe)


def _wish(site: Site, file: Path) -> Wish:
    from dvn.change.changes import Wish

    return Wish(site, str(file.absolute()), file.read_text())


def _the_site(which: str | None, known: tuple[str, ...], loader: Loader, what: str) -> str:
    """The name of the site meant: given, of a file given, or the only one there is."""
    from dvn.change.files import ChangeError

    if which is not None:
        path = Path(which)
        if path.suffix in (".yaml", ".yml") or path.is_file():
            return loader(path)[0].site
        return which
    if len(known) == 1:
        return known[0]
    if not known:
        raise ChangeError(f"no site {what}")
    raise ChangeError(f"several sites {what}, name one: {', '.join(known)}")


def _show_history(changes: Changes, site: str, output: Format) -> None:
    revisions = changes.history.revisions(site)
    pending = changes.pending.get(site)
    if output is Format.JSON:
        rows = [
            {
                "revision": each.number,
                "time": each.time,
                "who": each.who,
                "source": each.source,
                "steps": len(each.plan),
                "result": each.result,
            }
            for each in revisions
        ]
        as_json({"ok": True, "site": site, "revisions": rows, "trying": pending is not None})
        return
    if not revisions:
        line(f"site {site} has no history here")
    else:
        current = changes.history.current(site)
        columns = ["rev", "time", "who", "from", "steps", "result"]
        table(
            f"Revisions of site {site}",
            columns,
            [
                [
                    f"{each.number}{' *' if current and each.number == current.number else ''}",
                    clock(each.time),
                    each.who,
                    each.source,
                    len(each.plan),
                    each.result,
                ]
                for each in revisions
            ],
        )
    if pending is not None:
        line(f"a change by {pending.who} waits to be confirmed: dvn confirm {site}")


def _show_revision(revision: Revision, output: Format) -> None:
    import dataclasses

    if output is Format.JSON:
        as_json({"ok": True, **dataclasses.asdict(revision)})
        return
    line(f"revision {revision.number} of site {revision.site}: {revision.result}")
    line(f"{clock(revision.time)}, {revision.who}, {revision.source}")
    for text in revision.plan:
        coloured(text, indent=2)
    if revision.text:
        line(revision.text.rstrip())
