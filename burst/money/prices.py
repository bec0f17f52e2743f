"""What an hour of a machine costs, in the unit of the account that pays.

In this order: a partner's quota (then an hour costs its cores, in core-hours), the site's price
file, and what the provider says, which has converted it to the site's currency.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation

from burst.model import Offer

CORE_HOURS = "core-hours"
_COLUMNS = ("type", "price_per_hour", "zone", "spot")


class PriceFileError(Exception):
    """A price file says something that cannot be meant; the message names file and line."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of a price file: an hour of a type, in a zone (empty: in all), spot or not."""

    type: str
    price_per_hour: Decimal  # in the site's currency
    zone: str = ""
    spot: bool = False


@dataclass(frozen=True, slots=True)
class Pricing:
    """How one provider's offers are priced."""

    quota: bool = False
    listed: Sequence[Listed] = ()

    def price(self, offer: Offer) -> Offer:
        """The offer as the account sees it."""
        if self.quota:
            return replace(offer, price_per_hour=Decimal(offer.cores), unit=CORE_HOURS)
        known = self._listed(offer)
        return offer if known is None else replace(offer, price_per_hour=known)

    def _listed(self, offer: Offer) -> Decimal | None:
        fitting = [
            one
            for one in self.listed
            if (one.type, one.spot) == (offer.type, offer.spot) and one.zone in ("", offer.zone)
        ]
        best = max(fitting, key=lambda one: one.zone, default=None)  # one with a zone before all
        return best.price_per_hour if best else None


def read_price_file(text: str, name: str) -> tuple[Listed, ...]:
    """A CSV file with a header: `type,price_per_hour[,zone][,spot]`; `#` begins a comment.

    Raises `PriceFileError` with `name` and the line.
    """
    lines = text.splitlines()
    rows = [(number, line) for number, line in enumerate(lines, 1) if _said(line)]
    if not rows:
        raise PriceFileError(f"{name}: there is no price in it; write type,price_per_hour")
    header = [cell.strip() for cell in rows[0][1].split(",")]
    unknown = [cell for cell in header if cell not in _COLUMNS]
    if unknown or not {"type", "price_per_hour"} <= set(header):
        wrong = f"column {unknown[0]!r} is not known" if unknown else "a column is missing"
        raise PriceFileError(
            f"{name}:{rows[0][0]}: {wrong}; the first line names the columns: "
            f"{','.join(_COLUMNS[:2])}[,zone][,spot]"
        )
    found: dict[tuple[str, str, bool], Listed] = {}
    for number, line in rows[1:]:
        one = _listed_in(dict(zip(header, _cells(line), strict=False)), f"{name}:{number}")
        key = (one.type, one.zone, one.spot)
        if key in found:
            raise PriceFileError(f"{name}:{number}: {one.type} has a price already; remove one")
        found[key] = one
    return tuple(found.values())


def _said(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader(io.StringIO(line)))]


def _listed_in(row: Mapping[str, str], place: str) -> Listed:
    kind, text = row.get("type", ""), row.get("price_per_hour", "")
    if not kind:
        raise PriceFileError(f"{place}: there is no type; write TYPE,PRICE")
    try:
        price = Decimal(text)
    except InvalidOperation:
        price = Decimal("NaN")
    if not price.is_finite() or price < 0:
        raise PriceFileError(
            f"{place}: {text!r} is not a price; write it like 0.101, without a currency"
        )
    spot = row.get("spot", "").lower()
    if spot not in ("", "yes", "no", "true", "false"):
        raise PriceFileError(f"{place}: spot is {spot!r}; write yes or no")
    return Listed(kind, price, row.get("zone", ""), spot in ("yes", "true"))
