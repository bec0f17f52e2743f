"""The burst loop's notes of which job ran on which borrowed machine."""

from __future__ import annotations

from datetime import timedelta

from burst.model import Facts
from burst.money.usage import Work
from burst.money.watching import Key, changes, key_of
from gateway.store.accounts import Accounts

_REMEMBERED = timedelta(days=2)  # longer than any batch system shows a job that has ended


class Timesheet:
    """Writes only what is new: nothing in a round in which no job began or ended."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._known: dict[Key, Work] | None = None

    def look(self, facts: Facts) -> None:
        if facts.farm is None:
            return
        if self._known is None:
            works = self._accounts.works(since=facts.now - _REMEMBERED)
            self._known = {key_of(work): work for work in works}
        found = changes(self._known, facts.farm, facts.leases, facts.now)
        if found:
            self._accounts.note_work(found)
        for work in found:
            self._known[key_of(work)] = work
        if len(self._known) > 2 * len(facts.farm.jobs) + 10_000:
            horizon = facts.now - _REMEMBERED
            self._known = {
                key: work
                for key, work in self._known.items()
                if work.ended is None or work.ended > horizon
            }
