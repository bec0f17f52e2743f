"""What was spent, as the API's values: costs, usage records, and the machines of the past."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from datetime import datetime, timedelta
from decimal import Decimal

from burst.money import apel, ogf, records
from burst.money.usage import BY, LeaseUse, Work, cost_by, shares
from gateway.api import models as m
from gateway.api.times import Refused, instant
from gateway.sitefile import SiteFile
from gateway.store import Store

FORMATS = ("csv", "ur", "apel")
_LONGEST_RUN = timedelta(days=400)  # a bill that ends in the window may have begun so long before


class Bills:
    def __init__(self, file: SiteFile, store: Store, clock: Callable[[], datetime]) -> None:
        self._site = file.site.site
        self._host = f"{file.site.host}.{file.site.site}" if file.site.host else file.site.site
        self._currency = file.burst.currency if file.burst else ""
        self._store = store
        self._clock = clock

    def cost(self, by: str, since: str, before: str, tenant: str) -> m.CostReport:
        """Raises `Refused` for a word or a date that cannot be meant."""
        if by not in BY:
            raise Refused(f"nothing is added up by {by!r}; there is {', '.join(BY)}")
        start, end = self._window(since, before)
        uses = self._uses(start, tenant)
        found = shares(uses, self._works(start), start, end)
        costs = cost_by(by, found)
        total: dict[str, Decimal] = {}
        for cost in costs:
            unit = self._unit(cost.unit)
            total[unit] = total.get(unit, Decimal(0)) + cost.amount
        return m.CostReport(
            by=by,
            since=start,
            before=end,
            costs=tuple(
                m.Cost(**(_values(cost) | {"unit": self._unit(cost.unit)})) for cost in costs
            ),
            total=total,
        )

    def rows(self, since: str, before: str, tenant: str) -> list[records.Row]:
        """Of machines returned in the window."""
        start, end = self._window(since, before)
        uses = [
            use
            for use in self._uses(start, tenant)
            if use.ended is not None and (end is None or use.ended < end)
        ]
        return records.rows(self._site, self._currency, uses, self._works(start))

    def usage(self, since: str, before: str, tenant: str) -> tuple[m.UsageRow, ...]:
        return tuple(m.UsageRow(**_values(row)) for row in self.rows(since, before, tenant))

    def usage_text(self, form: str, since: str, before: str, tenant: str) -> m.UsageText:
        rows = self.rows(since, before, tenant)
        if form == "csv":
            return m.UsageText(format=form, records=len(rows), texts=(records.as_csv(rows),))
        found = records.job_records(rows)
        if form == "ur":
            texts: tuple[str, ...] = (ogf.document(found, self._host, self._clock()),)
        elif form == "apel":
            texts = tuple(apel.messages(found, self._host))
        else:
            raise Refused(f"there is no format {form!r}; there is {', '.join(FORMATS)}")
        return m.UsageText(format=form, records=len(found), texts=texts)

    def history(self, since: str, tenant: str, limit: int) -> tuple[m.Past, ...]:
        """The machines of the past and of now, the latest first."""
        start, _ = self._window(since, "")
        uses = self._uses(start, tenant)
        jobs: Counter[str] = Counter()
        for lease, _job in {(work.lease, work.job) for work in self._works(start)}:
            jobs[lease] += 1
        uses.sort(key=lambda use: (use.started, use.lease), reverse=True)
        return tuple(
            m.Past(
                lease=use.lease,
                tenant=use.tenant,
                pool=use.pool,
                provider=use.provider,
                type=use.type,
                node=use.node,
                started=use.started,
                ended=use.ended,
                amount=use.amount,
                unit=self._unit(use.unit),
                outcome=use.outcome,
                jobs=jobs[use.lease],
            )
            for use in uses[:limit]
        )

    def _window(self, since: str, before: str) -> tuple[datetime | None, datetime | None]:
        now = self._clock()
        start, end = instant(since, now), instant(before, now)
        if start is not None and end is not None and end <= start:
            raise Refused(f"nothing lies between {since} and {before}: the first must be earlier")
        return start, end

    def _uses(self, since: datetime | None, tenant: str) -> list[LeaseUse]:
        found = self._store.accounts.uses(self._clock(), since)
        return [use for use in found if tenant in ("", use.tenant)]

    def _works(self, since: datetime | None) -> list[Work]:
        return self._store.accounts.works(since - _LONGEST_RUN if since else None)

    def _unit(self, unit: str) -> str:
        return unit or self._currency


def _values(value: object) -> dict[str, object]:
    return {field.name: getattr(value, field.name) for field in fields(value)}  # type: ignore[arg-type]
