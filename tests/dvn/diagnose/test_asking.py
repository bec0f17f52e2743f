"""What a person writes becomes the packet that is meant, or a message."""

from __future__ import annotations

import pytest

from dvn.diagnose.asking import asked, words_of
from dvn.diagnose.describe import describe
from dvn.diagnose.planned import planned_walker
from dvn.diagnose.walk import Walker
from dvn.problems import SpecError
from dvn.spec import Site
from tests.dvn.sites import full_site


@pytest.fixture(scope="module")
def site() -> Site:
    return full_site()


@pytest.fixture(scope="module")
def walker(site: Site) -> Walker:
    return planned_walker(site)


@pytest.mark.parametrize(
    ("text", "enters", "packet"),
    [
        (
            "cms/farm:tap3 tcp 10.9.0.3 to 8.8.8.8:443",
            "tap3",
            "02:00:00:00:00:03 > {gw} IPv4 10.9.0.3:40000 > 8.8.8.8:443 tcp SYN",
        ),
        (
            "tap3 udp > [fd00:9::7]:53 sport=53",
            "tap3",
            "02:00:00:00:00:03 > 02:00:00:00:00:fe IPv6 [fd00:9::a]:53 > [fd00:9::7]:53 udp",
        ),
        (
            "cms/farm:lan0 icmp to 10.9.0.3",
            "lan0",
            (
                "02:00:00:00:00:02 > 02:00:00:00:00:03 vlan 101 "
                "IPv4 10.9.0.10 > 10.9.0.3 icmp echo-request"
            ),
        ),
        (
            "cms/bari arp 10.9.0.101 to 10.9.0.3",
            "t-cms-bari",
            "02:00:00:00:00:02 > ff:ff:ff:ff:ff:ff ARP who has 10.9.0.3? tell 10.9.0.101",
        ),
        (
            "outside 8.8.8.8:443 to 198.51.100.10 flags=sa state=established",
            "wan0",
            "02:00:00:00:00:02 > 02:00:00:00:00:01 IPv4 8.8.8.8:443 > 198.51.100.10:80 tcp SYN+ACK",
        ),
    ],
)
def test_the_short_form(site: Site, walker: Walker, text: str, enters: str, packet: str) -> None:
    question = asked(site, walker.scene, words_of(text.split()))
    gateway = walker.scene.devices["b-cms-farm"].mac
    assert question.enters == enters
    assert describe(question.packet) == packet.format(gw=gateway)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tap3", "where to is not said"),
        ("10.9.0.3 to 8.8.8.8", "where from is not said"),
        ("tap9 to 8.8.8.8", "'tap9' is no place"),
        ("cms/disk to 8.8.8.8", "there is no network or tunnel cms/disk; there are"),
        ("cms/farm:tap4 to 8.8.8.8", "cms/farm has no port tap4; use cms/farm:tap3"),
        ("tap3 10.9.0.3 to fd00::1", "of two families"),
        ("tap3 to 8.8.8.8:99999", "dport '99999' is not a number"),
        ("tap3 to 8.8.8.8 state=odd", "a connection cannot be 'odd'"),
        ("tap3 icmp to 8.8.8.8 kind=shout", "'shout' is no icmp type"),
        ("tap3 to 8.8.8.8 please", "'please' is not understood"),
    ],
)
def test_what_is_wrong_is_said(site: Site, walker: Walker, text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says.replace("?", r"\?")):
        asked(site, walker.scene, words_of(text.split()))
