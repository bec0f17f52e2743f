"""`dvn tunnel ...`: what the paths of a site's tunnels let through."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.network import load_site_file
from gateway.cli.output import Format, Output, as_json, fail, line
from gateway.cli.session import RUNTIME_FAILURE, File, session

if TYPE_CHECKING:
    from dvn.spec import Site, Tunnel

app = typer.Typer(no_args_is_help=True, help="What the paths of tunnels let through.")
Names = Annotated[
    list[str] | None,
    typer.Option("--tunnel", "-t", metavar="TENANT/TUNNEL", help="Only this one; repeatable."),
]
Patience = Annotated[
    float, typer.Option("--wait", min=1, max=600, help="Seconds to wait for the other ends.")
]


@app.command()
def probe(
    file: File, tunnel: Names = None, wait: Patience = 30.0, output: Output = Format.TEXT
) -> None:
    """Find out what the paths of FILE's tunnels let through.

    Run it on both ends at the same time: each needs the other's answers.
    It finds the largest packet that passes, without ICMP, and what translates addresses.
    A tunnel with `transport: auto` gets its transport by it.
    What was found is kept, and the next `dvn apply` uses it.
    """
    with session(output):
        site, _doc = load_site_file(file)
        rows = _probe(site, tunnel or [], wait, output)
    if output is Format.JSON:
        as_json({"ok": all(row["heard"] for row in rows), "tunnels": rows})
    else:
        for row in rows:
            line(f"{row['tunnel']}: {row['facts']}")
            if row["choice"]:
                line(f"{row['tunnel']}: {row['choice']}")
    if not all(row["heard"] for row in rows):
        raise typer.Exit(RUNTIME_FAILURE)


def _probe(site: Site, names: list[str], wait: float, output: Format) -> list[dict[str, Any]]:
    from dvn.checks.transports import may_become
    from dvn.tunnels import paths, prober
    from dvn.tunnels.auto import choose

    def wanted(each: Tunnel) -> bool:
        return not names or each.full_name in names

    known = dict(paths.load(site.site))
    rows = []
    try:
        some = prober.ends(site, _largest(site), wanted)
        talks = prober.probe_paths(some, wait)
    except OSError as error:
        raise fail(f"cannot probe: {error.strerror}; run as root", output) from None
    for end in some:
        name = end.tunnel.full_name
        facts = talks[name].facts()
        row: dict[str, Any] = {"tunnel": name, "heard": facts is not None, "choice": ""}
        if facts is None:
            row["facts"] = "the other end was not heard; does it probe as well, at the same time?"
        else:
            row |= {"facts": str(facts), **dataclasses.asdict(facts)}
            before = known.get(name, paths.Known())
            found = paths.Known(facts.mtu or before.mtu, before.transport, before.why)
            if end.tunnel.transport == "auto":
                choice = choose(facts, may_become(end.tunnel))
                row |= {"transport": choice.transport, "choice": choice.why}
                found = paths.Known(facts.mtu, choice.transport, choice.why)
            known[name] = found
        rows.append(row)
    paths.save(site.site, known)
    return rows


def _largest(site: Site) -> int:
    """The largest packet worth trying: what the underlay's interface carries."""
    from dvn.tunnels.mtu import INTERNET_PATH

    underlay = site.underlay
    if underlay is None:
        return INTERNET_PATH
    if underlay.mtu:
        return underlay.mtu
    try:
        own = int(Path(f"/sys/class/net/{underlay.interface}/mtu").read_text())
    except (OSError, ValueError):
        return INTERNET_PATH
    return min(own, INTERNET_PATH)
