"""Connections that are still to be cut, noted in the kernel until it is done.

The rules change first and the connections go after, so a kill in between would leave what the old
rules had let in. The change that makes connections stale therefore writes their networks' marks
into a set of its own, in the same transaction; they are taken out when the connections are cut.
Whoever finds marks there cuts all connections of these networks: more than was needed, once. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from dvn.kernel import nftdiff
from dvn.kernel.conntrack import Flows
from dvn.kernel.nftcommands import AddElements, DelElements
from dvn.kernel.state import Element, KernelState, NftSet, NftTable
from dvn.kernel.steps import CutConnections, NftChange, Step
from dvn.nat.stale import stale

DEBTS = NftSet("debts", ("mark",))


def without_debts(tables: Iterable[NftTable]) -> tuple[NftTable, ...]:
    """The tables as if nothing were owed."""
    return tuple(_without(table) if _owed(table) else table for table in tables)


class Debts:
    """What a plan is to cut, and what an earlier one has left uncut."""

    def __init__(self, observed: KernelState, desired: KernelState) -> None:
        self._left = frozenset(mark for table in observed.tables for mark in _owed(table))
        left = dict.fromkeys(Flows(int(mark)) for (mark,) in sorted(self._left))
        self.flows = tuple(left | dict.fromkeys(stale(observed, desired)))
        # Where a table is made anew, so is the set.
        wanted = {(table.family, table.name): table for table in desired.tables}
        self._table = next(
            (
                (table.family, table.name)
                for table in observed.tables
                if any(each.name == DEBTS.name for each in table.sets)
                and _stands(table, wanted.get((table.family, table.name)))
            ),
            None,
        )
        self._noted: frozenset[Element] = frozenset()

    def noted(self, change: NftChange | None) -> NftChange | None:
        """`change`, and with it the marks of whose connections are to be cut."""
        marks = frozenset((str(flows.mark),) for flows in self.flows) - self._left
        if change is None or self._table is None or self._noted or not marks:
            return change
        self._noted = marks
        return NftChange((AddElements(self._table, DEBTS, marks), *change.commands))

    def paid(self) -> Iterator[Step]:
        """The cut, and then the marks out again."""
        if self.flows:
            yield CutConnections(self.flows)
        done = self._noted | (self._left if self._table else frozenset())
        if self._table and done:
            yield NftChange((DelElements(self._table, DEBTS, done),))


def _stands(table: NftTable, wanted: NftTable | None) -> bool:
    return wanted is not None and nftdiff.stands(table, wanted)


def _owed(table: NftTable) -> frozenset[Element]:
    return next((each.elements for each in table.sets if each.name == DEBTS.name), frozenset())


def _without(table: NftTable) -> NftTable:
    empty = (replace(s, elements=frozenset()) if s.name == DEBTS.name else s for s in table.sets)
    return replace(table, sets=tuple(empty))
