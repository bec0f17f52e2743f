"""Rates: how they are written, what they compile to, and what goes to the kernel."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from dvn import located
from dvn.compile import compile_site
from dvn.engine import Engine
from dvn.kernel.netlink import Request
from dvn.kernel.state import Ifb
from dvn.rates.driver import TCA_TBF_RATE64, RatesDriver
from dvn.rates.things import Detour, Shaper, major
from dvn.spec import Site, parse_site, site_from_json
from dvn.spec.rate import HIGHEST, LOWEST, Rate, bits, written
from tests.dvn.sites import a_kernel


@given(st.integers(LOWEST, HIGHEST))
def test_written_and_read_again(rate: int) -> None:
    assert bits(written(rate)) == rate
    assert Rate.model_validate(written(rate)).inward == written(rate)


@pytest.mark.parametrize(
    ("text", "rate"),
    [("50mbit", "50mbit"), ("2.5gbit", "2500mbit"), ("1000kbit", "1mbit"), ("1 Gbit", "1gbit")],
)
def test_two_ways_to_write_it_are_one_value(text: str, rate: str) -> None:
    assert Rate.model_validate(text) == Rate(inward=rate, outward=rate)
    assert Rate.model_validate({"in": text}) == Rate(inward=rate)


def site(network: str = "", port: str = "") -> Site:
    farm = f"{{prefix: 10.9.0.0/24, {network} ports: [{{interface: tap3, {port}}}]}}"
    return parse_site(
        located.loads(f"site: cnaf\ntenants: {{cms: {{networks: {{farm: {farm}}}}}}}")
    )


def test_it_survives_json() -> None:
    capped = site("rate: {in: 5mbit},", "rate: 1gbit")
    assert site_from_json(capped.model_dump(mode="json")) == capped


def test_each_way_has_its_shaper() -> None:
    host = a_kernel().look("cnaf").host
    state = compile_site(site("rate: {in: 5mbit},", "rate: {out: 1gbit}"), host).state
    assert set(state.things) == {
        Shaper("b-cms-farm", 5_000_000, "cnaf"),
        Shaper("q-tap3", 10**9, "cnaf"),
        Detour("tap3", "q-tap3", "cnaf"),
    }
    assert [link.name for link in state.links if isinstance(link.params, Ifb)] == ["q-tap3"]


def test_a_cap_is_changed_in_place_and_goes() -> None:
    kernel = a_kernel()
    engine = Engine(kernel)
    engine.apply(site("rate: 50mbit,"))
    assert engine.apply(site("rate: {in: 50mbit, out: 20mbit},")).steps == (
        "~ rate of r-cms-farm: 50mbit => of r-cms-farm: 20mbit",
    )
    engine.apply(site())
    assert not {"rate", "detour"} & {thing.kind for thing in kernel.things.values()}
    assert set(kernel.links) == {"g-cms-farm", "b-cms-farm"}


def decoded(request: Request) -> Any:
    message = tcmsg(request.pack(1))
    message.decode()
    return message


def test_a_shaper_as_pyroute2_reads_it() -> None:
    shaper = Shaper("tap3", 50_000_000, "cnaf")
    root, leaf = map(decoded, RatesDriver().requests(shaper, None, lambda _name: 7))
    assert (root["index"], root["handle"], root["parent"]) == (7, major("cnaf") << 16, 0xFFFFFFFF)
    assert root.get_attr("TCA_KIND") == "tbf"
    parms = root.get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")
    assert parms["rate"] == 6_250_000
    assert leaf.get_attr("TCA_KIND") == "fq_codel"
    assert leaf["parent"] == root["handle"] | 1


def test_a_cap_beyond_32_bits_of_bytes() -> None:
    """pyroute2 does not know the attribute."""
    root_request, _leaf = RatesDriver().requests(
        Shaper("tap3", 10**11, "cnaf"), None, lambda _name: 7
    )
    root = decoded(root_request)
    options = root.get_attr("TCA_OPTIONS")
    assert options.get_attr("TCA_TBF_PARMS")["rate"] == 2**32 - 1
    assert struct.pack("=HHQ", 12, TCA_TBF_RATE64, 12_500_000_000) in root_request.pack(1)


def test_a_change_is_one_message() -> None:
    now, then = Shaper("tap3", 2_000_000, "cnaf"), Shaper("tap3", 1_000_000, "cnaf")
    assert len(RatesDriver().requests(now, then, lambda _name: 7)) == 1


def test_a_detour_as_pyroute2_reads_it() -> None:
    indexes = {"tap3": 7, "q-tap3": 9}
    detour = Detour("tap3", "q-tap3", "cnaf")
    entry, leads = map(decoded, RatesDriver().requests(detour, None, indexes.__getitem__))
    assert (entry.get_attr("TCA_KIND"), entry["index"]) == ("clsact", 7)
    assert leads["index"] == -1  # into the block, which names link and site
    assert leads["parent"] & 0x1FFFFF == 7
    action = leads.get_attr("TCA_OPTIONS").get_attr("TCA_U32_ACT").get_attr("TCA_ACT_PRIO_1")
    assert action.get_attr("TCA_ACT_KIND") == "mirred"
    assert action.get_attr("TCA_ACT_OPTIONS").get_attr("TCA_MIRRED_PARMS")["ifindex"] == 9


def test_sites_have_their_own_mark() -> None:
    assert 0x4000 <= major("cnaf") < 0x8000
    assert major("cnaf") != major("bari")
