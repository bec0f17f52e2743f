"""What the gateway forwards on a real kernel, and what it does not: IPv6, foreign traffic."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dvn.engine import Engine
from lab.hosts import Lab
from tests.dvn.place import OUTSIDE, Place

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Lab() as lab:
        yield Place(lab)


@pytest.fixture
def applied(place: Place) -> Place:
    place.apply()
    return place


def test_ipv6_crosses_between_a_network_and_the_site(applied: Place) -> None:
    """Also when the gateway has to ask for the neighbour it forwards to, on either side."""
    mac = applied.gw("cat /sys/class/net/b-cms-farm/address").strip()
    # The head never asks, so that the gateway does not learn of it by a question.
    applied["head"].script(
        "ip address add fd00:9::10/64 dev eth0 nodad; ip route add default via fd00:9::1;"
        f"ip neighbour replace fd00:9::1 lladdr {mac} dev eth0 nud permanent"
    )
    applied["internet"].script(
        "ip address add fd00:5::254/64 dev site nodad; ip route add fd00:9::/64 via fd00:5::1"
    )
    outer = ("fd00:5::1/64", "fe80::1/64")
    applied.gw("; ".join(f"ip address add {address} dev wan0 nodad" for address in outer))
    forget = "ip -6 neighbour flush dev b-cms-farm; ip -6 neighbour flush dev wan0"
    inside = "ip -6 -o address show dev b-cms-farm scope link"
    try:
        assert len(applied.gw(inside).splitlines()) == 1
        assert "tentative" not in applied.gw(inside)
        applied.gw(forget)
        assert applied.pings("head", "fd00:5::254")
        # The control: without that address the gateway cannot ask who has fd00:9::10.
        applied.gw(f"ip -6 address flush dev b-cms-farm scope link; {forget}")
        assert any("fe80::" in line for line in applied.plan())
        assert not applied.pings("head", "fd00:5::254")
        applied.apply()
        assert applied.plan() == ()
        assert applied.pings("head", "fd00:5::254")
    finally:
        applied.gw("; ".join(f"ip address delete {address} dev wan0" for address in outer))
        applied["head"].script(
            "ip -6 route delete default; ip address delete fd00:9::10/64 dev eth0;"
            "ip neighbour delete fd00:9::1 dev eth0"
        )
        applied["internet"].script(
            "ip -6 route delete fd00:9::/64; ip address delete fd00:5::254/64 dev site"
        )


SWITCHES = (
    "ipv4/conf/wan0/forwarding", "ipv4/conf/lan0/forwarding",
    "ipv6/conf/all/forwarding", "ipv6/conf/wan0/accept_ra",
)  # fmt: skip


def test_foreign_traffic_finds_no_new_way(place: Place) -> None:
    """Between wan0 and ext0, neither of them ours, with forwarding on in ext0 from the start."""

    def switches() -> list[str]:
        return place.gw("cd /proc/sys/net; cat " + " ".join(SWITCHES)).split()

    def switch(*values: str) -> None:
        pairs = zip(SWITCHES, values, strict=True)
        place.gw("cd /proc/sys/net; " + "; ".join(f"echo {v} > {key}" for key, v in pairs))

    def crosses() -> list[bool]:
        return [place.pings("internet", target) for target in ("192.168.77.2", "fd00:77::2")]

    def destroy() -> None:
        place["gw"].inside(lambda: place.engine.destroy("cnaf"))

    destroy()
    place["internet"].script(
        "ip address add fd00:5::254/64 dev site nodad; ip address add fe80::254/64 dev site nodad;"
        "ip route add 192.168.77.0/24 via 198.51.100.1; ip route add fd00:77::/64 via fd00:5::1"
    )
    place["stranger"].script(
        "ip address add fd00:77::2/64 dev eth0 nodad; ip address add fe80::2/64 dev eth0 nodad;"
        "ip route add default via fd00:77::1"
    )
    outer = ("fd00:5::1/64 dev wan0", "fe80::1/64 dev wan0", "fd00:77::1/64 dev ext0",
             "fe80::77/64 dev ext0")  # fmt: skip
    place.gw("; ".join(f"ip address add {address} nodad" for address in outer))
    place.gw("echo 1 > /proc/sys/net/ipv4/conf/ext0/forwarding")
    try:
        switch("0", "0", "0", "1")
        assert crosses() == [False, False]
        place.apply()
        assert switches() == ["1", "1", "1", "2"]
        assert crosses() == [False, False]
        assert place.pings("head", OUTSIDE)
        assert place.pings("stranger", "10.9.0.10")  # access: open, to the site's machines
        assert place.plan() == ()
        assert place["gw"].inside(lambda: Engine().plan(place.site)).steps == ()
        # The control: the same packets, without our filter.
        place.gw("nft flush chain inet dvn-cnaf forward")
        assert crosses() == [True, True]
        place.apply()
        assert crosses() == [False, False]
        destroy()
        assert switches() == ["0", "0", "0", "1"]
        assert place.gw("cat /proc/sys/net/ipv4/conf/ext0/forwarding").strip() == "1"
        # Who had it on already keeps it, and what passes by it.
        switch("1", "1", "1", "1")
        place.apply()
        assert crosses() == [True, True]
        assert place.plan() == ()
        assert switches() == ["1", "1", "1", "1"]
        destroy()
        assert switches() == ["1", "1", "1", "1"]
        assert crosses() == [True, True]
    finally:
        switch("0", "0", "0", "1")
        place.gw("; ".join(f"ip address delete {address}" for address in outer))
        place.gw("echo 0 > /proc/sys/net/ipv4/conf/ext0/forwarding")
        place["internet"].script(
            "ip route delete 192.168.77.0/24; ip -6 route delete fd00:77::/64;"
            "ip address delete fd00:5::254/64 dev site; ip address delete fe80::254/64 dev site"
        )
