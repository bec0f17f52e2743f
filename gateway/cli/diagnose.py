"""`dvn explain | doctor | graph | capture`: understanding what is, and why."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.output import Format, Output, as_json, fail, line
from gateway.cli.session import PANEL, RUNTIME_FAILURE, WRONG_INPUT, File, engine, session

if TYPE_CHECKING:
    from dvn.diagnose.findings import Finding
    from dvn.diagnose.topology import Seen
    from dvn.diagnose.walk import Walker
    from dvn.spec import Site
    from gateway.cli.session import Loader

_COLOURS = {"accept": typer.colors.GREEN, "drop": typer.colors.RED}


class Drawing(StrEnum):
    """What `dvn graph` can write."""

    SVG = "svg"
    MERMAID = "mermaid"
    DOT = "dot"


def _word(name: str, help_: str) -> Any:
    return typer.Option(f"--{name}", help=help_, metavar="TEXT")


def add_to(app: typer.Typer, loader: Loader) -> None:
    """The commands, reading files with `loader`, which raises SpecError for a wrong one."""

    @app.command(rich_help_panel=PANEL)
    def explain(
        file: File,
        packet: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="[PACKET]...",
                help="In short: cms/farm:tap3 tcp 10.9.0.3 to 8.8.8.8:443",
            ),
        ] = None,
        from_: Annotated[
            str | None,
            _word("from", "TENANT/NETWORK:PORT, TENANT/TUNNEL, an interface, outside or host."),
        ] = None,
        src: Annotated[str | None, _word("src", "Source address.")] = None,
        dst: Annotated[str | None, _word("dst", "Destination address.")] = None,
        proto: Annotated[
            str | None, _word("proto", "tcp, udp, icmp, arp or a protocol's number.")
        ] = None,
        sport: Annotated[str | None, _word("sport", "Source port.")] = None,
        dport: Annotated[str | None, _word("dport", "Destination port.")] = None,
        mac: Annotated[str | None, _word("mac", "Source MAC address.")] = None,
        to_mac: Annotated[str | None, _word("to-mac", "Destination MAC address.")] = None,
        vlan: Annotated[str | None, _word("vlan", "VLAN tags, outermost first: 7,101.")] = None,
        kind: Annotated[
            str | None, _word("kind", "Of ICMP or ARP: echo-reply, nd-router-advert, reply.")
        ] = None,
        flags: Annotated[str | None, _word("flags", "Of TCP, as letters: S, SA, R.")] = None,
        state: Annotated[
            str | None, _word("state", "Its connection: new, established, related, invalid.")
        ] = None,
        live: Annotated[
            bool,
            typer.Option("--live", help="Through the kernel as it is now, others' rules too."),
        ] = False,
        verbose: Annotated[
            bool, typer.Option("--verbose", "-v", help="Every chain and every rule with a part.")
        ] = False,
        output: Output = Format.TEXT,
    ) -> None:
        """Say what happens to a packet, and why.

        It is led through what FILE makes of this host: bridges, filters, routes, NAT, tunnels.
        Each step is told with the rule that decided.
        """
        from dvn.diagnose import asking, shown

        given = {
            "from": from_, "src": src, "dst": dst, "proto": proto, "sport": sport, "dport": dport,
            "mac": mac, "to-mac": to_mac, "vlan": vlan, "kind": kind, "flags": flags,
            "state": state,
        }  # fmt: skip
        with session(output):
            site, _doc = loader(file)
            walker = _live(site) if live else _planned(site)
            parts = asking.words_of(packet or ())
            parts |= {key: value for key, value in given.items() if value is not None}
            question = asking.asked(site, walker.scene, parts)
            walk = walker.walk(question.packet, question.enters)
            if output is Format.JSON:
                as_json({"ok": True, "live": live, **shown.walk_json(walk)})
                return
            for verdict, text in shown.walk_lines(walk, verbose=verbose):
                _told(verdict, text)
            _told("accept" if walk.exits else "drop", shown.conclusion(walk))

    @app.command(rich_help_panel=PANEL)
    def doctor(
        file: File,
        cloud: Annotated[
            bool,
            typer.Option("--cloud/--no-cloud", help="Also the accounts machines are rented from."),
        ] = True,
        output: Output = Format.TEXT,
    ) -> None:
        """Say what on this host, or in the cloud, would hinder FILE's networks.

        Kernel features, rules of other programs, reverse path filter, offloads, MTU, clock, other
        network managers, security groups. Nothing is changed. Exit status 1: something fails.
        """
        from dvn.diagnose.findings import Health, worst
        from gateway.checkup import cloud_findings, host_findings

        with session(output):
            site, _doc = loader(file)
            found = [*host_findings(site)]
            if cloud:
                found += cloud_findings(file)
            state = worst(found)
            if output is Format.JSON:
                as_json({"ok": state is not Health.FAIL, "checks": [asdict(f) for f in found]})
            else:
                for finding in found:
                    _finding(finding)
            if state is Health.FAIL:
                raise typer.Exit(RUNTIME_FAILURE)

    @app.command(rich_help_panel=PANEL)
    def graph(
        file: File,
        format_: Annotated[
            Drawing, typer.Option("--format", "-f", help="A picture, or text for Mermaid or dot.")
        ] = Drawing.SVG,
        live: Annotated[
            bool, typer.Option("--live", help="With the health of each link, from the kernel.")
        ] = False,
        tenant: Annotated[
            list[str] | None, typer.Option("--tenant", help="Only this one; may be repeated.")
        ] = None,
        to: Annotated[
            Path | None, typer.Option("--write", "-w", metavar="FILE", help="Write it there.")
        ] = None,
        output: Output = Format.TEXT,
    ) -> None:
        """Draw FILE's tenants, bridges, ports, VLANs and tunnels.

        The picture goes to standard output unless `--write` names a file.
        """
        from dvn.diagnose import drawing, graphtext
        from dvn.diagnose.topology import topology

        with session(output):
            site, _doc = loader(file)
            known_tenants(site, tenant or ())
            seen = None
            if live:
                site, seen = _seen(site)
            found = topology(site, seen, tenants=tenant or ())
            if output is Format.JSON:
                as_json({"ok": True, **asdict(found)})
                return
            makers = {
                Drawing.SVG: drawing.svg,
                Drawing.MERMAID: graphtext.mermaid,
                Drawing.DOT: graphtext.dot,
            }
            text = makers[format_](found)
            if to is None:
                sys.stdout.write(text)
                return
            try:
                to.write_text(text, encoding="utf-8")
            except OSError as error:
                raise fail(f"{to}: {error.strerror}", output, WRONG_INPUT) from None
            line(f"{to}: written")

    @app.command(rich_help_panel=PANEL)
    def capture(
        what: Annotated[
            str,
            typer.Argument(
                metavar="NETWORK|TUNNEL",
                help="TENANT/NETWORK, TENANT/NETWORK:PORT, TENANT/TUNNEL or an interface.",
            ),
        ],
        file: File,
        filter_: Annotated[
            str, typer.Option("--filter", metavar="EXPRESSION", help="As tcpdump's: 'tcp port 22'.")
        ] = "",
        write: Annotated[
            str | None,
            typer.Option(
                "--write", "-w", metavar="PCAP", help="Also into a file; - for standard output."
            ),
        ] = None,
        count: Annotated[
            int | None, typer.Option("--count", "-c", min=1, help="Stop after so many.")
        ] = None,
        seconds: Annotated[
            float | None, typer.Option("--seconds", min=0.0, help="Stop after so long.")
        ] = None,
        snaplen: Annotated[
            int, typer.Option("--snaplen", min=64, help="Bytes kept of each.")
        ] = 262144,
        outer: Annotated[
            bool, typer.Option("--outer", help="Of a tunnel: what carries it, on the underlay.")
        ] = False,
    ) -> None:
        """Show the frames of a network or a tunnel as they pass.

        A network is listened to at its bridge, behind the filters; a port before them.
        `-w FILE` keeps them for Wireshark: `-w -` for a pipe.
        """
        from gateway.capture import Limits, run, target

        if not file.exists() and Path(what).exists():
            what, file = str(file), Path(what)  # in the other commands the file comes first
        with session(Format.TEXT):
            site, _doc = loader(file)
            place = target(site, what, outer=outer)
            run(place, filter_, write, Limits(count, seconds, snaplen))


def known_tenants(site: Site, names: Iterable[str]) -> None:
    """Raises SpecError for a tenant the site has not."""
    from dvn.forms import nearest
    from dvn.problems import Problem, SpecError

    wrong = [name for name in names if name not in site.tenants]
    if wrong:
        raise SpecError(
            Problem("", 0, f"there is no tenant {name!r}", nearest(name, site.tenants))
            for name in wrong
        )


def _seen(site: Site) -> tuple[Site, dict[str, Seen]]:
    """The site with the tunnels of leases, and how each device is: by the kernel, and where the
    daemon runs and measures, by its word."""
    from dvn.diagnose.health import seen_devices, with_leased
    from dvn.diagnose.surroundings import read_scene
    from gateway.cli.client import ApiFailure, Client
    from gateway.linkhealth import measured

    scene, tunnels = read_scene(), engine().tunnels(site.site)
    seen = seen_devices(scene, tunnels.values())
    with suppress(ApiFailure):
        seen |= measured(Client().get("leases"))
    return with_leased(site, scene, tunnels), seen


def _finding(finding: Finding) -> None:
    colours = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
    colour = colours[finding.health] if sys.stdout.isatty() else None
    typer.secho(f"{finding.health:<4}", fg=colour, nl=False)
    line(f"  {finding.check}: {finding.words}")
    if finding.fix:
        line(f"      {finding.fix}")


def _planned(site: Site) -> Walker:
    from dvn.diagnose.planned import planned_walker

    return planned_walker(site)


def _live(site: Site) -> Walker:
    """The kernel as it is. Our rules in the words they were written in (nft's listing leaves out
    what it thinks goes without saying)."""
    from dvn.diagnose.scene import with_pins
    from dvn.diagnose.surroundings import read_ruleset, read_scene
    from dvn.diagnose.walk import Walker

    compiled = engine().compiled(site)
    scene = with_pins(read_scene(), compiled)
    return Walker(read_ruleset().with_words(compiled.tables), scene)


def _told(verdict: str, text: str) -> None:
    typer.secho(text, fg=_COLOURS.get(verdict) if sys.stdout.isatty() else None)
