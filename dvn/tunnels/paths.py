"""What is known of the paths of a site's tunnels, kept in a file: measured, not declared.

The kernel cannot tell why a tunnel's MTU is what it is, so this is not read back from it. Without
the file nothing is wrong: an MTU is what the underlay says, and `auto` waits for a probe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

DIRECTORY = Path("/var/lib/dvn/paths")


@dataclass(frozen=True)
class Known:
    """Of one tunnel: the largest IP packet its path carries, what carries it if it is `auto`, and
    why."""

    mtu: int | None = None
    transport: str | None = None
    why: str = ""


def load(site: str, directory: Path = DIRECTORY) -> Mapping[str, Known]:
    """By `tenant/tunnel`; empty without a file, or with one that is none of ours."""
    try:
        found = json.loads((directory / f"{site}.json").read_text())
    except (OSError, ValueError):
        return {}
    known = {}
    for name, row in found.items() if isinstance(found, dict) else ():
        if isinstance(row, dict) and isinstance(name, str):
            mtu = row.get("mtu")
            known[name] = Known(
                mtu if isinstance(mtu, int) and mtu > 0 else None,
                str(row["transport"]) if row.get("transport") else None,
                str(row.get("why", "")),
            )
    return known


def save(site: str, known: Mapping[str, Known], directory: Path = DIRECTORY) -> None:
    """Whole or not at all. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{site}.json"
    new = file.with_name(f".{file.name}.new")
    rows = {name: asdict(row) for name, row in sorted(known.items())}
    new.write_text(json.dumps(rows, indent=1) + "\n")
    new.replace(file)
