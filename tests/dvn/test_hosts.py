"""One spec on many hosts: what each host is told of it, and what it makes of that. On the wire:
test_kernel_hosts.py."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvn import addresses, located
from dvn.compile import Compiled, compile_site
from dvn.engine import Engine
from dvn.hosts.joining import Nic, join, nics_from_json
from dvn.hosts.slices import UnknownHostError, narrowed, slice_of, version_of
from dvn.kernel.state import Bridge, Element, Gretap, Secret
from dvn.kernel.wireguard import WireguardPeer
from dvn.known import Known
from dvn.problems import SpecError
from dvn.spec import Port, Site, Tunnel, parse_site, site_from_json
from tests.dvn.sites import a_kernel

SITE = """
site: cnaf
host: gw
underlay: {interface: wan0, address: 198.51.100.1}
fabric: {transport: plain}
hosts:
  hv1: {underlay: {interface: wan0, address: 198.51.100.11}}
  hv2: {underlay: {interface: wan0, address: 198.51.100.12}}
  hv3: {underlay: {interface: wan0, address: 198.51.100.13}, tenants: atlas}
tenants:
  cms:
    networks:
      farm:
        prefix: [10.9.0.0/24, "fd00:9::/64"]
        vlan: {id: 101, uplink: lan0}
        access: open
        nat: {snat: 198.51.100.10}
        services: [tcp/22]
        dhcp: true
        rate: 1gbit
        ports:
        - {interface: tap5, mac: 02:00:00:00:00:05, address: 10.9.0.5}
        - {host: hv1, interface: tap3, mac: 02:00:00:00:00:03, address: 10.9.0.3}
        - {host: hv1, interface: tap4}
        - {host: hv2, interface: tap3, mac: 02:00:00:00:00:04, address: [10.9.0.4, "fd00:9::4"]}
      store: {prefix: 10.8.0.0/24}
    tunnels:
      bari: {network: farm, remote: 203.0.113.7, key: 42, transport: plain,
             macs: 02:00:00:00:00:aa, addresses: 10.9.0.101}
  atlas:
    networks:
      farm: {prefix: 10.9.0.0/24, ports: [{host: hv3, interface: tap3}]}
