"""A trial on the terminal: begin it, wait for a word, say what came of it."""

from __future__ import annotations

import os
import select
import sys
import time
from typing import TYPE_CHECKING

import typer

from gateway.cli.output import Format, as_json, line
from gateway.cli.session import RUNTIME_FAILURE, coloured, report

if TYPE_CHECKING:
    from dvn.change.changes import Changes, Done, Wish
    from dvn.change.history import Revision
    from dvn.change.pending import Pending
    from dvn.change.view import Group
    from dvn.kernel.steps import Plan
    from dvn.spec import Site

_SETTLE_S = 5.0
_POLL_S = 0.2


def watched(given: str | None) -> str | None:
    from ipaddress import ip_address

    from dvn.change.operator import ancestors, operator_address

    if given is None:
        return operator_address(os.environ, ancestors())
    try:
        ip_address(given.partition("%")[0])
    except ValueError:
        raise typer.BadParameter(f"--watch {given!r}: write an IP address") from None
    return given


def finish_left(changes: Changes, output: Format) -> None:
    """What a killed command left is finished first, and said."""
    from dvn.change import guard
    from dvn.change.files import state_directory

    if os.geteuid() != 0:
        return
    for revision in guard.finish_left(changes, state_directory(), restart=True):
        sys.stderr.write(f"dvn: a trial of site {revision.site} was left: {revision.result}\n")


def attempt(
    changes: Changes, wish: Wish, timeout: float, watch: str | None, yes: bool, output: Format
) -> None:
    from dvn.change import guard
    from dvn.change.files import ChangeError, state_directory

    finish_left(changes, output)
    site = wish.site.site
    found = changes.engine.plan(wish.site, keep_dynamic=True)
    if output is Format.TEXT:
        show_plan(groups(found, wish.site, False), False)
    if not found:
        report_done(changes.apply(wish), output, "the kernel is as the file says")
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
    decided(kept, output)


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


def decided(revision: Revision, output: Format) -> None:
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


def groups(plan: Plan, site: Site, verbose: bool) -> tuple[Group, ...]:
    from dvn.change import view

    return view.groups(plan, site, verbose=verbose)


def show_plan(all_: tuple[Group, ...], verbose: bool) -> None:
    from dvn.change import view

    for group in all_:
        typer.secho(group.title, bold=sys.stdout.isatty())
        for text in group.lines if verbose else view.folded(group):
            coloured(text, indent=2)
    if all_:
        line(view.summary(all_))


def report_done(done: Done, output: Format, settled: str) -> None:
    report(done.applied, output, settled, heard=done.heard, revision=done.revision)
