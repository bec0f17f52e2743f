"""What we switched on for the whole host, remembered beside our nft tables.

The sets in our tables are that memory (vlans/forwarding.py), and `nft flush ruleset` wipes them.
Without a second one, forwarding that we switched on would look like somebody else's: never switched
back, and open to foreign packets. /run holds it: like sysctls it does not outlive the machine's
start. The file names the network namespace, for a host may have several.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from dvn.kernel.state import NftSet, NftTable, table_name
from dvn.vlans.forwarding import ACCEPTED, ADVERTS, OPENED4, OPENED6

_DIRECTORY = Path("/run/dvn/switched")
_TYPES = {
    OPENED4: ("ifname",),
    OPENED6: ("nf_proto",),
    ADVERTS: ("ifname",),
    ACCEPTED: ("inet_proto",),
}


class SwitchMemory:
    """One file a site. What cannot be read is forgotten, what cannot be written is not kept: the
    sets in the kernel come first."""

    def __init__(self, directory: Path = _DIRECTORY) -> None:
        self._directory = directory / str(Path("/proc/self/ns/net").stat().st_ino)
        self._kept: dict[str, dict[str, list[str]]] = {}

    def tables(self) -> tuple[NftTable, ...]:
        """Of each site a table with nothing but the sets that are the memory."""
        try:
            names = [path.name for path in self._directory.glob("*.json")]
        except OSError:
            return ()
        return tuple(self.table(name.removesuffix(".json")) for name in sorted(names))

    def table(self, site: str) -> NftTable:
        """Of one site."""
        kept = self._read(site)
        sets = (
            NftSet(name, kind, frozenset((str(word),) for word in kept.get(name, ())))
            for name, kind in _TYPES.items()
        )
        return NftTable("inet", table_name(site), tuple(sets))

    def keep(self, site: str, tables: Iterable[NftTable]) -> None:
        """Remember what the sets of these tables say. Writes only what changed."""
        said = {
            each.name: sorted(element[0] for element in each.elements)
            for table in tables
            for each in table.sets
            if each.name in _TYPES and each.elements
        }
        if said == self._read(site):
            return
        path = self._directory / f"{site}.json"
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            unfinished = path.with_suffix(f".{os.getpid()}")
            if said:
                unfinished.write_text(json.dumps(said))
                unfinished.replace(path)
            else:
                path.unlink(missing_ok=True)
        except OSError:
            self._kept.pop(site, None)
            return
        self._kept[site] = said

    def _read(self, site: str) -> dict[str, list[str]]:
        try:
            value = json.loads((self._directory / f"{site}.json").read_text())
        except (OSError, ValueError):
            return self._kept.get(site, {})
        return value if isinstance(value, dict) else {}
