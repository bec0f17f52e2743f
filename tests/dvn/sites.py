"""Sites and hosts for tests: one that uses everything, and hypothesis strategies for any."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

from hypothesis import strategies as st

from dvn import located
from dvn.kernel.fake import FakeKernel
from dvn.kernel.state import HostLink
from dvn.spec import Site, parse_site

FULL = """
site: cnaf
host: gw1
underlay: {interface: wan0, address: 198.51.100.1}
tenants:
  cms:
    networks:
      farm:
        prefix: [10.9.0.0/24, "fd00:9::/64"]
        vlan: {id: 101, uplink: lan0}
        access: open
        nat: {snat: 198.51.100.10}
        services: [tcp/22]
        ports: [{interface: tap3, mac: 02:00:00:00:00:03, address: 10.9.0.3}]
    tunnels:
      bari: {network: farm, remote: 203.0.113.7, key: 42, transport: plain}
      pisa: {network: farm, remote: 203.0.113.8, key: 43, transport: plain}
  atlas:
    networks:
      farm: {prefix: 10.8.0.0/24, nat: {snat: 198.51.100.11}, vlan: {id: 102, uplink: lan0}}
      store: {prefix: 10.8.1.0/24}
"""


def full_site() -> Site:
    return parse_site(located.loads(FULL))


def a_kernel() -> FakeKernel:
    kernel = FakeKernel()
    for name in ("wan0", "lan0", "tap3", "tap4", "tap5"):
        kernel.foreign[name] = HostLink(name, "", 1500, name == "wan0", False)
        kernel.values[f"net/ipv4/conf/{name}/forwarding"] = "0"
        kernel.values[f"net/ipv6/conf/{name}/accept_ra"] = "1"
    kernel.values["net/ipv6/conf/all/forwarding"] = "0"
    for protocol in ("tcp", "udp"):
        kernel.values[f"net/ipv4/{protocol}_l3mdev_accept"] = "0"
    kernel.foreign_addresses = {"198.51.100.1"}
    return kernel


@st.composite
def sites(draw: st.DrawFn) -> Site:
    """Any small site, always of the same name, so that one can follow another in one kernel."""
    tenants: dict[str, Any] = {}
    taps = ["tap3", "tap4", "tap5"]
    numbers = draw(st.permutations(range(12)))
    vlans = draw(st.permutations(range(1, 13)))
    for tenant in draw(st.lists(st.sampled_from(["cms", "atlas", "long-tenant"]), unique=True)):
        names = st.lists(st.sampled_from(["farm", "store", "x-y"]), unique=True)
        networks: dict[str, Any] = {}
        for name in draw(names):
            number = numbers.pop()
            prefix = [str(IPv4Network((int(IPv4Address("10.9.0.0")) + 256 * number, 24)))]
            if draw(st.booleans()):
                prefix.append(f"fd00:{number:x}::/64")
            networks[name] = {
                "prefix": prefix,
                "access": draw(st.sampled_from(["open", "closed"])),
            }
            if draw(st.booleans()):
                networks[name]["vlan"] = {"id": vlans.pop(), "uplink": "lan0"}
            if draw(st.booleans()):
                networks[name]["nat"] = {"snat": draw(st.sampled_from(["192.0.2.1", "192.0.2.2"]))}
            if draw(st.booleans()) and taps:
                networks[name]["ports"] = [{"interface": taps.pop()}]
            if draw(st.booleans()):
                networks[name]["dhcp"] = draw(st.sampled_from([True, {"lease": "2h"}]))
            if draw(st.booleans()):
                networks[name]["rate"] = draw(st.sampled_from(["5mbit", {"in": "1gbit"}]))
            if draw(st.booleans()):
                networks[name]["services"] = draw(
                    st.lists(st.sampled_from(["tcp/22", "udp/53"]), unique=True)
                )
        tunnels = {}
        if networks:
            keys = st.lists(st.integers(1, 9), unique=True, max_size=3)
            remote = {"cms": 7, "atlas": 8, "long-tenant": 9}[tenant]
            for key in draw(keys):
                tunnels[f"t{draw(st.sampled_from('abc'))}{key}"] = {
                    "network": draw(st.sampled_from(sorted(networks))),
                    "remote": f"203.0.113.{remote}",
                    "key": key,
                    "transport": "plain",
                }
        tenants[tenant] = {"networks": networks, "tunnels": tunnels}
    return Site.model_validate(
        {
            "site": "cnaf",
            "underlay": {"interface": "wan0", "address": "198.51.100.1"},
            "tenants": tenants,
        }
    )
