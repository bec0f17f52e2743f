"""`dvn show`: tables of what a site has in the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gateway.cli.output import Format, as_json, line, table

if TYPE_CHECKING:
    from dvn.engine import Engine
    from dvn.spec import Site


def show(
    kernel: Engine, site: Site, output: Format, *, tenants: Sequence[str], devices: bool
) -> None:
    from dvn.present import state_to_json

    state = kernel.show(site.site)
    told = state_to_json(state)
    tunnels = kernel.tunnels(site.site)
    if not state.links and not state.tables:
        if output is Format.JSON:
            as_json({"ok": True, "site": site.site, **told, "tunnels": {}, "drops": []})
        else:
            line(f"nothing of site {site.site} is in the kernel")
        return
    from dvn.diagnose import summary
    from dvn.diagnose.health import seen_devices, with_leased
    from dvn.diagnose.scene import of_state
    from dvn.diagnose.topology import topology

    scene, drops = of_state(state), kernel.dropped(state.tables)
    if output is Format.JSON:
        counters = {name: asdict(found) for name, found in tunnels.items()}
        dropped = [asdict(drop) for drop in drops]
        as_json({"ok": True, "site": site.site, **told, "tunnels": counters, "drops": dropped})
        return
    passed = kernel.passed()
    whole = with_leased(site, scene, tunnels)
    seen = seen_devices(scene, tunnels.values())
    found = topology(whole, seen, tenants=tenants)
    for title, columns, rows in (
        ("Networks", summary.NETWORK_COLUMNS, summary.network_rows(found, passed)),
        ("Ports and uplinks", summary.PORT_COLUMNS, summary.port_rows(found, passed)),
        ("Tunnels", summary.TUNNEL_COLUMNS, summary.tunnel_rows(found, passed)),
        ("Dropped", summary.DROP_COLUMNS, summary.drop_rows(drops)),
    ):
        _table(title, columns, [*rows])
    if not drops:
        line("no rule of the site has dropped anything")
    if devices:
        _devices(told)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if rows:
        table(title, columns, rows)
        line()


def _devices(told: dict[str, Any]) -> None:
    own: dict[str, list[str]] = {}
    for address in told["addresses"]:
        own.setdefault(address["link"], []).append(address["address"])
    rows = [
        [
            link["name"],
            link["kind"],
            "up" if link["up"] else "down",
            link["mtu"],
            link["master"],
            link["stamp"].split(":", 2)[-1],
            " ".join(own.get(link["name"], ())),
        ]
        for link in told["links"]
    ]
    table("Links", ["link", "kind", "state", "mtu", "bridge", "what", "addresses"], rows)
    line()
    rows = [[t["family"], t["name"], t["rules"], t["elements"]] for t in told["nft_tables"]]
    table("nft tables", ["family", "table", "rules", "elements"], rows)
