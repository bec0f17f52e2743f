"""The hand-packed messages against pyroute2's codec: what we write it reads, and the other way."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from dvn.kernel import netlink as nl
from dvn.kernel import rtnl
from dvn.kernel.state import (
    ADDRESS_PROTOCOL,
    LINK_GROUP,
    Bridge,
    Fou,
    Gretap,
    Link,
    Params,
    Vlan,
    WireguardLink,
)

INDEXES = {"b-cms-farm": 7, "lan0": 3}


def read_link(request: nl.Request) -> Any:
    message = ifinfmsg(request.pack(1))
    message.decode()
    return message


def info(message: Any) -> tuple[str, Any]:
    linkinfo = message.get_attr("IFLA_LINKINFO")
    return linkinfo.get_attr("IFLA_INFO_KIND"), linkinfo.get_attr("IFLA_INFO_DATA")


def a_link(params: Params) -> Link:
    return Link("t-cms-bari", "dvn:cnaf:tunnel:cms/bari", params, 1458, master="b-cms-farm")


def test_gretap_as_pyroute2_reads_it() -> None:
    params = Gretap("198.51.100.1", "203.0.113.7", 0xDEADBEEF)
    create, stamp = rtnl.create(a_link(params), INDEXES.__getitem__)
    message = read_link(create)
    kind, data = info(message)
    assert kind == "gretap"
    assert message.get_attr("IFLA_IFNAME") == "t-cms-bari"
    assert message.get_attr("IFLA_MTU") == 1458
    assert message.get_attr("IFLA_MASTER") == 7
    assert message.get_attr("IFLA_GROUP") == LINK_GROUP
    assert data.get_attr("IFLA_GRE_LOCAL") == "198.51.100.1"
    assert data.get_attr("IFLA_GRE_REMOTE") == "203.0.113.7"
    assert data.get_attr("IFLA_GRE_IKEY") == 0xDEADBEEF
    assert data.get_attr("IFLA_GRE_OKEY") == 0xDEADBEEF
    assert data.get_attr("IFLA_GRE_IFLAGS") == 0x2000
    assert data.get_attr("IFLA_GRE_TTL") == 64
    assert data.get_attr("IFLA_GRE_PMTUDISC") == 0
    assert read_link(stamp).get_attr("IFLA_IFALIAS") == "dvn:cnaf:tunnel:cms/bari"


def test_vlan_and_bridge_as_pyroute2_reads_them() -> None:
    message = read_link(rtnl.create(a_link(Vlan("lan0", 101)), INDEXES.__getitem__)[0])
    kind, data = info(message)
    assert (kind, data.get_attr("IFLA_VLAN_ID")) == ("vlan", 101)
    assert message.get_attr("IFLA_LINK") == 3
    requests = rtnl.create(a_link(Bridge()), INDEXES.__getitem__)
    kind, data = info(read_link(requests[0]))
    assert kind == "bridge"
    assert data.get_attr("IFLA_BR_STP_STATE") == 0
    assert data.get_attr("IFLA_BR_FORWARD_DELAY") == 0
    assert data.get_attr("IFLA_BR_MCAST_SNOOPING") == 0
    # A bridge's MTU is steady only when it was changed after creation.
    assert read_link(requests[0]).get_attr("IFLA_MTU") != 1458
    assert read_link(requests[-1]).get_attr("IFLA_MTU") == 1458


@pytest.mark.parametrize("address", ["10.9.0.1/24", "198.51.100.10/32", "fd00:9::1/64"])
def test_address_as_pyroute2_reads_it(address: str) -> None:
    message = ifaddrmsg(rtnl.add_address(7, address).pack(1))
    message.decode()
    ip, length = address.split("/")
    assert message["index"] == 7
    assert message["prefixlen"] == int(length)
    assert message.get_attr("IFA_LOCAL") == ip
    assert message.get_attr("IFA_ADDRESS") == ip
    raw = rtnl.add_address(7, address).body
    assert nl.attributes(raw, 8)[rtnl.IFA_PROTO] == bytes([ADDRESS_PROTOCOL])
    assert rtnl.parse_address(raw).address == address


@given(
    st.sampled_from([Bridge(), Vlan("lan0", 1), Vlan("lan0", 4094)])
    | st.just(WireguardLink())
    | st.builds(
        Gretap,
        local=st.ip_addresses(v=6).map(str),
        remote=st.ip_addresses(v=6).map(str),
        key=st.integers(1, 2**32 - 1),
        fou=st.none() | st.builds(Fou, st.integers(1, 65535), st.integers(1, 65535)),
        kind=st.sampled_from(["ip6gretap", "ip6gre"]),
    )
    | st.builds(
        Gretap,
        fou=st.none() | st.builds(Fou, st.integers(1, 65535), st.integers(1, 65535)),
        through=st.none() | st.just("lan0"),
        kind=st.sampled_from(["gretap", "gre"]),
        local=st.ip_addresses(v=4).map(str),
        remote=st.ip_addresses(v=4).map(str),
        key=st.integers(1, 2**32 - 1),
        ttl=st.integers(0, 255),
        pmtudisc=st.booleans(),
        ignore_df=st.booleans(),
    )
)
def test_what_is_written_is_what_is_read(params: Params) -> None:
    body = rtnl.create(a_link(params), INDEXES.__getitem__)[0].body
    raw = rtnl.parse_link(body)
    names = {index: name for name, index in INDEXES.items()}
    assert rtnl.params_of(raw, names.__getitem__) == params


def test_attributes_survive_garbage() -> None:
    assert nl.attributes(b"\x03\x00\x01\x00") == {}
    assert nl.attributes(b"\xff\xff\x01\x00ab") == {}
    assert nl.attributes(nl.u32(4, 1458) + b"\x00") == {4: struct.pack("=I", 1458)}


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_an_end_or_an_exception(data: bytes) -> None:
    nl.attributes(data)
    list(nl.messages(data))