"""
OWN = {"hv1": "198.51.100.11", "hv2": "198.51.100.12", "hv3": "198.51.100.13"}
MESH = SITE.replace("{transport: plain}\n", "{transport: plain, shape: mesh}\n")
FARM = addresses.bridge_name("cms", "farm")
NUMBER = str(addresses.network_number("cms", "farm"))
GATEWAY_MAC = addresses.mac_address("cnaf", "gw", "cms", "farm")


def a_site(text: str = SITE) -> Site:
    return parse_site(located.loads(text))


def compiled(site: Site, here: str | None = None) -> Compiled:
    kernel = a_kernel()
    kernel.foreign_addresses = {OWN[here] if here else "198.51.100.1"}
    part = narrowed(slice_of(site, here)) if here else site
    return compile_site(part, kernel.look(site.site).host)


def held(site: Site, here: str | None = None) -> Mapping[str, frozenset[Element]]:
    tables = compiled(site, here).state.tables
    return {s.name: s.elements for table in tables if table.family == "bridge" for s in table.sets}


def tunnel_to(host: str, tenant: str = "cms", network: str = "farm") -> str:
    return addresses.tunnel_name(tenant, f"{host}.{network}")


def ends(site: Site, here: str | None = None) -> dict[str, tuple[str, str, int]]:
    links = compiled(site, here).state.links
    found = {link.name: link.params for link in links if isinstance(link.params, Gretap)}
    return {name: (p.local, p.remote, p.key) for name, p in found.items() if p.key != 42}


def nic(network: str = "cms/farm", **values: Any) -> Nic:
    some = {"interface": "vnet0", "mac": "52:54:00:00:00:01", **values}
    return Nic.model_validate({"network": network, **some})


# -- tunnels


def test_each_tunnel_has_two_ends_that_fit() -> None:
    site = a_site()
    at_gateway = ends(site)
    assert set(at_gateway) == {
        tunnel_to("hv1"),
        tunnel_to("hv2"),
        tunnel_to("hv3", "atlas"),
    }
    for host, tenant in (("hv1", "cms"), ("hv2", "cms"), ("hv3", "atlas")):
        local, remote, key = at_gateway[tunnel_to(host, tenant)]
        assert ends(site, host) == {tunnel_to("gw", tenant): (remote, local, key)}


def test_in_a_mesh_hosts_of_a_network_have_tunnels_to_each_other_too() -> None:
    site = a_site(MESH)
    one, two = ends(site, "hv1"), ends(site, "hv2")
    assert set(one) == {tunnel_to("gw"), tunnel_to("hv2")}
    local, remote, key = one[tunnel_to("hv2")]
    assert two[tunnel_to("hv1")] == (remote, local, key)
    assert set(ends(site, "hv3")) == {tunnel_to("gw", "atlas")}, "no other host has its network"


@given(
    ports=st.lists(
        st.tuples(
            st.sampled_from(["cms/farm", "cms/store", "atlas/farm"]),
            st.sampled_from(["hv1", "hv2", "hv3", None]),
        ),
        max_size=8,
    ),
    mesh=st.booleans(),
)
def test_wherever_machines_are_every_tunnel_has_its_other_end(
    ports: list[tuple[str, str | None]], mesh: bool
) -> None:
    site = a_site(MESH if mesh else SITE)
    come: dict[tuple[str, str], list[Port]] = {}
    for index, (network, host) in enumerate(ports):
        tenant, _, name = network.partition("/")
        if host != "hv3" or tenant == "atlas":
            come.setdefault((tenant, name), []).append(Port(interface=f"n{index}", host=host))
    site = site.with_ports(come)
    seen = set()
    for here in (None, *OWN):
        part = narrowed(slice_of(site, here)) if here else site
        for tunnel in part.tunnels():
            if tunnel.beyond:
                own = part.local_of(tunnel)
                seen.add((tunnel.tenant, tunnel.network, own, tunnel.remote, tunnel.key))
    assert {(t, n, remote, own, key) for t, n, own, remote, key in seen} == seen
    where: dict[tuple[str, str], set[str]] = {}
    for tenant, name, net in site.networks():
        where[tenant, name] = {port.host for port in net.ports if port.host}
    for owner, hosts in where.items():
        links = len(hosts) * (len(hosts) + 1) if mesh else 2 * len(hosts)
        assert sum(each[:2] == owner for each in seen) == links


def test_the_mtu_is_the_same_on_all_hosts_and_that_of_the_narrowest() -> None:
    narrow = SITE.replace("address: 198.51.100.13}", "address: 198.51.100.13, mtu: 1400}")
    for text, mtu in ((SITE, 1458), (narrow, 1358), (narrow.replace("plain}\n", "fou}\n"), 1350)):
        site = a_site(text)
        found = {
            link.mtu
            for here in (None, *OWN)
            for link in compiled(site, here).state.links
            if isinstance(link.params, Bridge)
        }
        assert found == {mtu}


def test_a_host_narrower_than_the_file_says_is_told_what_to_write() -> None:
    kernel = a_kernel()
    kernel.foreign_addresses = {OWN["hv1"]}
    kernel.foreign["wan0"] = replace(kernel.foreign["wan0"], mtu=1400)
    with pytest.raises(SpecError, match=r"write `mtu: 1400` in this host's `underlay`"):
        compile_site(narrowed(slice_of(a_site(), "hv1")), kernel.look("cnaf").host)


KEYS = {here: base64.b64encode(bytes([n]) * 32).decode() for n, here in enumerate((None, *OWN), 1)}


def sealed(shape: str = "star") -> Site:
    """The site joined by WireGuard."""
    text = SITE.replace("{transport: plain}\n", f"{{transport: wireguard, shape: {shape}}}\n")
    for here, key in KEYS.items():
        own = OWN[here] if here else "198.51.100.1"
        wireguard = f"wireguard: {{private_key_file: /etc/dvn/key, public_key: '{key}'}}"
        text = text.replace(f"address: {own}}}", f"address: {own}, {wireguard}}}", 1)
    return a_site(text)


@pytest.mark.parametrize("shape", ["star", "mesh"])
def test_with_wireguard_all_ends_fit_too(shape: str) -> None:
    """GRE runs between the addresses that the keys make, and every such end is a peer."""
    site = sealed(shape)
    found = {}
    for here in KEYS:
        kernel = a_kernel()
        kernel.foreign_addresses = {OWN[here] if here else "198.51.100.1"}
        host = replace(kernel.look("cnaf").host, secrets={"/etc/dvn/key": Secret("x", KEYS[here])})
        part = narrowed(slice_of(site, here)) if here else site
        state = compile_site(part, host).state
        gre = [link.params for link in state.links if isinstance(link.params, Gretap)]
        found[here] = {(p.local, p.remote, p.key) for p in gre if p.key != 42}
        peers = {t.public_key for t in state.things if isinstance(t, WireguardPeer)}
        assert {str(addresses.wireguard_inner(key)) for key in peers} == {
            remote for _local, remote, _key in found[here]
        }
    every = set().union(*found.values())
    assert {(remote, local, key) for local, remote, key in every} == every
    assert len(every) == (8 if shape == "mesh" else 6)


def test_a_public_key_that_is_another_ones_is_refused_with_the_right_one() -> None:
    kernel = a_kernel()
    kernel.foreign_addresses = {OWN["hv1"]}
    host = replace(kernel.look("cnaf").host, secrets={"/etc/dvn/key": Secret("x", KEYS["hv2"])})
    with pytest.raises(SpecError, match="the other hosts go by it: write"):
        compile_site(narrowed(slice_of(sealed(), "hv1")), host)


# -- what a host is told, and what it does with it


def test_a_host_is_told_of_no_tenant_that_is_not_for_it() -> None:
    part = slice_of(a_site(), "hv3")
    assert set(part.tenants) == {"atlas"}
    assert "cms" not in part.model_dump_json()
    assert set(slice_of(a_site(), "hv1").tenants) == {"cms", "atlas"}


def test_a_part_survives_the_way_as_json() -> None:
    for text in (SITE, MESH):
        for here in OWN:
            part = slice_of(a_site(text), here)
            again = site_from_json(part.model_dump(mode="json"))
            assert again == part
            assert again.tunnels() == part.tunnels()
            assert version_of(again) == version_of(part)


def test_an_unknown_host_has_no_part() -> None:
    with pytest.raises(UnknownHostError):
        slice_of(a_site(), "hv9")


def test_a_hypervisor_only_bridges() -> None:
    """No router, no address, no NAT, no DHCP, no switch of the host, and the host is not in it."""
    state = compiled(a_site(), "hv1").state
    assert {link.name for link in state.links} == {FARM, tunnel_to("gw")}
    assert not state.addresses
    assert not state.things
    assert {port.name for port in state.ports} == {"tap3", "tap4"}
    values = state.sysctl_values
    assert values[f"net/ipv6/conf/{FARM}/disable_ipv6"] == "1"
    assert values[f"net/ipv6/conf/{tunnel_to('gw')}/disable_ipv6"] == "1"
    assert {key.split("/")[3] for key in values} == {FARM, tunnel_to("gw")}
    inet = {s.name: s.elements for t in state.tables if t.family == "inet" for s in t.sets}
    assert inet["networks"] == {(FARM,)}
    sources = ("sources4", "sources4_24")
    grown = ("open", "nat4", *sources, "gateways4", "services", "zones", "opened4", "accepted")
    for name in grown:
        assert not inet.get(name), name
    bridge = state.by_name[FARM]
    assert bridge.mac != GATEWAY_MAC, "it would take the gateway's frames for its own"


@pytest.mark.parametrize("here", ["hv1", "hv2"])
def test_who_is_in_no_network_reaches_not_even_the_hypervisor(here: str) -> None:
    """Its interface is among the networks, and none of them has its addresses. Also where there is
    no network at all."""
    kernel = a_kernel()
    kernel.foreign_addresses = {OWN[here]}
    part = narrowed(slice_of(a_site(), here)).model_copy(update={"closed": ("vnet7",)})
    for site in (part, part.model_copy(update={"tenants": {}})):
        state = compile_site(site, kernel.look("cnaf").host).state
        (sets,) = ({s.name: s.elements for s in t.sets} for t in state.tables if t.family == "inet")
        assert ("vnet7",) in sets["networks"]
        assert not sets["sources4"] | sets["sources4_24"]


def test_a_hypervisor_lets_the_gateway_in_by_its_tunnel_alone() -> None:
    sets, tunnel = held(a_site(), "hv1"), tunnel_to("gw")
    assert (tunnel,) in sets["uplinks"]
    for name, value in (("mac", GATEWAY_MAC), ("4", "10.9.0.1"), ("6", "fd00:9::1")):
        assert (tunnel, value) in sets[f"port{'_' if name == 'mac' else ''}{name}"]
        assert (NUMBER, value) in sets[f"owned{'_' if name == 'mac' else ''}{name}"]
    assert not {(tunnel,)} & {*sets["pinned_mac"], *sets["pinned4"], *sets["pinned6"]}


def test_what_is_pinned_elsewhere_nobody_here_may_use() -> None:
    """On another host, on the gateway host, and behind a tunnel of the gateway's."""
    sets = held(a_site(), "hv1")
    for address, mac in (("10.9.0.4", "04"), ("10.9.0.5", "05"), ("10.9.0.101", "aa")):
        assert (NUMBER, address) in sets["owned4"]
        assert (NUMBER, f"02:00:00:00:00:{mac}") in sets["owned_mac"]
        assert (tunnel_to("gw"), address) in sets["port4"]


