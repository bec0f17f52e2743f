"""Located YAML, names, keys and MTUs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvn import addresses, located
from dvn.compile import compile_site
from dvn.kernel.state import Host, HostLink
from dvn.problems import SpecError
from dvn.spec import Site, Tunnel, parse_site, site_from_json
from dvn.tunnels.mtu import network_mtu, tcp_mss
from tests.dvn.sites import FULL, a_kernel, full_site, sites

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,30}", fullmatch=True)


def test_a_link_local_address_is_made_of_the_mac() -> None:
    """The example of RFC 4291, appendix A, and of RFC 2464, section 4."""
    assert addresses.link_local("34:56:78:9a:bc:de") == "fe80::3656:78ff:fe9a:bcde/64"


def test_scalars_are_what_they_look_like() -> None:
    doc = located.loads(
        "mac: 52:54:00:12:34:56\nno: no\nyes: true\nhex: 0x2a\noctal: 010\nnothing:\nword: null\n"
        "date: 2024-01-01\nrate: 1.5\nquoted: '7'\n"
    )
    assert doc.plain() == {
        "mac": "52:54:00:12:34:56",
        "no": "no",
        "yes": True,
        "hex": 42,
        "octal": 10,
        "nothing": None,
        "word": None,
        "date": "2024-01-01",
        "rate": 1.5,
        "quoted": "7",
    }


def test_lines_of_keys_values_and_items() -> None:
    doc = located.loads("a:\n  b:\n    - x\n    -\n      c: 1\n")
    assert doc.line_of(("a", "b")) == 2
    assert doc.at(("a", "b")).line == 3
    assert doc.line_of(("a", "b", 1, "c")) == 5
    assert doc.line_of(("a", "b", 7, "c")) == 2  # the deepest that is there


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_with_a_problem(text: str) -> None:
    with pytest.raises(SpecError) as caught:  # no text that hypothesis finds is a site
        parse_site(located.loads(text, "f.yaml"))
    assert caught.value.problems
    assert all(problem.file == "f.yaml" and problem.what for problem in caught.value.problems)


def test_unreadable_files(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"site: a\nx: \xff\xfe\n")
    with pytest.raises(SpecError, match=r"binary.yaml:2: this is not UTF-8"):
        located.load(binary)
    with pytest.raises(SpecError, match="cannot be read"):
        located.load(tmp_path)
    with pytest.raises(SpecError, match=r":1: there is a character YAML forbids"):
        located.loads("a: \x01", "x")


@given(sites())
def test_a_site_survives_json(site: Site) -> None:
    assert site_from_json(site.model_dump(mode="json")) == site


@given(st.sets(st.tuples(NAMES, NAMES), max_size=60))
def test_device_names_are_short_and_unique(pairs: set[tuple[str, str]]) -> None:
    made = [
        make(*pair)
        for pair in pairs
        for make in (addresses.bridge_name, addresses.vlan_name, addresses.tunnel_name)
    ]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch(r"[bvt]-[a-z0-9~-]{1,13}", name) for name in made)


def test_device_names_do_not_change() -> None:
    """A new version must find what the old one made."""
    assert addresses.bridge_name("cms", "farm") == "b-cms-farm"
    assert addresses.tunnel_name("cms", "lease-1") == addresses.tunnel_name("cms", "lease-1")
    assert addresses.bridge_name("a-b", "c") != addresses.bridge_name("a", "b-c")


@given(st.lists(st.text(), min_size=1))
def test_keys_fit_and_repeat(parts: list[str]) -> None:
    key = addresses.gre_key(*parts)
    assert 1 <= key < 2**32
    assert key == addresses.gre_key(*parts)


@pytest.mark.parametrize(
    ("interface", "declared", "expected"),
    [(1500, None, 1458), (9001, None, 1458), (1400, None, 1358), (9001, 9001, 8959)],
)
def test_mtu(interface: int, declared: int | None, expected: int) -> None:
    data = full_site().model_dump(mode="json")
    data["underlay"]["mtu"] = declared
    host = Host({"wan0": HostLink("wan0", "", interface, True, False)})
    assert network_mtu(site_from_json(data), host) == expected


def test_mss() -> None:
    assert tcp_mss(1458, 4) == 1418
    assert tcp_mss(1458, 6) == 1398


def test_the_mtu_does_not_change_when_a_lease_comes() -> None:
    site = full_site()
    host = a_kernel().look("cnaf").host
    lease = Tunnel.model_validate(
        {"tenant": "atlas", "name": "l", "network": "store", "remote": "203.0.113.9", "key": 9}
    )
    before = {link.name: link.mtu for link in compile_site(site, host).state.links}
    after = {
        link.name: link.mtu for link in compile_site(site.with_tunnels([lease]), host).state.links
    }
    assert before.items() < after.items()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tenant": "lhcb"}, "no tenant 'lhcb'"),
        ({"network": "nets"}, "does not have; known here: farm"),
        ({"name": "bari"}, "is there already"),
        ({"remote": "203.0.113.7", "key": 42}, "same ends and key"),
        ({"remote": "198.51.100.1"}, "this host itself"),
    ],
)
def test_tunnels_of_leases_are_checked(change: dict[str, object], words: str) -> None:
    lease = {"tenant": "cms", "name": "l", "network": "farm", "remote": "203.0.113.9", "key": 9}
    with pytest.raises(SpecError, match=words):
        full_site().with_tunnels([Tunnel.model_validate(lease | change)])


def test_rules_do_not_grow_with_networks() -> None:
    """Only sets do: the same chains for one network and for a hundred."""
    host = a_kernel().look("cnaf").host

    def chains(count: int) -> object:
        networks = {f"n{i}": {"prefix": f"10.{i}.0.0/24", "nat": {"snat": "192.0.2.1"}}
                    for i in range(count)}  # fmt: skip
        site = Site.model_validate(
            {
                "site": "cnaf",
                "underlay": {"interface": "wan0", "address": "198.51.100.1"},
                "tenants": {"cms": {"networks": networks}},
            }
        )
        return [table.chains for table in compile_site(site, host).state.tables]

    assert chains(1) == chains(100)


def test_full_site_is_valid() -> None:
    assert parse_site(located.loads(FULL)).site == "cnaf"
