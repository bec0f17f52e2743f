"""What is served is compiled from the site, told as JSON, and kept on disk line by line."""

from __future__ import annotations

import os
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from dvn import located
from dvn.compile import compile_site
from dvn.engine import Engine
from dvn.ipam import Lease, Span
from dvn.services.config import Service, from_json, to_json
from dvn.services.journal import NAME, Journal, living
from dvn.services.resolver import nameservers
from dvn.services.room import Allowance
from dvn.spec import Site, parse_site, site_from_json
from gateway import sitefile
from tests.dvn.sites import a_kernel

FARM = """
site: cnaf
underlay: {{interface: wan0, address: 198.51.100.1}}
tenants:
  cms:
    networks:
      farm:
        prefix: [10.9.0.0/24, "fd00:9::/64"]
        dhcp: {dhcp}
        ports: [{{interface: tap3, mac: 02:00:00:00:00:03, address: [10.9.0.33, "fd00:9::33"]}},
                {{interface: tap4, address: 10.9.0.34}}]
"""


def site(dhcp: str = "true") -> Site:
    return parse_site(located.loads(FARM.format(dhcp=dhcp)))


def service(dhcp: str = "true") -> Service:
    state = compile_site(site(dhcp), a_kernel().look("cnaf").host).state
    (found,) = (thing for thing in state.things if isinstance(thing, Service))
    return found


def test_a_network_with_dhcp_is_served() -> None:
    found = service()
    assert (found.network, found.bridge, found.lease_s) == ("cms/farm", "b-cms-farm", 3600)
    assert found.mtu == 1458
    assert found.resolves
    assert found.four is not None
    assert found.four.gateway == IPv4Address("10.9.0.1")
    assert found.four.span == Span(IPv4Address("10.9.0.1"), IPv4Address("10.9.0.254"))
    assert {str(a) for a in found.four.reserved} == {"10.9.0.1", "10.9.0.33", "10.9.0.34"}
    assert found.four.fixed == (("02:00:00:00:00:03", IPv4Address("10.9.0.33")),)
    assert found.four.resolvers == (found.four.gateway,)
    assert found.six is not None
    assert str(found.six.span.first) == "fd00:9::1000"


def test_resolvers_of_others_close_our_own() -> None:
    found = service("{dns: 192.0.2.53, range: [10.9.0.100, 10.9.0.199], lease: 2d}")
    assert not found.resolves
    assert found.lease_s == 2 * 86400
    assert found.four is not None
    assert found.six is not None
    assert found.four.resolvers == (IPv4Address("192.0.2.53"),)
    assert found.four.span == Span(IPv4Address("10.9.0.100"), IPv4Address("10.9.0.199"))
    assert found.six.resolvers == ()


@pytest.mark.parametrize(
    ("dhcp", "ports"),
    [
        ("true", {"udp/67", "udp/547", "udp/53", "tcp/53"}),
        ("{dns: 192.0.2.53}", {"udp/67", "udp/547"}),
        ("false", set()),
    ],
)
def test_the_filter_lets_in_what_is_served_and_no_more(dhcp: str, ports: set[str]) -> None:
    state = compile_site(site(dhcp), a_kernel().look("cnaf").host).state
    table = next(table for table in state.tables if table.family == "inet")
    sets = {each.name: each.elements for each in table.sets}
    assert {"/".join(element[1:]) for element in sets["services"]} == ports
    assert sets["advertised"] == ({("b-cms-farm",), ("g-cms-farm",)} if ports else frozenset())


def test_addresses_of_pools_and_tunnels_are_left_out(tmp_path: Path) -> None:
    text = FARM.format(dhcp="true") + (
        "    tunnels:\n"
        "      bari: {network: farm, remote: 203.0.113.7, key: 42, transport: plain,"
        " addresses: 10.9.0.40}\n"
    )
    file = tmp_path / "site.yaml"
    file.write_text(text)
    doc = located.load(file)
    dhcp = sitefile.parse(doc, file).site.network("cms", "farm").dhcp
    assert dhcp is not None
    assert dhcp.reserved == (IPv4Address("10.9.0.40"),)
    pool = site().with_reserved({("cms", "farm"): [ip_address("10.9.0.101")]})
    assert site_from_json(pool.model_dump(mode="json")) == pool


def test_json_there_and_back() -> None:
    every = tuple(service(dhcp) for dhcp in ("true", "{domain: farm.example}", "{dns: 192.0.2.53}"))
    assert from_json(to_json(every)) == every


def test_a_service_is_planned_changed_and_removed() -> None:
    kernel = a_kernel()
    engine = Engine(kernel)
    assert any(step.startswith("+ service of b-cms-farm") for step in engine.apply(site()).steps)
    assert engine.apply(site()).steps == ()
    (change,) = engine.apply(site("{lease: 2h}")).steps
    assert change.startswith("~ service of b-cms-farm")
    assert any(step.startswith("- service") for step in engine.apply(site("false")).steps)
    assert kernel.things == {}


A, B = (Lease(ip_address(f"10.9.0.{n}"), f"4:{n}", 1000.0 + n, "", "vm") for n in (1, 2))


@pytest.fixture
def directory(tmp_path: Path) -> int:
    return os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)


def test_the_last_line_of_an_address_counts(directory: int) -> None:
    journal = Journal(directory)
    later = Lease(A.address, "4:other", 5000.0)
    journal.write([("cms/farm", A), ("cms/farm", B)])
    journal.write([("cms/farm", later)])
    assert Journal(directory).read() == {"cms/farm": {"10.9.0.1": later, "10.9.0.2": B}}


def test_a_torn_line_was_promised_to_nobody(directory: int, tmp_path: Path) -> None:
    Journal(directory).write([("cms/farm", A), ("cms/farm", B)])
    file = tmp_path / NAME
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        journal = Journal(directory)
        found = journal.read().get("cms/farm", {})
        assert list(found.values()) == [A, B][: whole[:length].count(b"]")]
        # What comes after it is read again.
        journal.write([("cms/farm", B)])
        assert Journal(directory).read()["cms/farm"]["10.9.0.2"] == B


def test_what_is_kept_when_the_file_is_written_anew(directory: int) -> None:
    journal = Journal(directory)
    found = {"cms/farm": {"10.9.0.1": A}, "gone/net": {"10.9.0.1": A, "10.9.0.2": B}}
    kept = list(living(found, ["cms/farm"], now=1001.5))
    assert kept == [("cms/farm", A), ("gone/net", B)]
    journal.rewrite(kept)
    journal.write([("cms/farm", B)])
    assert Journal(directory).read() == {
        "cms/farm": {"10.9.0.1": A, "10.9.0.2": B},
        "gone/net": {"10.9.0.2": B},
    }


def test_a_network_that_floods_is_not_heard_all_the_time() -> None:
    allowance = Allowance(rate=10, most=20, left=20, last=0)
    assert sum(allowance.take(0.0) for _ in range(100)) == 20
    assert sum(allowance.take(1.0) for _ in range(100)) == 10
    assert allowance.take(60.0)


def test_resolvers_as_the_c_library_takes_them() -> None:
    lines = ["# x", "nameserver 192.0.2.1", "search a", " nameserver 192.0.2.9", "nameserver"]
    lines += [f"nameserver {server}" for server in ("::1", "192.0.2.3", "192.0.2.4")]
    assert nameservers("\n".join(lines)) == ("192.0.2.1", "::1", "192.0.2.3")
