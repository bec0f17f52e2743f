"""What EC2 charges: the AWS Price List for on-demand machines, the spot price history for others.

Answers are read as they are; whoever calls turns botocore's exceptions into ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from burst.providers.base import Misconfigured

_PRODUCT = "Linux/UNIX"  # the ProductDescription of spot prices outside of EC2-Classic


def on_demand(pricing: Any, kind: str, region: str) -> Decimal:
    """The on-demand price of an hour of a Linux machine in AWS's currency (GetProducts of the
    Price List Query API; `capacitystatus` Used is what is not part of a reservation).

    Raises `Misconfigured` when the list has no price, or several that differ.
    """
    wanted = {
        "instanceType": kind,
        "regionCode": region,
        "operatingSystem": "Linux",
        "preInstalledSw": "NA",
        "tenancy": "Shared",
        "capacitystatus": "Used",
    }
    asked: dict[str, Any] = {
        "ServiceCode": "AmazonEC2",
        "Filters": [
            {"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in wanted.items()
        ],
    }
    found: set[Decimal] = set()
    while True:
        page = pricing.get_products(**asked)
        found |= {price for entry in page["PriceList"] for price in _hourly(entry)}
        if not page.get("NextToken"):
            break
        asked["NextToken"] = page["NextToken"]
    if len(found) == 1:
        return found.pop()
    told = f"has several prices for {kind}" if found else f"has no {kind}"
    raise Misconfigured(
        f"the price list {told} in {region}; give it under `prices` in the site file"
    )


def _hourly(entry: str) -> Iterator[Decimal]:
    """The on-demand prices above zero of one product, which is JSON in a string."""
    for term in json.loads(entry)["terms"].get("OnDemand", {}).values():
        for dimension in term["priceDimensions"].values():
            if dimension.get("unit", "Hrs") == "Hrs":
                price = Decimal(next(iter(dimension["pricePerUnit"].values())))
                if price > 0:
                    yield price


def spot(ec2: Any, kinds: Sequence[str], zone: str, now: datetime) -> dict[str, Decimal]:
    """The spot price now, of those types that have one in the zone (DescribeSpotPriceHistory:
    with equal StartTime and EndTime it answers the price at that instant)."""
    pages = ec2.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=list(kinds),
        ProductDescriptions=[_PRODUCT],
        AvailabilityZone=zone,
        StartTime=now,
        EndTime=now,
    )
    latest: dict[str, Mapping[str, Any]] = {}
    for page in pages:
        for entry in page["SpotPriceHistory"]:
            known = latest.get(entry["InstanceType"])
            if known is None or entry["Timestamp"] > known["Timestamp"]:
                latest[entry["InstanceType"]] = entry
    return {kind: Decimal(latest[kind]["SpotPrice"]) for kind in kinds if kind in latest}
