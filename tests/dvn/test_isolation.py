"""Which elements ports, tunnels and uplinks add to the frame filters' sets. On the wire:
test_kernel_isolation.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from dvn import addresses, located
from dvn.compile import compile_site
from dvn.engine import Engine
from dvn.kernel.fake import FakeKernel
from dvn.kernel.state import Element, NftTable
from dvn.problems import SpecError
from dvn.spec import Site, Tunnel, parse_site
from dvn.vlans import isolation
from tests.dvn.sites import a_kernel, full_site, sites

SITE = """
site: cnaf
host: gw1
underlay: {interface: wan0, address: 198.51.100.1}
tenants:
  cms:
    networks:
      farm:
        prefix: [10.9.0.0/24, "fd00:9::/64"]
        vlan: {id: 101, uplink: lan0}
        ports:
        - {interface: tap3, mac: 02:00:00:00:00:03, address: [10.9.0.3, "fd00:9::3"]}
        - {interface: tap4, address: 10.9.0.4}
        - {interface: tap5}
        - {interface: tap-of-a-vm-off}
    tunnels:
      bari: {network: farm, remote: 203.0.113.7, key: 42, transport: plain}
"""
OURS = {c.name for c in isolation.CHAINS} | {
    "isolation",
    "unknown",
    "known",
    "unknown_out",
    "fallback",
}
FARM = str(addresses.network_number("cms", "farm"))
GATEWAY_MAC = addresses.mac_address("cnaf", "gw1", "cms", "farm")
GATEWAY_LOCAL = addresses.link_local(GATEWAY_MAC).split("/")[0]
LEASE = Tunnel.model_validate(
    {
        "tenant": "cms",
        "name": "l7",
        "network": "farm",
        "remote": "203.0.113.9",
        "key": 9,
        "addresses": ["10.9.0.101"],
        "macs": ["02:00:0a:09:00:65"],
        "dynamic": True,
    }
)


def a_site(text: str = SITE) -> Site:
    return parse_site(located.loads(text))


def filters(site: Site, kernel: FakeKernel | None = None) -> NftTable:
    host = (kernel or a_kernel()).look(site.site).host
    state = compile_site(site, host, lenient=True).state
    return next(table for table in state.tables if table.family == "bridge")


def held(site: Site) -> Mapping[str, frozenset[Element]]:
    return {each.name: each.elements for each in filters(site).sets}


def test_what_each_port_is_pinned_to() -> None:
    sets = held(a_site())
    assert sets["pinned_mac"] == {("tap3",)}
    assert sets["port_mac"] == {("tap3", "02:00:00:00:00:03")}
    assert sets["pinned4"] == {("tap3",), ("tap4",)}
    assert sets["port4"] == {("tap3", "10.9.0.3"), ("tap4", "10.9.0.4")}
    assert sets["pinned6"] == {("tap3",)}
    # Its MAC address makes it a link-local one.
    assert sets["port6"] == {("tap3", "fd00:9::3"), ("tap3", "fe80::ff:fe00:3")}


def test_what_nobody_else_may_use() -> None:
    sets = held(a_site())
    assert sets["owned_mac"] == {(FARM, GATEWAY_MAC), (FARM, "02:00:00:00:00:03")}
    four = {"10.9.0.0", "10.9.0.1", "10.9.0.3", "10.9.0.4", "10.9.0.255"}
    assert sets["owned4"] == {(FARM, address) for address in four}
    six = {"fd00:9::", "fd00:9::1", GATEWAY_LOCAL, "fd00:9::3", "fe80::ff:fe00:3"}
    assert sets["owned6"] == {(FARM, address) for address in six}
    assert sets["prefix4_24"] == {(FARM, "10.9.0.0")}
    assert sets["prefix6_64"] == {(FARM, "fd00:9::")}
    assert not sets["prefix4"] | sets["prefix6"]


def test_who_belongs_in_the_bridge() -> None:
    """A port that is not there now is filtered from its first frame on."""
    sets = held(a_site())
    members = {"tap3", "tap4", "tap5", "tap-of-a-vm-off", "v-cms-farm", "t-cms-bari"}
    assert sets["members"] == {(member,) for member in members}
    assert sets["network_of"] == {(member, FARM) for member in members}
    assert sets["uplinks"] == {("v-cms-farm",)}
    assert sets["bridges"] == {("b-cms-farm",)}


def test_a_leases_tunnel_is_pinned_to_its_address() -> None:
    before, after = held(a_site()), held(a_site().with_tunnels([LEASE]))
    name = addresses.tunnel_name("cms", "l7")
    grown = {key: after[key] - before[key] for key in after if after[key] != before[key]}
    assert grown["port4"] == {(name, "10.9.0.101")}
    assert grown["owned4"] == {(FARM, "10.9.0.101")}
    assert grown["port_mac"] == {(name, "02:00:0a:09:00:65")}
    assert grown["pinned4"] == grown["pinned_mac"] == {(name,)}
    assert "pinned6" not in grown  # its IPv6 addresses are those of the prefix
    assert all(before[key] <= after[key] for key in after)


def test_it_stays_pinned_when_a_file_is_applied_beside_the_daemon() -> None:
    kernel = a_kernel()
    engine = Engine(kernel, lenient=True)
    engine.apply(a_site().with_tunnels([LEASE]))
    before = kernel.tables["bridge", "dvn-cnaf"]
    assert engine.apply(a_site(), keep_dynamic=True).steps == ()
    assert kernel.tables["bridge", "dvn-cnaf"] == before
    # The control: who knows the leases, and knows of none, takes the elements away.
    assert engine.apply(a_site()).steps
    assert not any("10.9.0.101" in str(s) for s in kernel.tables["bridge", "dvn-cnaf"].sets)


def test_the_rules_are_the_same_for_any_number_of_networks() -> None:
    many: dict[str, Any] = {
        f"n{number}": {
            "prefix": [f"10.{number // 256}.{number % 256}.0/24", f"fd00:{number:x}::/64"],
            "ports": [{"interface": f"tap{number}", "mac": f"02:00:00:00:{number // 256:02x}:"
                       f"{number % 256:02x}"}],
        }
        for number in range(1, 500)
    }  # fmt: skip
    data = a_site().model_dump(mode="json") | {"tenants": {"cms": {"networks": many}}}
    one, all_ = filters(a_site()), filters(Site.model_validate(data))
    assert one.chains == all_.chains
    assert {s.frame() for s in one.sets} == {s.frame() for s in all_.sets}
    assert len({element[1] for s in all_.sets if s.name == "network_of" for element in s.elements
                }) == 499  # fmt: skip


def test_where_the_kernel_knows_a_frames_bridge_strangers_are_shut_off_from_the_gateway_too() -> (
    None
):
    host = a_kernel().look("cnaf").host
    for known in (False, True):
        state = compile_site(full_site(), replace(host, bridge_meta=known)).state
        rules = [rule.text for t in state.tables for c in t.chains for rule in c.rules]
        assert any("ibrname @bridges" in rule for rule in rules) == known
        assert any("obrname @bridges" in rule for rule in rules) == known
        assert {"oifname @members counter drop", "oifname != @members counter drop"} <= set(rules)


@given(sites())
@settings(max_examples=100, deadline=None)
def test_every_claim_is_one_interfaces_and_every_number_is_an_address(site: Site) -> None:
    if not site.tenants or not any(True for _ in site.networks()):
        return
    sets = held(site)
    number_of = {element[0]: element[1] for element in sets["network_of"]}
    assert {name for (name,) in sets["members"]} == set(number_of)
    for version in "46":
        pins = [(number_of[port], value) for port, value in sets[f"port{version}"]]
        assert len(set(pins)) == len(pins)
        assert set(pins) <= sets[f"owned{version}"]
    for six, numbers in (("port6", "nd_port6"), ("owned6", "nd_owned6")):
        as_numbers = {(who, hex(int(ip_address(value)))) for who, value in sets[six]}
        assert as_numbers == sets[numbers]
    for mac, numbers in (("port_mac", "nd_port_mac"), ("owned_mac", "nd_owned_mac")):
        as_numbers = {(who, str(int(value.replace(":", ""), 16))) for who, value in sets[mac]}
        assert as_numbers == sets[numbers]


def test_two_networks_of_one_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "network_number", lambda tenant, network: 7)
    with pytest.raises(SpecError, match=r"would both be number 7 .*rename one"):
        parse_site(located.loads(SITE.replace("tenants:", "tenants:\n  atlas: {networks: "
                                 "{farm: {prefix: 10.8.0.0/24}}}")))  # fmt: skip


def test_the_page_gives_a_reason_for_everything_that_is_dropped() -> None:
    page = (Path(__file__).parents[2] / "docs/explanation/isolation.md").read_text()
    host = replace(a_kernel().look("cnaf").host, bridge_meta=True)
    tables = compile_site(a_site(), host, lenient=True).state.tables
    chains = [chain for t in tables for chain in t.chains if chain.name in OURS]
    rules = [rule for chain in chains for rule in chain.rules]
    dropped = {rule.comment.split(" [")[0] for rule in rules if rule.text.endswith("drop")}
    assert len(dropped) > 30
    assert sorted(why for why in dropped if f"| {why} |" not in page) == []
    assert f"the same {len(rules)} rules" in page
