"""`dvn plan | apply | try | confirm | history | rollback | destroy`: changing a site safely."""

from __future__ import annotations

import os
import select
import sys
import time
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

if TYPE_CHECKING:
    from dvn.change.changes import Changes, Done, Wish
    from dvn.change.history import Revision
    from dvn.change.pending import Pending
    from dvn.change.view import Group
    from dvn.kernel.steps import Plan
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
_SETTLE_S = 5.0
_POLL_S = 0.2


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
            _finish_left(_changes(probe=False), output)
            found = engine().plan(site, keep_dynamic=True)
            all_ = view.groups(found, site, verbose=verbose)
            if output is Format.JSON:
                as_json({"ok": True, "steps": list(found.lines()), **view.as_json(all_)})
                return
            _show_plan(all_, verbose)
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
            _finish_left(changes, output)
            if output is Format.TEXT:
                _show_plan(_groups(engine().plan(site, keep_dynamic=True), site, verbose), verbose)
            done = changes.apply(_wish(site, file))
            _report(done, output, "the kernel is as the file says")

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
            _try(_changes(probe=probe), _wish(site, file), timeout, _watched(watch), yes, output)

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
            _finish_left(changes, output)
            site = _the_site(which, changes.pending.sites(), loader, "waits to be confirmed")
            if undo:
                kept = changes.undo(site, "the operator said so")
                if kept is None:
                    raise fail(f"no change of site {site} waits", output, RUNTIME_FAILURE)
            else:
                kept = changes.confirm(site)
            _decided(kept, output)

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
            _finish_left(changes, output)
            site = _the_site(which, changes.history.sites(), loader, "has a history")
            wish = changes.rollback(site, revision)
            if output is Format.TEXT:
                found = engine().plan(wish.site, keep_dynamic=True)
                _show_plan(_groups(found, wish.site, False), False)
            done = changes.apply(wish)
            _report(done, output, f"site {site} is as in revision {revision}")

    @app.command(rich_help_panel=PANEL)
    def destroy(file: File, output: Output = Format.TEXT) -> None:
        """Remove FILE's site from the kernel.

        What goes is what carries the site's name. Nothing else is touched.
        """
        with session(output):
            site, _doc = loader(file)
            changes = _changes(probe=False)
            _finish_left(changes, output)
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


def _watched(given: str | None) -> str | None:
    from ipaddress import ip_address

    from dvn.change.operator import ancestors, operator_address

    if given is None:
        return operator_address(os.environ, ancestors())
    try:
        ip_address(given.partition("%")[0])
    except ValueError:
        raise typer.BadParameter(f"--watch {given!r}: write an IP address") from None
    return given


def _finish_left(changes: Changes, output: Format) -> None:
    """What a killed command left is finished first, and said."""
    from dvn.change import guard
    from dvn.change.files import state_directory

    if os.geteuid() != 0:
        return
    for revision in guard.finish_left(changes, state_directory(), restart=True):
        sys.stderr.write(f"dvn: a trial of site {revision.site} was left: {revision.result}\n")


def _try(
    changes: Changes, wish: Wish, timeout: float, watch: str | None, yes: bool, output: Format
) -> None:
    from dvn.change import guard
    from dvn.change.files import ChangeError, state_directory

    _finish_left(changes, output)
    site = wish.site.site
    found = changes.engine.plan(wish.site, keep_dynamic=True)
    if output is Format.TEXT:
        _show_plan(_groups(found, wish.site, False), False)
    if not found:
        _report(changes.apply(wish), output, "the kernel is as the file says")
        return
    pending = changes.begin(wish, timeout=timeout, watch=watch)
    try:
        guard.start(state_directory(), site)
    except (OSError, ChangeError):
        changes.pending.end(site)
        raise
    try:
        done = changes.carry_out(pending)
        if output is Format.TEXT:
            _say_trying(pending, done, yes)
        kept = _wait(changes, pending, yes)
    except KeyboardInterrupt:
        kept = changes.undo(site, "the operator took it back") or _last(changes, pending)
    _decided(kept, output)


def _say_trying(pending: Pending, done: Done, yes: bool) -> None:
    from dvn.change.pending import boot_time

    for note in done.applied.notes:
        line(f"note: {note}")
    if done.heard:
        line(f"{done.heard} that answered before answer still")
    left = f"{pending.left(boot_time()):.0f} s"
    watched = f", and if {pending.watch} is lost" if pending.watch else ""
    if yes:
        line(f"tried: kept in {_SETTLE_S:.0f} s unless something is lost")
        return
    enter = "Enter, or " if sys.stdin.isatty() else ""
    line(f"tried: undone in {left}{watched}; to keep it: {enter}dvn confirm {pending.site}")
    sys.stdout.flush()


def _wait(changes: Changes, pending: Pending, yes: bool) -> Revision:
    """Until it is decided, by us or by somebody else."""
    from dvn.change.files import ChangeError

    settled = time.monotonic() + _SETTLE_S
    interactive = sys.stdin.isatty() and not yes
    while changes.pending.get(pending.site) is not None:
        wanted = yes and time.monotonic() >= settled
        if interactive:
            wanted = bool(select.select([sys.stdin], [], [], _POLL_S)[0])
            if wanted and not sys.stdin.readline():
                interactive = wanted = False  # the terminal is gone, which is no Enter
        else:
            time.sleep(_POLL_S)
        if wanted:
            try:
                return changes.confirm(pending.site)
            except ChangeError:
                continue  # the guard was quicker: its file goes in a moment
    return _last(changes, pending)


def _last(changes: Changes, pending: Pending) -> Revision:
    from dvn.change.files import ChangeError

    for revision in reversed(changes.history.revisions(pending.site)):
        if revision.spec == pending.spec and revision.plan == pending.plan:
            return revision
    raise ChangeError(f"nobody wrote down what came of it: see dvn plan {pending.source}")


def _decided(revision: Revision, output: Format) -> None:
    """Say what came of a trial; exit status 1 if it was undone."""
    if output is Format.JSON:
        told = {"revision": revision.number, "result": revision.result}
        as_json({"ok": revision.in_force, "site": revision.site, **told})
    elif revision.in_force:
        line(f"kept as revision {revision.number} of site {revision.site}")
    else:
        sys.stderr.write(f"dvn: {revision.result} (revision {revision.number})\n")
    if not revision.in_force:
        raise typer.Exit(RUNTIME_FAILURE)


def _groups(plan: Plan, site: Site, verbose: bool) -> tuple[Group, ...]:
    from dvn.change import view

    return view.groups(plan, site, verbose=verbose)


def _show_plan(all_: tuple[Group, ...], verbose: bool) -> None:
    from dvn.change import view

    for group in all_:
        typer.secho(group.title, bold=sys.stdout.isatty())
        for text in group.lines if verbose else view.folded(group):
            coloured(text, indent=2)
    if all_:
        line(view.summary(all_))


def _report(done: Done, output: Format, settled: str) -> None:
    report(done.applied, output, settled, heard=done.heard, revision=done.revision)


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
