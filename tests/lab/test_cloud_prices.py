"""What the lab EC2 says of prices, by boto3 and by the product's own provider."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from burst.providers.base import LaunchRequest, NoCapacity
from burst.providers.ec2 import Ec2Config, Ec2Provider
from lab.cloud.types import TYPES
from tests.lab.test_cloud_api import KEY, REGION, SECRET, Cloud, cloud, session

__all__ = ["cloud"]  # the fixture
ZONE = f"{REGION}a"
LISTED = TYPES["c5.large"].price_per_hour
SPOT = LISTED * Decimal("0.30")


def history(cloud: Cloud, **query: Any) -> list[dict[str, Any]]:
    given = {"InstanceTypes": ["c5.large"], "AvailabilityZone": ZONE, **query}
    pages = cloud.ec2.get_paginator("describe_spot_price_history").paginate(**given)
    return [entry for page in pages for entry in page["SpotPriceHistory"]]


def test_the_price_in_force_at_the_start_is_in_the_answer_and_the_latest_comes_first(
    cloud: Cloud,
) -> None:
    now = cloud.clock.now
    for hours, price in ((-3, "0.04"), (-1, "0.05"), (2, "0.09")):
        cloud.backend.market.set("c5.large", ZONE, Decimal(price), now + timedelta(hours=hours))
    found = history(cloud, StartTime=now - timedelta(hours=2), EndTime=now)
    assert [Decimal(entry["SpotPrice"]) for entry in found] == [Decimal("0.05"), Decimal("0.04")]
    (at_once,) = history(cloud, StartTime=now, EndTime=now)
    assert Decimal(at_once["SpotPrice"]) == Decimal("0.05")
    assert history(cloud, ProductDescriptions=["Windows"]) == []
    (first, *_) = history(cloud, MaxResults=1)
    assert Decimal(first["SpotPrice"]) == Decimal("0.05"), "what begins later is not told"
    with pytest.raises(ClientError, match="availability zone"):
        history(cloud, AvailabilityZone="mars-1a")


def test_a_spot_machine_costs_the_spot_price_and_a_low_offer_is_refused(cloud: Cloud) -> None:
    def rent(**options: str) -> str:
        market = {"MarketType": "spot", "SpotOptions": options}
        (one,) = cloud.run(InstanceMarketOptions=market)
        return str(one["InstanceId"])

    with pytest.raises(ClientError, match="SpotMaxPriceTooLow"):
        rent(MaxPrice="0.01")
    name = rent(MaxPrice="0.0505")
    cloud.backend.powered_on(name)
    cloud.clock.advance(3600)
    assert cloud.backend.ledger.cost(cloud.clock.now, name) == SPOT
    assert cloud.listed()[name]["InstanceLifecycle"] == "spot"


def test_the_price_list_has_many_products_and_pages(cloud: Cloud) -> None:
    pricing = session().client(
        "pricing",
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        endpoint_url=cloud.url,
    )
    wanted = [{"Type": "TERM_MATCH", "Field": "instanceType", "Value": "c5.large"}]
    pages = pricing.get_paginator("get_products").paginate(
        ServiceCode="AmazonEC2", Filters=wanted, PaginationConfig={"PageSize": 5}
    )
    counts = [len(page["PriceList"]) for page in pages]
    assert counts == [5, 5, 2]
    with pytest.raises(ClientError, match="InvalidParameterException"):
        pricing.get_products(ServiceCode="AmazonS3")


@pytest.fixture
def config(cloud: Cloud, tmp_path: Path) -> Ec2Config:
    keys = tmp_path / "credentials"
    keys.write_text(f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    return Ec2Config(
        region=REGION,
        image=cloud.image,
        subnet=cloud.subnet,
        security_groups=(cloud.group,),
        types=("c5.large", "m5.large"),
        site="cnaf",
        credentials=keys,
        endpoint=cloud.url,
        spot=True,
        rate=Decimal("0.92"),
    )


def test_offers_are_in_the_sites_currency_on_demand_and_spot(
    cloud: Cloud, config: Ec2Config
) -> None:
    provider = Ec2Provider("aws", config, clock=cloud.clock)
    found = {(one.type, one.spot): one.price_per_hour for one in provider.offers()}
    assert found == {
        ("c5.large", False): LISTED * Decimal("0.92"),
        ("m5.large", False): TYPES["m5.large"].price_per_hour * Decimal("0.92"),
        ("c5.large", True): (SPOT * Decimal("0.92")).quantize(Decimal("0.000001"), "ROUND_CEILING"),
        ("m5.large", True): Decimal("0.030912"),
    }
    own = replace(config, prices={"c5.large": Decimal("0.2")}, spot=False)
    assert Ec2Provider("aws", own, clock=cloud.clock).offers()[0].price_per_hour == Decimal("0.2")
    only = replace(config, on_demand=False)
    assert {one.spot for one in Ec2Provider("aws", only, clock=cloud.clock).offers()} == {True}


def test_a_changed_spot_price_is_seen_at_the_next_look(cloud: Cloud, config: Ec2Config) -> None:
    provider = Ec2Provider("aws", replace(config, on_demand=False), clock=cloud.clock)
    provider.offers()
    cloud.backend.market.set("c5.large", ZONE, Decimal("0.09"), cloud.clock.now)
    changed = {one.type: one.price_per_hour for one in provider.offers()}
    assert changed["c5.large"] == Decimal("0.0828")


def request(price: str, **more: Any) -> LaunchRequest:
    values: dict[str, Any] = {
        "lease_id": "a" * 32,
        "tenant": "cms",
        "pool": "cms-aws",
        "type": "c5.large",
        "zone": ZONE,
        "name": "cms-aws-aaaaaaaa",
        "user_data": "#!/bin/sh\n",
        "spot": True,
        "max_price": Decimal(price),
    }
    return LaunchRequest(**(values | more))


def test_a_spot_machine_is_asked_for_at_no_more_than_was_reserved(
    cloud: Cloud, config: Ec2Config
) -> None:
    provider = Ec2Provider("aws", config, clock=cloud.clock)
    (offer,) = [one for one in provider.offers() if one.spot and one.type == "c5.large"]
    with pytest.raises(NoCapacity, match="SpotMaxPriceTooLow"):
        provider.launch(request("0.02"))
    cloud.backend.market.set("c5.large", ZONE, SPOT * 2, cloud.clock.now)
    with pytest.raises(NoCapacity, match="SpotMaxPriceTooLow"):
        provider.launch(request(str(offer.price_per_hour), lease_id="b" * 32))
    machine = provider.launch(request("0.10", lease_id="c" * 32))
    assert cloud.listed()[machine.id]["InstanceLifecycle"] == "spot"
