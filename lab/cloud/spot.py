"""The lab's spot market: prices by type and zone, their history, and who may have a machine at it.

EC2's rules ("Spot Instance pricing history", "DescribeSpotPriceHistory", "Spot request status"):
a price holds from its timestamp until the next one; asked for a time range, the answer has the
changes in it and the one that was in force at its start; the latest come first. A request whose
MaxPrice is below the price is refused, one without MaxPrice has the on-demand price as its limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from xml.sax.saxutils import escape

from lab.cloud import errors
from lab.cloud.errors import ApiError
from lab.cloud.query import Answer, answer, listed
from lab.cloud.types import TYPES

ZONES = "abc"
PRODUCT = "Linux/UNIX"
SHARE = {"a": Decimal("0.30"), "b": Decimal("0.35"), "c": Decimal("0.40")}  # of on demand, at first
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
_MOST = 1000  # entries a page


@dataclass(frozen=True, slots=True)
class Price:
    type: str
    zone: str
    since: datetime
    price: Decimal  # an hour


@dataclass
class SpotMarket:
    region: str
    history: list[Price] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.history += [
            Price(
                kind.name, f"{self.region}{letter}", LONG_AGO, kind.price_per_hour * SHARE[letter]
            )
            for kind in TYPES.values()
            for letter in ZONES
        ]

    def set(self, type_name: str, zone: str, price: Decimal, at: datetime) -> None:
        """The price from `at` on."""
        self.history.append(Price(type_name, zone, at, price))

    def price(self, type_name: str, zone: str, at: datetime) -> Decimal:
        """What is in force at an instant. Raises `ApiError` where there is no market."""
        found = [
            one
            for one in self.history
            if (one.type, one.zone) == (type_name, zone) and one.since <= at
        ]
        if not found:
            raise errors.invalid(f"There is no spot capacity of {type_name} in {zone}")
        return max(found, key=lambda one: one.since).price

    def admitted(
        self, params: Mapping[str, str], type_name: str, zone: str, at: datetime
    ) -> Decimal:
        """The price of a spot request that is served; `ApiError` for one that is not."""
        text = params.get("InstanceMarketOptions.SpotOptions.MaxPrice", "")
        try:
            most = Decimal(text) if text else TYPES[type_name].price_per_hour
        except InvalidOperation:
            raise errors.invalid(f"Invalid value '{text}' for SpotPrice") from None
        price = self.price(type_name, zone, at)
        if most < price:
            raise ApiError(
                "SpotMaxPriceTooLow",
                f"Your Spot request price of {most} is lower than the minimum required Spot "
                f"request fulfillment price of {price}.",
            )
        return price

    def describe(self, params: Mapping[str, str], now: datetime) -> Answer:
        """DescribeSpotPriceHistory."""
        kinds = listed(params, "InstanceType")
        products = listed(params, "ProductDescription")
        zone = params.get("AvailabilityZone", "")
        if zone and zone not in {f"{self.region}{letter}" for letter in ZONES}:
            raise errors.invalid(f"Invalid availability zone: [{zone}]")
        end = _instant(params.get("EndTime")) or now
        start = _instant(params.get("StartTime")) or end
        found: list[Price] = []
        if not products or PRODUCT in products:
            for key in {(one.type, one.zone) for one in self.history}:
                if (not kinds or key[0] in kinds) and zone in ("", key[1]):
                    found += self._within(key, start, end)
        found.sort(key=lambda one: (one.since, one.type, one.zone), reverse=True)
        return self._page(found, params)

    def _within(self, key: tuple[str, str], start: datetime, end: datetime) -> list[Price]:
        mine = [one for one in self.history if (one.type, one.zone) == key and one.since <= end]
        before = [one for one in mine if one.since <= start]
        in_force = [max(before, key=lambda one: one.since)] if before else []
        return [one for one in mine if one.since > start] + in_force

    def _page(self, found: list[Price], params: Mapping[str, str]) -> Answer:
        token, most = params.get("NextToken", ""), params.get("MaxResults", "")
        if not (token or "0").isdigit():
            raise errors.invalid(f"Invalid value '{token}' for nextToken")
        size = min(int(most), _MOST) if most.isdigit() and int(most) else _MOST
        start = int(token or 0)
        rows = "".join(
            f"<item><instanceType>{one.type}</instanceType>"
            f"<productDescription>{escape(PRODUCT)}</productDescription>"
            f"<spotPrice>{one.price:.6f}</spotPrice>"
            f"<timestamp>{one.since.astimezone(UTC):%Y-%m-%dT%H:%M:%S.000Z}</timestamp>"
            f"<availabilityZone>{one.zone}</availabilityZone></item>"
            for one in found[start : start + size]
        )
        more = start + size if len(found) > start + size else ""
        content = f"<spotPriceHistorySet>{rows}</spotPriceHistorySet><nextToken>{more}</nextToken>"
        return answer("DescribeSpotPriceHistory", content)


def _instant(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise errors.invalid(f"Invalid value '{text}' for a time") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