@pytest.mark.parametrize("text", [SITE, MESH])
def test_the_gateway_filters_a_hypervisor_as_its_ports_would_be(text: str) -> None:
    """One whose machines are all pinned may send as they; one with a free port as nobody else."""
    sets = held(a_site(text))
    one, two = tunnel_to("hv1"), tunnel_to("hv2")
    assert {e for e in sets["port4"] if e[0] in (one, two)} == {
        (one, "10.9.0.3"),
        (two, "10.9.0.4"),
    }
    assert {(two,)} <= sets["pinned_mac"]
    assert {(two,)} <= sets["pinned4"]
    assert {(two,)} <= sets["pinned6"]
    assert (one,) not in sets["pinned_mac"] | sets["pinned4"] | sets["pinned6"]
    assert not {(one,), (two,)} & sets.get("uplinks", frozenset())


def test_in_a_mesh_a_machine_that_is_pinned_to_nothing_is_not_forgotten() -> None:
    """It is why its host has a tunnel, and why that is not pinned."""
    sets = held(a_site(MESH), "hv2")
    one = tunnel_to("hv1")
    assert (one, "10.9.0.3") in sets["port4"]
    assert (one,) not in sets["pinned_mac"] | sets["pinned4"]
    free = a_site(MESH.replace(", mac: 02:00:00:00:00:03, address: 10.9.0.3", ""))
    assert set(ends(free, "hv2")) == {tunnel_to("gw"), one}


