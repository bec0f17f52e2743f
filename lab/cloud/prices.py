"""AWS Price List `GetProducts` for the lab's instance types; moto has no pricing service.

The rules are those of the Price List Query API: a filter is TERM_MATCH on an attribute's whole
value, several are all to be met; an entry is JSON in a string; at most 100 entries a page, the next
one by NextToken. As in AWS's own list each type has many products: Linux and Windows, shared and
dedicated, in use and reserved-but-unused, with reserved terms beside the on-demand one; only one
of them is the price of a Linux machine on demand.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from lab.cloud.query import Answer
from lab.cloud.types import TYPES, InstanceType

_MOST = 100
_SYSTEMS = {"Linux": Decimal(1), "Windows": Decimal("1.9")}
_TENANCIES = {"Shared": Decimal(1), "Dedicated": Decimal("1.06")}
# An unused reservation is charged by hour, a used one not at all, and neither is what we rent.
_CAPACITY = {
    "Used": Decimal(1),
    "UnusedCapacityReservation": Decimal(1),
    "AllocatedCapacityReservation": Decimal(0),
}


def price_list(body: bytes, region: str) -> Answer:
    """The answer to a GetProducts request."""
    given = json.loads(body or b"{}")
    if given.get("ServiceCode") != "AmazonEC2":
        return _refused("InvalidParameterException", "The lab's price list has AmazonEC2 only")
    filters = given.get("Filters", [])
    if any(f.get("Type") != "TERM_MATCH" for f in filters):
        return _refused("InvalidParameterException", "The lab knows filters of TERM_MATCH only")
    wanted = {f["Field"]: f["Value"] for f in filters}
    token = str(given.get("NextToken", "0"))
    if not token.isdigit():
        return _refused("InvalidNextTokenException", f"{token!r} is no token")
    start, size = int(token), min(int(given.get("MaxResults", _MOST)), _MOST)
    found = [json.dumps(entry) for entry in _products(region) if _fits(entry, wanted)]
    content: dict[str, Any] = {"FormatVersion": "aws_v1", "PriceList": found[start : start + size]}
    if len(found) > start + size:
        content["NextToken"] = str(start + size)
    return _json(200, content)


def _fits(entry: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    attributes = entry["product"]["attributes"]
    return all(attributes.get(name) == value for name, value in wanted.items())


def _products(region: str) -> Iterator[dict[str, Any]]:
    for kind in TYPES.values():
        for system, tenancy, status in itertools.product(_SYSTEMS, _TENANCIES, _CAPACITY):
            yield _product(kind, region, system, tenancy, status)


def _product(
    kind: InstanceType, region: str, system: str, tenancy: str, status: str
) -> dict[str, Any]:
    letters = system[0] + tenancy[0] + status[0]
    sku = f"LAB{kind.name.replace('.', '').upper()}{letters}"
    price = kind.price_per_hour * _SYSTEMS[system] * _TENANCIES[tenancy] * _CAPACITY[status]
    upfront = {"unit": "Quantity", "description": "Upfront Fee", "pricePerUnit": {"USD": "100"}}
    return {
        "product": {
            "productFamily": "Compute Instance",
            "sku": sku,
            "attributes": {
                "instanceType": kind.name,
                "vcpu": str(kind.vcpus),
                "memory": f"{kind.memory_mb / 1024:g} GiB",
                "operatingSystem": system,
                "tenancy": tenancy,
                "preInstalledSw": "NA",
                "capacitystatus": status,
                "regionCode": region,
                "locationType": "AWS Region",
                "marketoption": "OnDemand",
            },
        },
        "serviceCode": "AmazonEC2",
        "terms": {
            "OnDemand": {f"{sku}.LAB": _term(f"{sku}.LAB.HRS", _hourly(price, system, kind.name))},
            "Reserved": {
                f"{sku}.RES": {
                    "priceDimensions": {
                        f"{sku}.RES.HRS": _hourly(price / 2, system, kind.name),
                        f"{sku}.RES.ONE": upfront,
                    }
                }
            },
        },
    }


def _term(name: str, rate: Mapping[str, Any]) -> dict[str, Any]:
    return {"priceDimensions": {name: rate}}


def _hourly(price: Decimal, system: str, kind: str) -> dict[str, Any]:
    return {
        "unit": "Hrs",
        "description": f"${price} per {system} {kind} Instance Hour",
        "pricePerUnit": {"USD": f"{price:.10f}"},
    }


def _refused(code: str, message: str) -> Answer:
    return _json(400, {"__type": code, "message": message})


def _json(status: int, content: Mapping[str, Any]) -> Answer:
    headers = {"Content-Type": "application/x-amz-json-1.1"}
    return Answer(status, json.dumps(content).encode(), headers)
