"""The tables of nftables that have a name of ours, read again only when somebody changed one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeAlias

from dvn.kernel.driver import RuleCounter
from dvn.kernel.opened import Opened, refused
from dvn.kernel.state import NftTable, table_name

_Tables: TypeAlias = tuple[tuple[NftTable, ...], list[NftTable], frozenset[tuple[str, str]]]


class Tables(Opened):
    """What is read of nftables."""

    def __init__(self) -> None:
        super().__init__()
        self._read: tuple[str, int, _Tables] | None = None

    def _our_tables(self) -> list[tuple[str, str, NftTable | None]]:
        """Tables with a name of ours; None if they have no marker of ours."""
        try:
            return [
                (family, name, self._nft.table(family, name))
                for family, name in self._nft.table_names()
                if name.startswith(table_name(""))
            ]
        except OSError as error:
            raise refused(error) from error

    def _tables_at(self, site: str, generation: int) -> _Tables:
        """What `_tables` reads; nothing is read again while nobody has changed the ruleset."""
        if self._read is None or self._read[:2] != (site, generation):
            read = self._tables(site)
            self._read = (site, generation, read) if self._generation() == generation else None
            return read
        return self._read[2]

    def _tables(self, site: str) -> _Tables:
        """The site's tables, those of our other sites, and foreign ones that have its name."""
        ours: list[NftTable] = []
        others: list[NftTable] = []
        foreign = set()
        for family, name, table in self._our_tables():
            if table is None:
                foreign.add((family, name))
            elif name == table_name(site):
                ours.append(table)
            else:
                others.append(table)
        return tuple(ours), others, frozenset(foreign)

    def listings(self, tables: Iterable[NftTable]) -> tuple[NftTable, ...]:
        return tuple(
            replace(table, listing=self._nft.listing(table.family, table.name)) for table in tables
        )

    def dropped(self, tables: Iterable[NftTable]) -> tuple[RuleCounter, ...]:
        return tuple(
            RuleCounter(f"{table.family} {table.name}", *found)
            for table in tables
            for found in self._nft.dropped(table.family, table.name)
        )
