"""DHCPv6 spoken with scapy's client, router advertisements and names as scapy reads them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers import dhcp6 as scapy6
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6NDOptDNSSL,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
)

from dvn.ipam import AddressBook, Span
from dvn.services import dhcp6, names, ra
from dvn.services.config import Family, Service
from dvn.services.dhcp6 import Dhcp6

NOW = 1e9
ME, FIXED = "02:00:00:00:00:01", "02:00:00:00:00:03"
GATEWAY = IPv6Address("fd00:9::1")
SIX = Family(
    GATEWAY,
    64,
    Span(IPv6Address("fd00:9::1000"), IPv6Address("fd00:9::1001")),
    reserved=(GATEWAY,),
    fixed=((FIXED, IPv6Address("fd00:9::33")),),
    resolvers=(GATEWAY,),
)
SERVICE = Service(
    "cnaf", "cms/farm", "b-cms-farm", "02:00:00:00:00:ff", 1458, 3600, None, SIX,
    "fe80::ff", domain="farm.example",
)  # fmt: skip


class Network:
    def __init__(self) -> None:
        self.book = AddressBook([SIX.span], reserved=SIX.reserved, fixed=SIX.fixed)
        self.server = Dhcp6(SERVICE, SIX, self.book)

    def say(self, kind: Any, mac: str = ME, *options: Any, server: bool = True) -> Any:
        message = kind(trid=0x123456) / scapy6.DHCP6OptClientId(duid=scapy6.DUID_LL(lladdr=mac))
        if server:
            message /= scapy6.DHCP6OptServerId(duid=self.server.duid)
        for option in options:
            message /= option
        parsed = dhcp6.parse(bytes(message))
        assert parsed is not None
        answer = self.server.answer(parsed, dhcp6.mac_of(parsed, IPv6Address("fe80::1")), NOW)
        if answer is None:
            return None
        for lease in answer.leases:
            if lease.until > NOW and lease.client:
                self.book.bind(lease, NOW)
        kinds = {2: scapy6.DHCP6_Advertise, 7: scapy6.DHCP6_Reply}
        return kinds[answer.data[0]](answer.data)

    def gets(self, mac: str = ME) -> str:
        advertised = self.say(scapy6.DHCP6_Solicit, mac, scapy6.DHCP6OptIA_NA(iaid=1), server=False)
        address = addresses(advertised)[0]
        reply = self.say(scapy6.DHCP6_Request, mac, association(address))
        assert addresses(reply) == [address]
        return address


def association(*found: str) -> Any:
    return scapy6.DHCP6OptIA_NA(
        iaid=1, ianaopts=[scapy6.DHCP6OptIAAddress(addr=address) for address in found]
    )


def addresses(message: Any) -> list[str]:
    """Those that may be used."""
    options = message[scapy6.DHCP6OptIA_NA].ianaopts
    return [o.addr for o in options if isinstance(o, scapy6.DHCP6OptIAAddress) and o.validlft]


def test_an_address_and_all_the_rest() -> None:
    network = Network()
    assert network.gets() in ("fd00:9::1000", "fd00:9::1001")
    reply = network.say(scapy6.DHCP6_Request, ME, association())
    assert reply.trid == 0x123456
    assert reply[scapy6.DHCP6OptDNSServers].dnsservers == ["fd00:9::1"]
    assert reply[scapy6.DHCP6OptDNSDomains].dnsdomains == ["farm.example."]
    assert bytes(reply[scapy6.DHCP6OptServerId].duid) == network.server.duid
    assert reply[scapy6.DHCP6OptIAAddress].validlft == 3600


def test_a_port_gets_the_address_it_is_pinned_to() -> None:
    network = Network()
    assert network.gets(FIXED) == "fd00:9::33"
    reply = network.say(scapy6.DHCP6_Request, ME, association("fd00:9::33"))
    assert addresses(reply) != ["fd00:9::33"]


def test_no_address_left_is_said() -> None:
    network = Network()
    for number in (1, 2):
        network.gets(f"02:00:00:00:01:0{number}")
    advertised = network.say(scapy6.DHCP6_Solicit, ME, scapy6.DHCP6OptIA_NA(iaid=1), server=False)
    assert advertised[scapy6.DHCP6OptStatusCode].statuscode == dhcp6.NO_ADDRESS


def test_rapid_commit_is_one_exchange() -> None:
    network = Network()
    options = (scapy6.DHCP6OptIA_NA(iaid=1), scapy6.DHCP6OptRapidCommit())
    reply = network.say(scapy6.DHCP6_Solicit, ME, *options, server=False)
    assert isinstance(reply, scapy6.DHCP6_Reply)
    assert network.book.living(IPv6Address(addresses(reply)[0]), NOW)


def test_renewed_rebound_and_released() -> None:
    network = Network()
    mine = network.gets()
    assert addresses(network.say(scapy6.DHCP6_Renew, ME, association(mine))) == [mine]
    assert addresses(network.say(scapy6.DHCP6_Rebind, ME, association(mine), server=False)) == [
        mine
    ]
    network.say(scapy6.DHCP6_Release, ME, association(mine))
    assert network.book.living(IPv6Address(mine), NOW) is None


def test_a_strange_address_ends_at_once_when_it_is_renewed() -> None:
    reply = Network().say(scapy6.DHCP6_Renew, ME, association("fd00:8::1"))
    ended = [o for o in reply[scapy6.DHCP6OptIA_NA].ianaopts if o.addr == "fd00:8::1"]
    assert [option.validlft for option in ended] == [0]
    assert len(addresses(reply)) == 1


@pytest.mark.parametrize(("address", "code"), [("fd00:9::77", 0), ("fd00:8::1", 4)])
def test_confirm_tells_whether_it_is_the_same_link(address: str, code: int) -> None:
    reply = Network().say(scapy6.DHCP6_Confirm, ME, association(address), server=False)
    assert reply[scapy6.DHCP6OptStatusCode].statuscode == code


def test_a_declined_address_is_given_to_nobody() -> None:
    network = Network()
    mine = network.gets()
    network.say(scapy6.DHCP6_Decline, ME, association(mine))
    assert network.gets() != mine
    # And not what is another's.
    other = network.gets()
    network.say(scapy6.DHCP6_Decline, FIXED, association(other))
    assert network.gets() == other


def test_prefixes_are_not_delegated_and_said_so() -> None:
    reply = Network().say(scapy6.DHCP6_Request, ME, scapy6.DHCP6OptIA_PD(iaid=5))
    assert reply[scapy6.DHCP6OptStatusCode].statuscode == dhcp6.NO_PREFIX


def test_messages_for_other_servers_are_left_alone() -> None:
    network = Network()
    assert network.say(scapy6.DHCP6_Request, ME, association(), server=False) is None
    network.server.duid = b"\0\3\0\1another"
    message = scapy6.DHCP6_Request() / scapy6.DHCP6OptClientId(duid=scapy6.DUID_LL(lladdr=ME))
    message /= scapy6.DHCP6OptServerId(duid=scapy6.DUID_LL(lladdr=SERVICE.mac))
    parsed = dhcp6.parse(bytes(message / association()))
    assert parsed is not None
    assert network.server.answer(parsed, ME, NOW) is None


@given(st.binary(max_size=200))
def test_garbage_does_no_harm(data: bytes) -> None:
    message = dhcp6.parse(b"\x03abc" + data)
    if message:
        Network().server.answer(message, ME, NOW)


def test_the_mac_address_from_what_a_client_tells() -> None:
    def message(duid: Any) -> dhcp6.Message:
        found = dhcp6.parse(bytes(scapy6.DHCP6_Solicit() / scapy6.DHCP6OptClientId(duid=duid)))
        assert found is not None
        return found

    random = IPv6Address("fe80::1234:5678:9abc:def0")
    assert dhcp6.mac_of(message(scapy6.DUID_LLT(lladdr=ME)), random) == ME
    assert dhcp6.mac_of(message(scapy6.DUID_UUID()), random) == ""
    assert dhcp6.mac_of(message(scapy6.DUID_UUID()), IPv6Address("fe80::ff:fe00:1")) == ME


def test_the_router_advertisement() -> None:
    message = ICMPv6ND_RA(ra.advertisement(SERVICE, SIX))
    assert (message.M, message.O, message.routerlifetime) == (1, 1, 1800)
    assert message[ICMPv6NDOptMTU].mtu == 1458
    assert message[ICMPv6NDOptSrcLLAddr].lladdr == SERVICE.mac
    prefix = message[ICMPv6NDOptPrefixInfo]
    assert (prefix.prefix, prefix.prefixlen, prefix.L, prefix.A) == ("fd00:9::", 64, 1, 0)
    assert message[ICMPv6NDOptRDNSS].dns == ["fd00:9::1"]
    assert message[ICMPv6NDOptDNSSL].searchlist == ["farm.example."]
    assert ICMPv6ND_RA(ra.advertisement(SERVICE, SIX, 0)).routerlifetime == 0


def query(name: str, kind: str = "A") -> bytes:
    return bytes(DNS(id=9, rd=1, qd=DNSQR(qname=name, qtype=kind)))


def test_a_question_and_our_answer() -> None:
    asked = names.question(query("Gateway.Farm.example"))
    assert asked is not None
    assert (asked.name, asked.kind) == ("gateway.farm.example", names.A)
    answer = DNS(names.response(asked, 0, (IPv4Address("10.9.0.1"),)))
    assert (answer.id, answer.qr, answer.aa, answer.an.rdata) == (9, 1, 1, "10.9.0.1")
    assert DNS(names.response(asked, names.NO_NAME)).rcode == 3


def test_an_answer_belongs_to_its_question() -> None:
    asked = names.question(query("www.example.org"))
    assert asked is not None
    right = DNS(id=5, qr=1, qd=DNSQR(qname="www.example.org"))
    assert names.answers_to(bytes(right), asked, 5)
    assert not names.answers_to(bytes(right), asked, 6)
    for wrong in (DNSQR(qname="www.example.com"), DNSQR(qname="www.example.org", qtype="MX")):
        assert not names.answers_to(bytes(DNS(id=5, qr=1, qd=wrong)), asked, 5)
    assert not names.answers_to(query("www.example.org"), asked, 9)


@given(st.binary(max_size=100))
def test_no_question_in_garbage_ends_in_an_error(data: bytes) -> None:
    names.question(b"\0\1\1\0\0\1\0\0\0\0\0\0" + data)