def test_in_a_mesh_hypervisors_filter_each_other() -> None:
    sets = held(a_site(MESH), "hv1")
    two = tunnel_to("hv2")
    assert (two, "10.9.0.4") in sets["port4"]
    assert (two,) in sets["pinned4"]
    assert (two,) not in sets["uplinks"]
    assert (tunnel_to("gw"), "10.9.0.4") not in sets["port4"], "it comes from hv2 alone"


def test_a_machine_that_comes_costs_the_gateway_what_it_changes() -> None:
    """By parts, and to the same as by everything."""
    site, host = a_site(), a_kernel().look("cnaf").host
    context = compile_site(site, host).context
    assert context is not None
    more = join(site, [("hv1", nic("cms/store", address="10.8.0.9"))]).site
    known = Known(context)
    # Switches of the host are looked at by the engine; here they stand for themselves.
    known.context = replace(
        context, host=replace(host, sysctls={**host.sysctls, **_all_switches(more)})
    )
    known.done(known.change(more))
    whole = compile_site(more, known.context.host).state
    assert {link.name for link in known.state().links} == {link.name for link in whole.links}
    assert tunnel_to("hv1", "cms", "store") in known.state().by_name


def _all_switches(site: Site) -> dict[str, str]:
    from dvn.vlans.forwarding import switches

    return {switch.key: "0" for switch in switches(site, a_kernel().look("cnaf").host)}


