"""Each transport on a real kernel, through the translations it is meant for (pair.py)."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from dvn.addresses import wireguard_inner
from dvn.checks.transports import may_become
from dvn.spec.tunnel import Carried
from dvn.tunnels.auto import choose
from dvn.tunnels.mtu import LEAST, inner_mtu
from dvn.tunnels.paths import Known
from lab.hosts import Lab
from tests.dvn.pair import BOX, INSIDE, PSK_FILE, PUBLIC, PUBLIC_KEY, SIX, Pair, Translation
from tests.dvn.wire import Sniffer

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

Ends = tuple[Mapping[str, Any], Mapping[str, Any]]
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Lab() as lab:
        made = Pair(lab, narrow=1400)
        made.start_ike()
        yield made


def ends(transport: str, a: str | None, b: str | None) -> Ends:
    """What each side declares; `a`, `b`: where the other finds them."""
    more: dict[str, dict[str, Any]] = {"a": {}, "b": {}}
    if transport == "wireguard":
        more = {"a": {"peer_key": PUBLIC_KEY["b"]}, "b": {"peer_key": PUBLIC_KEY["a"]}}
    if transport == "ipsec":
        more = {
            "a": {"psk_file": PSK_FILE, "local_id": "a.example", "peer_id": "b.example"},
            "b": {"psk_file": PSK_FILE, "local_id": "b.example", "peer_id": "a.example"},
        }
    return (
        {"transport": transport, "remote": b, **more["a"]},
        {"transport": transport, "remote": a, **more["b"]},
    )


CASES = [
    pytest.param("plain", "one_to_one", ends("plain", PUBLIC["a"], PUBLIC["b"]), 47, id="plain"),
    pytest.param("fou", "one_to_one", ends("fou", PUBLIC["a"], PUBLIC["b"]), 17, id="fou"),
    # The far end is not told where this one is: it hears, and answers there.
    pytest.param(
        "wireguard", "masquerade", ends("wireguard", None, PUBLIC["b"]), 17, id="wireguard"
    ),
    pytest.param("ipsec", "masquerade", ends("ipsec", BOX["a"], PUBLIC["b"]), 17, id="ipsec"),
]


def put_before(pair: Pair, before_a: Translation) -> None:
    pair.box("a", before_a)
    pair.box("b", "one_to_one")


@pytest.mark.parametrize(("transport", "before_a", "declared", "protocol"), CASES)
def test_traffic_passes_and_is_what_it_says(
    pair: Pair, transport: Carried, before_a: Translation, declared: Ends, protocol: int
) -> None:
    put_before(pair, before_a)
    pair.connect(a=declared[0], b=declared[1])
    with Sniffer(pair["near"], "mid") as wire:
        assert pair.pings(tries=120), "no answer through the tunnel"
        seen = {frame.protocol for frame in wire.frames() if frame.ethertype == 0x0800}
    assert seen == {protocol}
    assert pair.apply("a", pair.site("a", declared[0])).steps == ()  # at rest
    assert pair.apply("b", pair.site("b", declared[1])).steps == ()


@pytest.mark.parametrize(("transport", "before_a", "declared", "protocol"), CASES)
@pytest.mark.parametrize(
    "size", [4 * MEGABYTE, pytest.param(100 * MEGABYTE, marks=pytest.mark.long)]
)
def test_tcp_both_ways_over_a_narrow_path_without_icmp(
    pair: Pair,
    transport: Carried,
    before_a: Translation,
    declared: Ends,
    protocol: int,
    size: int,
) -> None:
    """The path carries 1400 bytes and says nothing about it."""
    put_before(pair, before_a)
    pair.connect(a=declared[0], b=declared[1])
    pair.set_ends(1500)
    assert pair.pings(tries=120)
    assert pair.sends("a", "b", size)
    assert pair.sends("b", "a", size)


@pytest.mark.parametrize("transport", ["plain", "fou", "wireguard"])
@pytest.mark.parametrize("version", [4, 6])
def test_the_mtu_fits_to_the_byte(pair: Pair, transport: Carried, version: int) -> None:
    """Told what the path carries, the largest packet passes whole: unbroken on the wire."""
    pair.box("a", "none")
    pair.box("b", "none")
    address = {4: (INSIDE["a"], INSIDE["b"]), 6: (SIX["a"], SIX["b"])}[version]
    declared = ends(transport, *address)
    for side, tunnel in zip("ab", declared, strict=True):
        own = {"a": address[0], "b": address[1]}[side]
        pair.apply(side, pair.site(side, tunnel, underlay={"mtu": 1400, "address": own}))
    mtu = pair.mtu("a")
    whole = inner_mtu(1400, transport, version)
    assert mtu == max(LEAST, whole)
    pair.set_ends(mtu)
    assert pair.pings(), "the control: a small packet"
    with Sniffer(pair["near"], "mid") as wire:
        assert pair.pings(mtu - 28)
        longest = max(len(frame.data) - 14 for frame in wire.frames())
        assert longest <= 1400
        if whole >= LEAST:  # WireGuard over IPv6 has 1278: its inner packet is broken up, in it
            assert longest == 1400
        assert not any(_fragment(frame.data) for frame in wire.frames())


def _fragment(frame: bytes) -> bool:
    if frame[12:14] == b"\x08\x00":
        return bool(int.from_bytes(frame[20:22], "big") & 0x3FFF)  # more fragments, or an offset
    return frame[12:14] == b"\x86\xdd" and frame[20] == 44


def test_nothing_leaves_wireguard_unencrypted(pair: Pair) -> None:
    """Its device gone, the GRE packets go nowhere, rather than by the default route."""
    put_before(pair, "masquerade")
    declared = ends("wireguard", None, PUBLIC["b"])
    pair.connect(a=declared[0], b=declared[1])
    assert pair.pings()
    pair["gwa"].run("ip", "link", "set", "w-51820", "down")
    with Sniffer(pair["gwa"], "wan0") as wire:
        assert not pair.pings(tries=2)
        assert not [frame for frame in wire.frames() if frame.protocol == 47]
    pair.apply("a", pair.site("a", declared[0]))
    assert pair.pings(), "the control: repaired, it passes again"


@pytest.mark.long
def test_what_is_not_in_wireguard_is_not_let_in(pair: Pair) -> None:
    """GRE with the right inner addresses and key, beside WireGuard: from the next host."""
    put_before(pair, "masquerade")
    declared = ends("wireguard", None, PUBLIC["b"])
    pair.connect(a=declared[0], b=declared[1])
    assert pair.pings()
    inner = {side: wireguard_inner(PUBLIC_KEY[side]) for side in "ab"}
    pair["nata"].script(
        f"ip address add {inner['b']}/32 dev lo && ip route replace {inner['a']} via {INSIDE['a']}"
        f" && ip link add forged type gretap local {inner['b']} remote {inner['a']} key 42"
        " && ip link set forged up && ip address add 10.9.0.66/24 dev forged"
    )
    try:
        assert _taken(pair) == 0
        # The positive control: without that chain the tunnel takes the very same packets.
        pair["gwa"].run("nft", "flush", "chain", "inet", "dvn-site-a", "sealed-in")
        assert _taken(pair) > 0
    finally:
        pair["nata"].script(f"ip link delete forged; ip address delete {inner['b']}/32 dev lo")


def _taken(pair: Pair) -> int:
    """Packets that the tunnel of a takes while somebody beside WireGuard sends some."""
    counter = "/sys/class/net/t-cms-other/statistics/rx_packets"
    before = int(pair["gwa"].read(counter))
    pair["nata"].run("ping", "-c2", "-W1", "-i0.3", "10.9.0.10", check=False)
    return int(pair["gwa"].read(counter)) - before


def test_a_wireguard_peer_moves_and_is_followed(pair: Pair) -> None:
    """Its box forgets it and gives it another port: the tunnel goes on, and nothing is repaired."""
    put_before(pair, "masquerade")
    declared = ends("wireguard", BOX["a"], PUBLIC["b"])  # b is told a port that is not the one
    pair.connect(a=declared[0], b=declared[1])
    assert pair.pings()
    pair["nata"].run("nft", "flush", "table", "ip", "box")
    pair.box("a", "masquerade")
    assert pair.pings()
    assert pair.apply("b", pair.site("b", declared[1])).steps == ()


def test_a_preshared_key_rotates_without_loss(pair: Pair) -> None:
    """A session goes on till the next handshake, which both ends are ready for by then."""
    put_before(pair, "masquerade")
    declared = ends("wireguard", None, PUBLIC["b"])
    secret = "/etc/dvn/wireguard.psk"
    tunnels = {
        side: {**each, "psk_file": secret} for side, each in zip("ab", declared, strict=True)
    }

    def rotate(side: str, byte: bytes) -> tuple[str, ...]:
        pair[f"gw{side}"].write(secret, base64.b64encode(byte * 32) + b"\n", mode=0o600)
        return pair.apply(side, pair.site(side, tunnels[side])).steps

    for side in "ab":
        rotate(side, b"1")
    assert pair.pings()
    for side in "ab":
        (step,) = rotate(side, b"2")
        assert step.startswith("~ peer")
        assert pair.pings(tries=1)
    # The control: the new key is what counts in a new session.
    rotate("a", b"3")
    pair["gwa"].script("ip link set w-51820 down; ip link set w-51820 up")
    assert not pair.pings(tries=2)
    rotate("b", b"3")
    assert pair.pings(tries=20)


def test_transports_change_in_place_and_leave_nothing(pair: Pair) -> None:
    put_before(pair, "one_to_one")
    for transport in ("plain", "fou", "plain"):
        declared = ends(transport, PUBLIC["a"], PUBLIC["b"])
        pair.connect(a=declared[0], b=declared[1])
        assert pair.pings()
    assert "4754" not in pair["gwa"].run("ip", "fou", "show").stdout
    index = "/sys/class/net/t-cms-other/ifindex"
    before = pair["gwa"].read(index)
    declared = ends("fou", PUBLIC["a"], PUBLIC["b"])
    pair.connect(a=declared[0], b=declared[1])
    assert pair["gwa"].read(index) == before
    assert "4754" in pair["gwa"].run("ip", "fou", "show").stdout
    for side in "ab":
        pair.destroy(side)
    left = pair["gwa"].script("ip fou show; ip -o link; nft list tables").stdout
    assert "4754" not in left
    assert "w-51820" not in left
    assert "dvn" not in left


NO_UDP, NO_GRE = "meta l4proto udp drop", "meta l4proto gre drop"
# Before a, before b, what b's box lets through not, what is right.
SITUATIONS = [
    pytest.param("none", "none", "", "plain", id="no NAT"),
    pytest.param("one_to_one", "one_to_one", "", "plain", id="1-1 NAT"),
    pytest.param("masquerade", "one_to_one", "", "wireguard", id="masquerade here"),
    pytest.param("one_to_one", "masquerade", "", "wireguard", id="masquerade there"),
    pytest.param("masquerade", "masquerade", "", "wireguard", id="masquerade at both"),
    pytest.param("one_to_one", "one_to_one", NO_UDP, "plain", id="UDP blocked"),
    pytest.param("one_to_one", "one_to_one", NO_GRE, "fou", id="GRE blocked"),
]
WHERE: dict[Translation, Mapping[str, str]] = {
    "none": INSIDE,
    "one_to_one": PUBLIC,
    "masquerade": BOX,
}


@pytest.mark.long
@pytest.mark.parametrize(("before_a", "before_b", "block", "right"), SITUATIONS)
def test_auto_picks_what_the_path_lets_through(
    pair: Pair,
    before_a: Translation,
    before_b: Translation,
    block: str,
    right: str,
) -> None:
    """Both ends find out the same, choose alike, and what they chose carries traffic."""
    both = before_a == before_b == "masquerade"  # then each must keep the ports of the other
    pair.box("a", before_a, keeps_ports=both)
    pair.box("b", before_b, block, keeps_ports=both)
    declared = ends("wireguard", WHERE[before_a]["a"], WHERE[before_b]["b"])
    more = {"transport": "auto", "allow": ["plain", "fou", "wireguard"]}
    sites = [
        pair.site(side, {**tunnel, **more}) for side, tunnel in zip("ab", declared, strict=True)
    ]
    found = pair.probe(sites[0], sites[1])
    choices = {}
    for side, site in zip("ab", sites, strict=True):
        facts = found[side]
        assert facts is not None, f"{side} heard nobody"
        assert facts.mtu == 1400
        (tunnel,) = site.tunnels()
        choices[side] = choose(facts, may_become(tunnel))
        assert choices[side].transport == right, f"{side}: {facts}: {choices[side].why}"
    try:
        for side, site in zip("ab", sites, strict=True):
            chosen = Known(1400, choices[side].transport, choices[side].why)
            pair.know(side, {"cms/other": chosen})
            assert pair.apply(side, site).notes == ()
            # The costliest that may be, so that another choice does not change it.
            assert pair.mtu(side) == max(LEAST, inner_mtu(1400, "wireguard", 6))
        # Two hidden ends hear each other when both have sent, which a keepalive sees to in 25 s.
        assert pair.pings(tries=45)
    finally:
        for side in "ab":
            pair.know(side, {})
            # A live session goes on where it was heard, for the next case behind another box.
            pair.destroy(side)
