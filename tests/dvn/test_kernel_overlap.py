"""Two tenants with the same prefix, the same addresses and one public address, on a real kernel."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from lab.hosts import Lab
from tests.dvn import twins
from tests.dvn.twins import INSIDE, OTHER, OUTSIDE, OWN, SHARED, STORE, Twins, passes

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

NAMES = ("red", "blue")
SOON_S = 4.0
GRE = b"\0\0\x88\xb5"  # RFC 2784: no options; an ethertype for experiments (RFC 9542)


@pytest.fixture(scope="module")
def place() -> Iterator[Twins]:
    with Lab() as lab:
        yield Twins(lab)


@pytest.fixture
def applied(place: Twins) -> Twins:
    place.apply()
    return place


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


def connected(
    place: Twins, stack: ExitStack, name: str, listener: socket.socket, to: tuple[str, int],
    source: tuple[str, int] = (INSIDE, 0),
) -> tuple[socket.socket, socket.socket, tuple[str, int]]:  # fmt: skip
    """(client, server's end, who the server sees)."""
    client = stack.enter_context(place.tcp(name, to, source))
    listener.settimeout(twins.LONG_S)
    served, peer = listener.accept()
    stack.enter_context(served)
    return client, served, peer


def test_both_reach_the_internet_at_once(applied: Twins, stack: ExitStack) -> None:
    """From the same address and port each; every answer finds the one it is for."""
    listener = stack.enter_context(applied["internet"].listen(OUTSIDE, 5001))
    ends = {
        name: connected(applied, stack, name, listener, (OUTSIDE, 5001), (INSIDE, 40000))
        for name in NAMES
    }
    assert {peer[0] for _client, _served, peer in ends.values()} == {SHARED}
    assert len({peer for _client, _served, peer in ends.values()}) == 2
    for name, (client, served, _peer) in ends.items():
        assert passes(client, served, name.encode())
        assert passes(served, client, name.encode())

    server = stack.enter_context(applied.datagrams("internet", OUTSIDE, 5002))
    clients = {n: stack.enter_context(applied.datagrams(n, INSIDE, 40000)) for n in NAMES}
    for name, client in clients.items():
        client.sendto(name.encode(), (OUTSIDE, 5002))
    for _ in NAMES:
        asked, peer = server.recvfrom(100)
        server.sendto(b"for " + asked, peer)
    for name, client in clients.items():
        assert client.recv(100) == b"for " + name.encode()

    pings = {n: stack.enter_context(applied.raw(n, socket.IPPROTO_ICMP, INSIDE)) for n in NAMES}
    for name, ping in pings.items():
        ping.sendto(twins.echo_request(7, name.ljust(4).encode()), (OUTSIDE, 0))
    for name, ping in pings.items():
        assert ping.recv(200)[28:] == name.ljust(4).encode()


def test_forwarded_ports_lead_to_the_right_one(applied: Twins, stack: ExitStack) -> None:
    """One client port to both, and both are the same address and port inside."""
    for number, name in enumerate(NAMES, start=1):
        listener = stack.enter_context(applied[name].listen(INSIDE, 80))
        to, source = (SHARED, 8080 + number), (OUTSIDE, 45000)
        client, served, peer = connected(applied, stack, "internet", listener, to, source)
        assert peer[0] == OUTSIDE
        assert passes(client, served)
        assert passes(served, client)
    client = stack.enter_context(applied.datagrams("internet", OUTSIDE, 5353))
    for number, name in enumerate(NAMES, start=1):
        inner = stack.enter_context(applied.datagrams(name, INSIDE, 53))
        # What the machine starts by itself from that port leaves by the forwarded one ...
        inner.sendto(name.encode(), (OUTSIDE, 5353))
        asked, peer = client.recvfrom(100)
        assert (asked, peer) == (name.encode(), (SHARED, 5300 + number))
        # ... and what comes there reaches it.
        client.sendto(b"for " + asked, peer)
        assert inner.recv(100) == b"for " + asked


def test_a_closed_network_is_closed_to_the_site_by_a_forward_too(
    applied: Twins, stack: ExitStack
) -> None:
    listener = stack.enter_context(applied["red"].listen(INSIDE, 80))
    with pytest.raises(OSError, match="timed out"):
        applied.tcp("office", (SHARED, 8081), ("192.168.77.2", 0))
    with pytest.raises(OSError, match="timed out"):
        applied.tcp("red", ("192.168.77.2", 22), (INSIDE, 0))
    # The controls: from the internet it is open, and the site does answer.
    connected(applied, stack, "internet", listener, (SHARED, 8081), (OUTSIDE, 0))
    with pytest.raises(ConnectionRefusedError):
        applied.tcp("gw", ("192.168.77.2", 22), ("192.168.77.1", 0))


def test_own_addresses_outside_carry_what_has_no_ports(place: Twins, stack: ExitStack) -> None:
    content = twins.site()
    for name, outside in OWN.items():
        content["tenants"][name]["networks"]["farm"]["nat"] = {"one_to_one": {INSIDE: outside}}
    place.apply(content)
    far = stack.enter_context(place.raw("internet", socket.IPPROTO_GRE, OUTSIDE))
    near = {n: stack.enter_context(place.raw(n, socket.IPPROTO_GRE, INSIDE)) for n in NAMES}
    for name, sock in near.items():
        # The kernel translates no GRE packet that is shorter than 8 bytes (nf_nat_proto.c).
        sock.sendto(GRE + b"from " + name.encode(), (OUTSIDE, 0))
        data, (source, _) = far.recvfrom(200)
        assert (data[24:], source) == (b"from " + name.encode(), OWN[name])
    for name in NAMES:
        far.sendto(GRE + b"to " + name.encode(), (OWN[name], 0))
    for name, sock in near.items():
        assert sock.recv(200)[24:] == b"to " + name.encode()


def test_a_policy_lets_through_what_it_names_and_nothing_else(
    applied: Twins, stack: ExitStack
) -> None:
    listener = stack.enter_context(applied["store"].listen(STORE, 5001))
    _client, _served, peer = connected(applied, stack, "red", listener, (STORE, 5001))
    assert peer[0] == INSIDE, "nothing is translated between networks"
    stack.enter_context(applied["store"].listen(STORE, 5002))
    back = stack.enter_context(applied["red"].listen(INSIDE, 5001))
    for name, to, source in (
        ("red", (STORE, 5002), INSIDE),
        ("blue", (STORE, 5001), INSIDE),
        ("store", (INSIDE, 5001), STORE),
    ):
        with pytest.raises(OSError, match=r"timed out|unreachable"):
            applied.tcp(name, to, (source, 0))
    # The control: with a policy for everything, and one for the other way, they pass.
    content = twins.site()
    content["tenants"]["red"]["policy"] = [
        {"from": "farm", "to": "store"},
        {"from": "store", "to": "farm"},
    ]
    applied.apply(content)
    applied.tcp("red", (STORE, 5002), (INSIDE, 0)).close()
    connected(applied, stack, "store", back, (INSIDE, 5001), (STORE, 0))


def test_what_is_revoked_is_cut_and_nothing_else(applied: Twins, stack: ExitStack) -> None:
    """Policy, forward and outside address of red change under running connections."""
    outer = stack.enter_context(applied["internet"].listen(OUTSIDE, 5001))
    store = stack.enter_context(applied["store"].listen(STORE, 5001))
    inner = {name: stack.enter_context(applied[name].listen(INSIDE, 80)) for name in NAMES}
    flows = {
        "policy": connected(applied, stack, "red", store, (STORE, 5001)),
        "red out": connected(applied, stack, "red", outer, (OUTSIDE, 5001)),
        "blue out": connected(applied, stack, "blue", outer, (OUTSIDE, 5001)),
        "red in": connected(applied, stack, "internet", inner["red"], (SHARED, 8081), (OUTSIDE, 0)),
        "blue in": connected(
            applied, stack, "internet", inner["blue"], (SHARED, 8082), (OUTSIDE, 0)
        ),
    }

    there = set(flows)

    def cut(change: dict[str, object]) -> set[str]:
        """What no longer passes, soon; all else does, both ways."""
        content["tenants"]["red"] |= change
        steps = applied.apply(content).steps
        assert any("connections of" in step for step in steps)
        gone = {name for name in there if not passes(*flows[name][:2], wait=SOON_S)}
        there.difference_update(gone)
        for client, served, _peer in (flows[name] for name in there):
            assert passes(served, client)
        return gone

    content = twins.site()
    farm = content["tenants"]["red"]["networks"]["farm"]
    assert all(passes(client, served) for client, served, _peer in flows.values())
    assert cut({"policy": []}) == {"policy"}
    del farm["nat"]["forward"][0]
    assert cut({}) == {"red in"}
    farm["nat"]["snat"] = [OTHER]
    assert cut({}) == {"red out"}
    assert there == {"blue out", "blue in"}
    *_ends, peer = connected(applied, stack, "red", outer, (OUTSIDE, 5001))
    assert peer[0] == OTHER


def test_a_table_put_back_from_nfts_own_listing_is_as_it_was(applied: Twins) -> None:
    """What an undo does. The engine compares rules with how they looked when it wrote them."""
    applied.gw(
        "nft -s list table inet dvn-cnaf > /tmp/table; nft delete table inet dvn-cnaf;"
        "nft -f /tmp/table"
    )
    assert applied.plan() == ()
    # The control: a rule that is another one is seen.
    applied.gw("nft insert rule inet dvn-cnaf marking accept")
    assert applied.plan() != ()


def test_the_table_of_one_is_not_that_of_another(applied: Twins) -> None:
    """Addresses in, addresses out: the routers know their own networks only."""
    numbers = {"red/farm": 2, "red/store": 3, "blue/farm": 1}
    for name, number in numbers.items():
        tenant, _, network = name.partition("/")
        routes = applied.gw(f"ip route show table {1_000_000 + number}")
        assert f"dev b-{tenant}-{network}" in routes
    assert "10.7.0.0/24" not in applied.gw("ip route show table main")
    blackhole = applied.gw("ip route get 10.7.0.10 mark 0x64760009 from 192.0.2.1 iif wan0 || true")
    assert "dev" not in blackhole, "a mark that is nobody's leads nowhere"