def test_a_part_is_applied_twice_with_nothing_to_do_the_second_time() -> None:
    kernel = a_kernel()
    kernel.foreign_addresses = {OWN["hv1"]}
    engine = Engine(kernel)
    part = narrowed(slice_of(a_site(), "hv1"))
    assert engine.apply(part).steps
    assert not engine.apply(part).steps
    engine.destroy("cnaf")
    assert not kernel.look("cnaf").state.links


# -- NICs


def test_a_nic_becomes_a_port_of_the_network_that_it_names() -> None:
    found = join(a_site(), [("hv2", nic(address="10.9.0.20", machine="vm1"))])
    assert found.refused == ()
    port = found.site.network("cms", "farm").on("hv2")[-1]
    assert (port.interface, port.mac, port.dynamic) == ("vnet0", "52:54:00:00:00:01", True)
    assert port.address == (ip_address("10.9.0.20"),)


@pytest.mark.parametrize(
    ("host", "wanted", "why"),
    [
        ("hv9", nic(), "hv9 is no host of this site"),
        ("hv1", nic("cnf/farm"), "there is no tenant cnf"),
        ("hv1", nic("cms/frm"), "no network frm; did you mean `farm`"),
        ("hv3", nic(), "machines of tenant cms may not run on hv3"),
        ("hv1", nic(interface="tap3"), "tap3 is a port of cms/farm already"),
        ("hv1", nic(mac="02:00:00:00:00:04"), "is port tap3 on hv2's already"),
        ("hv1", nic(mac="02:00:00:00:00:aa"), "is tunnel cms/bari's already"),
        ("hv1", nic(address="10.7.0.1"), "is outside 10.9.0.0/24 and fd00:9::/64"),
        ("hv1", nic(address="10.9.0.255"), "network or broadcast address"),
        ("hv1", nic(address="10.9.0.1"), "is the gateway's already"),
        ("hv1", nic(address="10.9.0.5"), "is port tap5 on the gateway host's already"),
        ("hv1", nic(address="10.9.0.101"), "is tunnel cms/bari's already"),
    ],
)
def test_who_may_not_join_stays_outside_and_is_named(host: str, wanted: Nic, why: str) -> None:
    """And nobody else is kept out by it."""
    good = nic(interface="vnet9", mac="52:54:00:00:00:99", address="10.9.0.99")
    found = join(a_site(), [(host, wanted), ("hv2", good)])
    assert [why in str(one) for one in found.refused] == [True], found.refused
    dynamic = [p for _t, _n, net in found.site.networks() for p in net.ports if p.dynamic]
    assert [port.interface for port in dynamic] == ["vnet9"]


def test_of_two_that_want_one_address_the_first_gets_it() -> None:
    one, two = nic(address="10.9.0.20", machine="a"), nic(address="10.9.0.20", machine="b")
    found = join(
        a_site(), [("hv1", one), ("hv2", two.model_copy(update={"mac": "52:54:00:00:00:02"}))]
    )
    assert [(r.host, r.why) for r in found.refused] == [("hv2", "10.9.0.20 is a on hv1's already")]


