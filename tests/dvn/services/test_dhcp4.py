"""DHCPv4 spoken with scapy's client: what each message is answered, and what is in the answer."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from dvn.ipam import AddressBook, Lease, Span
from dvn.services import dhcp4
from dvn.services.config import Family, Service
from dvn.services.dhcp4 import Answer, Dhcp4

NOW = 1e9
ME, OTHER, FIXED = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"
GATEWAY = IPv4Address("10.9.0.1")
FOUR = Family(
    GATEWAY,
    24,
    Span(IPv4Address("10.9.0.100"), IPv4Address("10.9.0.101")),
    reserved=(GATEWAY,),
    fixed=((FIXED, IPv4Address("10.9.0.33")),),
    resolvers=(GATEWAY,),
)
SERVICE = Service(
    "cnaf", "cms/farm", "b-cms-farm", "02:00:00:00:00:ff", 1458, 3600, FOUR, domain="farm.example"
)


class Network:
    """A server, its book, and clients that take what they are given."""

    def __init__(self) -> None:
        self.book = AddressBook([FOUR.span], reserved=FOUR.reserved, fixed=FOUR.fixed)
        self.server = Dhcp4(SERVICE, FOUR, self.book)
        self.now = NOW

    def say(self, kind: str, mac: str = ME, *, bootp: Any = None, **options: Any) -> Answer | None:
        fields = {"chaddr": bytes.fromhex(mac.replace(":", "")), "xid": 7, **(bootp or {})}
        told = [("message-type", kind), *options.items(), "end"]
        message = dhcp4.parse(bytes(BOOTP(**fields) / DHCP(options=told)))
        assert message is not None
        if kind in ("decline", "release"):
            self.server.given_back(message, self.now)
            return None
        answer = self.server.answer(message, self.now)
        if answer and answer.lease:
            self.book.bind(answer.lease, self.now)
        return answer

    def gets(self, mac: str = ME) -> str:
        """The address after DISCOVER, OFFER, REQUEST, ACK."""
        offer = self.say("discover", mac)
        assert offer is not None
        address = read(offer)["yiaddr"]
        ack = self.say("request", mac, requested_addr=address, server_id=str(GATEWAY))
        assert ack is not None
        assert read(ack)["message-type"] == dhcp4.ACK
        assert read(ack)["yiaddr"] == address
        return str(address)


def read(answer: Answer) -> dict[str, Any]:
    packet = BOOTP(answer.data)
    told = {option[0]: option[1:] for option in packet[DHCP].options if isinstance(option, tuple)}
    plain = {name: values[0] if len(values) == 1 else values for name, values in told.items()}
    return {**plain, "yiaddr": packet.yiaddr, "ciaddr": packet.ciaddr, "xid": packet.xid}


def test_all_that_a_machine_needs_is_told() -> None:
    network = Network()
    told = read(network.say("discover"))  # type: ignore[arg-type]
    assert told["message-type"] == dhcp4.OFFER
    assert told["xid"] == 7
    assert told["subnet_mask"] == "255.255.255.0"
    assert told["router"] == told["name_server"] == told["server_id"] == "10.9.0.1"
    assert told["broadcast_address"] == "10.9.0.255"
    assert told["interface-mtu"] == 1458
    assert told["domain"] == b"farm.example"
    assert (told["lease_time"], told["renewal_time"], told["rebinding_time"]) == (3600, 1800, 3150)


def test_each_machine_has_its_own_until_there_is_none_left() -> None:
    network = Network()
    first, second = network.gets(ME), network.gets(OTHER)
    assert {first, second} == {"10.9.0.100", "10.9.0.101"}
    assert network.say("discover", "02:00:00:00:00:04") is None
    assert network.gets(ME) == first  # again
    network.now += 3601
    assert network.gets("02:00:00:00:00:04") in (first, second)


def test_an_offer_is_not_made_twice() -> None:
    network = Network()
    offers = [read(network.say("discover", mac))["yiaddr"] for mac in (ME, OTHER)]  # type: ignore[arg-type]
    assert len(set(offers)) == 2
    assert network.say("discover", "02:00:00:00:00:04") is None
    network.now += dhcp4.OFFERED_S + 1
    assert network.say("discover", "02:00:00:00:00:04") is not None


def test_a_port_gets_the_address_it_is_pinned_to() -> None:
    network = Network()
    assert network.gets(FIXED) == "10.9.0.33"
    refused = network.say("request", ME, requested_addr="10.9.0.33", server_id="10.9.0.1")
    assert refused is not None
    assert read(refused)["message-type"] == dhcp4.NAK
    assert (refused.mac, refused.address) == (dhcp4.BROADCAST_MAC, dhcp4.BROADCAST)


@pytest.mark.parametrize("wanted", ["10.9.0.50", "10.8.0.100", "10.9.0.1", "10.9.0.33"])
def test_what_is_not_given_out_is_refused(wanted: str) -> None:
    """After a reboot (no server named), or when a lease is to be renewed."""
    for said in ({"requested_addr": wanted}, {"bootp": {"ciaddr": wanted}}):
        answer = Network().say("request", **said)
        assert answer is not None
        assert read(answer)["message-type"] == dhcp4.NAK
        assert answer.lease is None


def test_a_lease_is_renewed_and_given_back() -> None:
    network = Network()
    address = network.gets()
    network.now += 1800
    renewed = network.say("request", bootp={"ciaddr": address})
    assert renewed is not None
    assert renewed.lease == Lease(IPv4Address(address), f"4:{ME}", network.now + 3600, ME)
    assert (renewed.mac, str(renewed.address)) == (ME, address)
    network.say("release", bootp={"ciaddr": address}, server_id="10.9.0.1")
    assert network.book.living(IPv4Address(address), network.now) is None
    assert network.gets() == address  # nobody needed it


def test_an_address_that_somebody_uses_is_given_to_nobody() -> None:
    network = Network()
    address = network.gets()
    network.say("decline", requested_addr=address, server_id="10.9.0.1")
    assert network.gets() != address
    assert network.say("discover", OTHER) is None
    # Nobody takes away what is another's.
    other = network.gets()
    network.say("decline", OTHER, requested_addr=other, server_id="10.9.0.1")
    assert network.gets() == other


def test_new_addresses_are_probed_and_known_ones_not() -> None:
    network = Network()
    offer = network.say("discover")
    assert offer is not None
    assert str(offer.probe) == read(offer)["yiaddr"]
    network.gets()
    again, fixed = network.say("discover"), network.say("discover", FIXED)
    assert again is not None
    assert fixed is not None
    assert (again.probe, fixed.probe) == (None, None)


def test_a_client_that_chose_another_server_is_left_alone() -> None:
    network = Network()
    network.say("discover")
    assert network.say("request", requested_addr="10.9.0.100", server_id="10.9.0.9") is None


def test_inform_tells_without_an_address() -> None:
    answer = Network().say("inform", bootp={"ciaddr": "10.9.0.77"})
    assert answer is not None
    told = read(answer)
    assert (told["message-type"], told["yiaddr"]) == (dhcp4.ACK, "0.0.0.0")
    assert "lease_time" not in told
    assert told["interface-mtu"] == 1458


def test_the_frame_on_the_wire() -> None:
    offer = Network().say("discover")
    assert offer is not None
    packet = Ether(dhcp4.frame(offer, SERVICE.mac, GATEWAY))
    assert (packet.src, packet.dst) == (SERVICE.mac, ME)
    assert (packet[IP].src, packet[IP].dst) == ("10.9.0.1", read(offer)["yiaddr"])
    assert (packet[UDP].sport, packet[UDP].dport) == (67, 68)
    sums = packet[IP].chksum, packet[UDP].chksum
    del packet[IP].chksum, packet[UDP].chksum
    again = Ether(bytes(packet))
    assert (again[IP].chksum, again[UDP].chksum) == sums


def test_the_broadcast_flag_is_obeyed() -> None:
    offer = Network().say("discover", bootp={"flags": 0x8000})
    assert offer is not None
    assert (offer.mac, offer.address) == (dhcp4.BROADCAST_MAC, dhcp4.BROADCAST)


@given(st.binary(max_size=600))
def test_garbage_is_no_message(data: bytes) -> None:
    dhcp4.parse(data)


@given(st.binary(max_size=80))
def test_garbage_options_do_no_harm(options: bytes) -> None:
    head = bytes(BOOTP(chaddr=bytes.fromhex("020000000001"))) + options
    message = dhcp4.parse(head)
    if message:
        Network().server.answer(message, NOW)


@pytest.mark.parametrize(
    "fields", [{"op": 2}, {"htype": 6}, {"giaddr": "10.9.0.9"}, {"chaddr": b"\x01\0\0\0\0\1"}]
)
def test_replies_relays_and_others_are_not_looked_at(fields: dict[str, Any]) -> None:
    plain = {"chaddr": bytes.fromhex("020000000001"), **fields}
    data = bytes(BOOTP(**plain) / DHCP(options=[("message-type", "discover"), "end"]))
    assert dhcp4.parse(data) is None
