"""What is switched on beyond our own devices is remembered, filtered and switched back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dvn.engine import Engine
from dvn.kernel.fake import FakeKernel
from dvn.kernel.state import table_name
from dvn.kernel.steps import NftChange, SetSysctl
from dvn.spec import Site, site_from_json
from tests.dvn.sites import a_kernel, full_site, sites

WAN, LAN = "net/ipv4/conf/wan0/forwarding", "net/ipv4/conf/lan0/forwarding"
ALL6, RA = "net/ipv6/conf/all/forwarding", "net/ipv6/conf/wan0/accept_ra"
FOREIGN = (WAN, LAN, ALL6, RA, "net/ipv6/conf/lan0/accept_ra")


def foreign(kernel: FakeKernel) -> dict[str, str]:
    return {key: kernel.values[key] for key in FOREIGN}


def memory(kernel: FakeKernel, site: str = "cnaf") -> dict[str, set[str]]:
    table = kernel.tables["inet", table_name(site)]
    return {
        s.name: {element[0] for element in s.elements}
        for s in table.sets
        if s.name in ("opened4", "opened6", "adverts")
    }


def changed(change: object) -> str:
    return str(change) if isinstance(change, NftChange) else ""


def test_the_filter_comes_first_and_goes_last() -> None:
    kernel = a_kernel()
    engine = Engine(kernel)
    before = foreign(kernel)
    engine.apply(full_site())
    assert memory(kernel) == {
        "opened4": {"wan0", "lan0"},
        "opened6": {"ipv6"},
        "adverts": {"wan0", "lan0"},
    }
    assert {kernel.values[key] for key in (WAN, LAN, ALL6)} == {"1"}
    assert kernel.values[RA] == "2"

    def at(key: str) -> int:
        return next(
            i for i, s in enumerate(kernel.done) if isinstance(s, SetSysctl) and s.key == key
        )

    filters = next(
        i for i, s in enumerate(kernel.done) if "element inet dvn-cnaf opened4" in changed(s)
    )
    assert filters < at(WAN) < at(ALL6)
    assert at(RA) < at(ALL6)
    kernel.done.clear()
    engine.destroy("cnaf")
    assert foreign(kernel) == before
    gone = next(i for i, s in enumerate(kernel.done) if "- table inet dvn-cnaf" in changed(s))
    assert at(ALL6) < at(RA) < gone
    assert at(WAN) < gone


def test_a_network_that_needs_it_no_more() -> None:
    """The same within a table that stays: switched back before its element goes."""
    kernel = a_kernel()
    engine = Engine(kernel)
    before = foreign(kernel)
    engine.apply(full_site())
    data = full_site().model_dump(mode="json")
    for tenant in data["tenants"].values():
        for network in tenant["networks"].values():
            network |= {"access": "closed", "nat": None}
    kernel.done.clear()
    engine.apply(site_from_json(data))
    assert foreign(kernel) == before
    assert not any(memory(kernel).values())
    kinds = [s for s in kernel.done if isinstance(s, SetSysctl) or "opened4" in changed(s)]
    assert isinstance(kinds[0], SetSysctl)
    assert "- element" in changed(kinds[-1])


@given(
    st.lists(sites(), min_size=1, max_size=3),
    st.tuples(*[st.sampled_from("01")] * 3, *[st.sampled_from("012")] * 2),
)
@settings(max_examples=150, deadline=None)
def test_what_was_on_stays_and_what_was_off_goes_off_again(
    some: list[Site], values: tuple[str, ...]
) -> None:
    kernel = a_kernel()
    kernel.values |= dict(zip(FOREIGN, values, strict=True))
    before = foreign(kernel)
    for site in some:
        Engine(kernel).apply(site)  # each time by one that remembers nothing
        assert Engine(kernel).apply(site).steps == ()
        if ("inet", "dvn-cnaf") not in kernel.tables:
            assert foreign(kernel) == before
            continue
        sets = memory(kernel)
        now = foreign(kernel)
        for key, name, element in (
            (WAN, "opened4", "wan0"),
            (LAN, "opened4", "lan0"),
            (ALL6, "opened6", "ipv6"),
            (RA, "adverts", "wan0"),
        ):
            assert (element in sets[name]) == (now[key] != before[key]), key
    Engine(kernel).destroy("cnaf")
    assert foreign(kernel) == before


def test_two_sites_on_one_host_share_a_switch() -> None:
    kernel = a_kernel()
    engine = Engine(kernel)
    before = foreign(kernel)
    data = full_site().model_dump(mode="json") | {"site": "other"}
    data["tenants"] = {
        "lhcb": {"networks": {"farm": {"prefix": ["10.7.0.0/24"], "access": "open"}}}
    }
    other = site_from_json(data)
    engine.apply(full_site())
    engine.apply(other)
    assert engine.apply(full_site()).steps == ()
    engine.destroy("cnaf")
    assert kernel.values[WAN] == "1"
    assert kernel.values[ALL6] == "0"
    assert engine.apply(other).steps == ()
    engine.destroy("other")
    assert foreign(kernel) == before


def test_ipv6_is_not_forwarded_where_none_may_leave() -> None:
    """A closed network with an IPv6 prefix and NAT for IPv4 alone."""
    kernel = a_kernel()
    data = full_site().model_dump(mode="json")
    data["tenants"]["cms"]["networks"]["farm"] |= {"access": "closed"}
    Engine(kernel).apply(site_from_json(data))
    assert kernel.values[WAN] == "1"
    assert (kernel.values[ALL6], kernel.values[RA]) == ("0", "1")


def test_a_host_that_forwarded_ipv6_heeded_no_router_advertisements() -> None:
    kernel = a_kernel()
    kernel.values[ALL6] = "1"
    Engine(kernel).apply(full_site())
    assert kernel.values[RA] == "1"


def test_drift_and_what_somebody_else_decided_later() -> None:
    kernel = a_kernel()
    engine = Engine(kernel)
    engine.apply(full_site())
    kernel.values[WAN] = "0"
    assert engine.apply(full_site()).steps == (f"~ sysctl {WAN}: 0 => 1",)
    kernel.values[RA] = "0"  # no router advertisements at all: that is not ours to change
    engine.apply(full_site())
    assert kernel.values[RA] == "0"
    engine.destroy("cnaf")
    assert (kernel.values[WAN], kernel.values[RA]) == ("0", "0")
