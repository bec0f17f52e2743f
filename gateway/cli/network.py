"""`dvn validate | plan | apply | show | destroy FILE`: the network engine, in this process.

Exit status 0: done. 1: the kernel would not. 2: the file, or this host, is not as it must be, and
nothing was changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from gateway.cli.output import Format, Output, as_json, counted, fail, line, table

if TYPE_CHECKING:
    from dvn.engine import Engine
    from dvn.located import Located
    from dvn.spec import Site
    from dvn.status import Applied

    Loader: TypeAlias = Callable[[Path], tuple[Site, Located]]

File = Annotated[Path, typer.Argument(metavar="FILE", help="The site file.", show_default=False)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also every nft rule.")]

RUNTIME_FAILURE, WRONG_INPUT = 1, 2
_PANEL = "Networks, from a site file"
_COLOURS = {"+": typer.colors.GREEN, "-": typer.colors.RED, "~": typer.colors.YELLOW}


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

    @app.command(rich_help_panel=_PANEL)
    def validate(file: File, output: Output = Format.TEXT) -> None:
        """Check FILE; name every problem and its fix.

        Each problem is one line: file, line, what is wrong, how to mend it.
        """
        with _session(output):
            site, _doc = loader(file)
            networks, tunnels = len(list(site.networks())), len(site.tunnels())
            if output is Format.JSON:
                as_json({"ok": True, "site": site.site, "networks": networks, "tunnels": tunnels})
            else:
                had = f"{counted(networks, 'network')}, {counted(tunnels, 'tunnel')}"
                line(f"{file}: site {site.site}, {had}; valid")

    @app.command(rich_help_panel=_PANEL)
    def plan(file: File, output: Output = Format.TEXT, verbose: Verbose = False) -> None:
        """Show what `apply` would change now."""
        from dvn.present import plan_lines

        with _session(output) as placed:
            site, doc = loader(file)
            placed.append(doc)
            found = _engine().plan(site, keep_dynamic=True)
            if output is Format.JSON:
                as_json({"ok": True, "steps": list(found.lines())})
                return
            for text in plan_lines(found, verbose=verbose):
                _coloured(text)
            line(
                f"{counted(len(found.steps), 'step')} to do"
                if found
                else "nothing to do: the kernel is as the file says"
            )

    @app.command(rich_help_panel=_PANEL)
    def apply(file: File, output: Output = Format.TEXT, verbose: Verbose = False) -> None:
        """Make the kernel as FILE says.

        The result is checked; if the check fails, all of it is undone.
        What is right already is not written again.
        Tunnels of borrowed machines stay: they are the daemon's.
        """
        from dvn.present import plan_lines

        with _session(output) as placed:
            site, doc = loader(file)
            placed.append(doc)
            engine = _engine()
            if output is Format.TEXT:
                for text in plan_lines(engine.plan(site, keep_dynamic=True), verbose=verbose):
                    _coloured(text)
            applied = engine.apply(site, keep_dynamic=True)
            _report(applied, output, "the kernel is as the file says")

    @app.command(rich_help_panel=_PANEL)
    def show(file: File, output: Output = Format.TEXT) -> None:
        """Show what the kernel has of FILE's site."""
        with _session(output):
            site, _doc = loader(file)
            _show(_engine(), site.site, output)

    @app.command(rich_help_panel=_PANEL)
    def destroy(file: File, output: Output = Format.TEXT) -> None:
        """Remove FILE's site from the kernel.

        What goes is what carries the site's name. Nothing else is touched.
        """
        with _session(output):
            site, _doc = loader(file)
            applied = _engine().destroy(site.site)
            if output is Format.TEXT:
                for text in applied.steps:
                    _coloured(text)
            _report(applied, output, f"nothing of site {site.site} is left")

    return app


def _engine() -> Engine:
    from dvn.engine import Engine

    return Engine()


@contextmanager
def _session(output: Format) -> Iterator[list[Located]]:
    """Turns what can go wrong into messages and an exit status. The list takes the file's
    contents once read, so that problems of the host find their line."""
    from dvn.engine import ApplyError
    from dvn.kernel.driver import KernelError
    from dvn.problems import SpecError

    placed: list[Located] = []
    try:
        yield placed
    except SpecError as error:
        problems = (error.placed(placed[0]) if placed else error).problems
        lines = [str(problem) for problem in problems]
        if output is Format.JSON:
            told = [_problem(problem) for problem in problems]
            as_json({"ok": False, "error": "\n".join(lines), "problems": told})
        sys.stderr.write("".join(f"{text}\n" for text in lines))
        raise typer.Exit(WRONG_INPUT) from None
    except (ApplyError, KernelError) as error:
        undone = error.undone if isinstance(error, ApplyError) else True
        raise fail(str(error), output, RUNTIME_FAILURE, unchanged=undone) from None


def _problem(problem: Any) -> dict[str, Any]:
    return {
        "file": problem.file,
        "line": problem.line,
        "message": problem.what,
        "fix": problem.fix,
    }


def _report(applied: Applied, output: Format, settled: str) -> None:
    writes = {
        "netlink": applied.netlink_writes,
        "nft": applied.nft_writes,
        "sysctl": applied.sysctl_writes,
    }
    if output is Format.JSON:
        as_json(
            {
                "ok": True,
                "steps": list(applied.steps),
                "writes": writes,
                "verified": applied.verified,
                "notes": list(applied.notes),
            }
        )
        return
    for note in applied.notes:
        line(f"note: {note}")
    if not applied.steps:
        line(f"nothing to do: {settled}")
        return
    counts = ", ".join(f"{count} {kind}" for kind, count in writes.items())
    line(f"done and verified: {settled} ({counts} writes)")


def _show(engine: Engine, site: str, output: Format) -> None:
    import dataclasses

    from dvn.present import state_to_json

    state = state_to_json(engine.show(site))
    tunnels = engine.tunnels(site)
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


def _coloured(text: str) -> None:
    colour = _COLOURS.get(text[:1])
    typer.secho(text, fg=colour if sys.stdout.isatty() else None)


app = make_app()