def test_what_is_kept_for_borrowed_machines_only_they_get() -> None:
    kept: Mapping[tuple[str, str], Mapping[object, str]] = {
        ("cms", "farm"): {ip_address("10.9.0.200"): "pool hv"}
    }
    wanted = nic(address="10.9.0.200")
    (refused,) = join(a_site(), [("hv1", wanted)], kept).refused
    assert refused.why == "10.9.0.200 is pool hv's already"
    lease = wanted.model_copy(update={"lease": "0123"})
    assert join(a_site(), [("hv1", lease)], kept).refused == ()
    twice = lease.model_copy(update={"interface": "vnet1", "mac": "52:54:00:00:00:02"})
    assert join(a_site(), [("hv1", lease), ("hv2", twice)], kept).refused


def test_a_host_decides_as_the_gateway_does_where_it_can() -> None:
    """The agent joins its own machines to its part while the gateway is away."""
    site, wanted = a_site(), nic("cms/store", address="10.8.0.9")
    here = join(slice_of(site, "hv1"), [("hv1", wanted)])
    there = slice_of(join(site, [("hv1", wanted)]).site, "hv1")
    assert here.refused == ()
    assert narrowed(here.site) == narrowed(there)
    assert join(slice_of(site, "hv1"), [("hv1", nic(address="10.9.0.101"))]).refused
    assert join(slice_of(site, "hv3"), [("hv3", nic())]).refused


def test_what_a_host_says_is_read_with_care() -> None:
    good = nic(machine="vm1").model_dump(mode="json")
    found, wrong = nics_from_json([good, {**good, "interface": "x/y"}, {**good, "more": 1}, 7])
    assert [each.machine for each in found] == ["vm1"]
    assert "cannot be the name of an interface" in wrong
    assert nics_from_json("nonsense") == ([], "")


# -- files


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("fabric: {transport: plain}\n", "", "nothing says what joins them"),
        ("{transport: plain}\n", "{}\n", "transport"),
        ("host: hv2, interface", "host: hv8, interface", "there is no host 'hv8'"),
        ("host: hv2, interface", "host: gw, interface", "without it a port is on this host"),
        ("host: hv2, interface", "host: hv3, interface", "host hv3 is not for tenant cms"),
        ("198.51.100.12", "198.51.100.11", "is host hv1's already"),
        ("198.51.100.12", "10.8.0.7", "is inside network cms/store"),
        ("198.51.100.12", "2001:db8::7", "have no address of the same family"),
        ("tenants: atlas}", "tenants: atlass}", "is for tenant 'atlass', which is not declared"),
        ("  hv2: ", "  gw: ", "gw is this host, the gateway"),
        ("{transport: plain}\n", "{transport: wireguard}\n", "needs this underlay's WireGuard key"),
        ("host: gw\n", "host: gw\nhere: hv1\n", "`here` is not for files"),
        ("{host: hv1, interface: tap4}", "{interface: tap4, dynamic: true}", "is not dynamic"),
    ],
)
def test_a_wrong_file_is_told_so_with_its_line(old: str, new: str, words: str) -> None:
    assert old in SITE
    with pytest.raises(SpecError) as caught:
        a_site(SITE.replace(old, new, 1))
    told = [str(problem) for problem in caught.value.problems]
    assert any(words in line for line in told), told
    assert all(problem.line for problem in caught.value.problems), told


def test_ports_of_two_hosts_may_have_the_same_name() -> None:
    assert len(a_site().network("cms", "farm").ports) == 4
    twice = SITE.replace("{host: hv1, interface: tap4}", "{host: hv1, interface: tap3}")
    with pytest.raises(SpecError, match="interface tap3 is a port of cms/farm already"):
        a_site(twice)


def test_a_borrowed_machines_tunnel_is_known_to_the_hosts() -> None:
    lease = Tunnel.model_validate(
        {"tenant": "cms", "name": "l7", "network": "farm", "remote": "203.0.113.9", "key": 9,
         "addresses": ["10.9.0.102"], "macs": ["02:00:0a:09:00:66"], "dynamic": True}
    )  # fmt: skip
    site = a_site().with_tunnels([lease])
    assert (NUMBER, "10.9.0.102") in held(site, "hv1")["owned4"]
