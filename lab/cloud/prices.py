"""AWS Price List `GetProducts` for the lab's instance types; moto has no pricing service.

(AWS: "Using the AWS Price List Query API": an entry is JSON in a string.) Of the filters only
`instanceType` and `regionCode` choose; every product is Linux, on demand, shared tenancy.
"""

from __future__ import annotations

import json
from typing import Any

from lab.cloud.query import Answer
from lab.cloud.types import TYPES, InstanceType


def price_list(body: bytes, region: str) -> Answer:
    """The answer to a GetProducts request."""
    given = json.loads(body or b"{}")
    filters = {f["Field"]: f["Value"] for f in given.get("Filters", [])}
    found = [
        json.dumps(_product(t, region))
        for t in TYPES.values()
        if filters.get("instanceType", t.name) == t.name
        and filters.get("regionCode", region) == region
    ]
    content = json.dumps({"FormatVersion": "aws_v1", "PriceList": found})
    return Answer(200, content.encode(), {"Content-Type": "application/x-amz-json-1.1"})


def _product(kind: InstanceType, region: str) -> dict[str, Any]:
    sku = f"LAB{kind.name.replace('.', '').upper()}"
    rate = {
        "unit": "Hrs",
        "description": f"${kind.price_per_hour} per On Demand Linux {kind.name} Instance Hour",
        "pricePerUnit": {"USD": str(kind.price_per_hour)},
    }
    return {
        "product": {
            "productFamily": "Compute Instance",
            "sku": sku,
            "attributes": {
                "instanceType": kind.name,
                "vcpu": str(kind.vcpus),
                "memory": f"{kind.memory_mb / 1024:g} GiB",
                "operatingSystem": "Linux",
                "tenancy": "Shared",
                "preInstalledSw": "NA",
                "capacitystatus": "Used",
                "regionCode": region,
            },
        },
        "serviceCode": "AmazonEC2",
        "terms": {"OnDemand": {f"{sku}.LAB": {"priceDimensions": {f"{sku}.LAB.HRS": rate}}}},
    }
