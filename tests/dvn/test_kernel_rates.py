"""Caps on a real kernel: what passes, both ways, and what is left alone."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from dvn import located
from dvn.engine import ApplyError, Engine
from dvn.problems import SpecError
from dvn.spec import Site, parse_site
from lab.host import Host
from lab.hosts import Lab
from lab.net import build
from lab.topology import Link, Machine, Topology

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

CAP = 20e6  # bit/s
FRAMING = 1514 / 1448  # a full frame, and the TCP data in it
SITE = """
site: cnaf
tenants:
  cms:
    networks:
      farm: {{prefix: 10.9.0.0/24, access: open, {rate} ports: [{{interface: tap1, {port}}}]}}
      free: {{prefix: 10.8.0.0/24, access: open, ports: [{{interface: tap2}}]}}
"""


def site(rate: str = "", port: str = "") -> Site:
    text = SITE.format(rate=f"rate: {rate}," if rate else "", port=f"rate: {port}" if port else "")
    return parse_site(located.loads(text))


class Place:
    """capped ── tap1 gw tap2 ── free, and `site` behind the gateway."""

    def __init__(self, lab: Lab) -> None:
        nodes = [
            Machine(name, {"eth0": f"{net}.10/24"}, {"default": f"{net}.1"})
            for name, net in (("capped", "10.9.0"), ("free", "10.8.0"), ("site", "10.7.0"))
        ]
        links = [Link(f"gw:{end}", f"{name}:eth0") for name, end in zip(
            ("capped", "free", "site"), ("tap1", "tap2", "lan0"), strict=True
        )]  # fmt: skip
        gw = Machine("gw", {"lan0": "10.7.0.1/24"}, forward=True)
        self.hosts = build(lab, Topology(nodes=(gw, *nodes), links=tuple(links)))
        self.engine = Engine()

    def apply(self, wanted: Site) -> tuple[str, ...]:
        return self.hosts["gw"].inside(lambda: self.engine.apply(wanted)).steps

    def gw(self, script: str) -> str:
        return self.hosts["gw"].script(script).stdout

    def rate(self, source: str, target: str, seconds: float = 1.0) -> float:
        """Bits a second on the wire of TCP from one to the other, once it has settled."""
        address = {"capped": "10.9.0.10", "free": "10.8.0.10", "site": "10.7.0.10"}[target]
        return throughput(self.hosts[source], self.hosts[target], address, seconds) * FRAMING

    def cap(self, source: str, target: str) -> float:
        """The better of two: a machine that is busy otherwise sends less, and never more."""
        return max(self.rate(source, target) for _ in range(2))


def throughput(source: Host, target: Host, address: str, seconds: float) -> float:
    with target.listen("0.0.0.0", 5001) as listener:
        listener.settimeout(10)
        with source.connect(address, 5001, timeout=10) as client:
            server, _peer = listener.accept()
            sender = threading.Thread(target=_send, args=(client,), daemon=True)
            sender.start()
            with server:
                server.settimeout(10)
                _receive(server, 0.3)
                start = time.monotonic()
                got = _receive(server, seconds)
                took = time.monotonic() - start
            sender.join(10)
    return got * 8 / took


def _send(client: socket.socket) -> None:
    with suppress(OSError):
        while True:
            client.sendall(bytes(1 << 16))


def _receive(server: socket.socket, seconds: float) -> int:
    got, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        got += len(server.recv(1 << 16))
    return got


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Lab() as lab:
        yield Place(lab)


@pytest.mark.parametrize("where", ["network", pytest.param("port", marks=pytest.mark.long)])
def test_a_cap_holds_both_ways_and_only_there(place: Place, where: str) -> None:
    capped = site(rate="20mbit") if where == "network" else site(port="20mbit")
    place.apply(capped)
    assert place.cap("site", "capped") == pytest.approx(CAP, rel=0.2)
    assert place.cap("capped", "site") == pytest.approx(CAP, rel=0.2)
    # The control: beside it, the same path without a cap carries more.
    assert place.rate("site", "free", 0.3) > 2 * CAP
    assert place.rate("free", "site", 0.3) > 2 * CAP
    assert place.apply(capped) == ()


def test_changed_in_place_and_taken_away(place: Place) -> None:
    """Each way by itself; what is changed is the queue that is there."""
    place.apply(site(rate="20mbit", port="20mbit"))
    steps = place.apply(site(rate="{in: 8mbit}", port="20mbit"))
    assert "~ rate of b-cms-farm: 20mbit => of b-cms-farm: 8mbit" in steps
    assert "- link r-cms-farm: ifb" in steps
    assert "fq_codel" in place.gw("tc qdisc show dev b-cms-farm")
    assert place.cap("site", "capped") == pytest.approx(8e6, rel=0.2)
    place.apply(site())
    for device in ("tap1", "b-cms-farm"):
        assert "tbf" not in place.gw(f"tc qdisc show dev {device}")
        assert "clsact" not in place.gw(f"tc qdisc show dev {device}")
    assert "ifb" not in place.gw("ip -d link show type ifb")
    assert place.rate("site", "capped", 0.5) > 2 * CAP


@pytest.mark.long
def test_what_somebody_removed_comes_back(place: Place) -> None:
    wanted = site(rate="20mbit", port="20mbit")
    place.apply(wanted)
    for damage in (
        "tc qdisc delete dev tap1 root; tc qdisc delete dev b-cms-farm clsact",
        "tc filter delete block $(tc qdisc show dev tap1 | sed -n 's/.*ingress_block //p')",
        "ip link delete q-tap1",
        (
            "tc qdisc replace dev tap1 parent $(tc qdisc show dev tap1 | "
            "sed -n 's/.*tbf \\([0-9a-f]*:\\).*/\\1/p')1 pfifo"
        ),
        "tc qdisc change dev tap1 root tbf rate 1mbit burst 20k limit 100k",
    ):
        place.gw(damage)
        assert place.apply(wanted), damage
        assert place.apply(wanted) == (), damage
    with_nobody = Engine()  # a restart with an empty memory
    assert place.hosts["gw"].inside(lambda: with_nobody.plan(wanted)).steps == ()


def test_others_queues_are_not_touched(place: Place) -> None:
    place.apply(site())
    place.gw("tc qdisc add dev tap1 root handle 1: htb")
    place.engine = Engine()  # one that has not looked yet
    try:
        with pytest.raises(SpecError, match="interface tap1 has a queueing discipline already"):
            place.apply(site(port="20mbit"))
        assert "htb 1:" in place.gw("tc qdisc show dev tap1")
        place.gw(
            "tc qdisc delete dev tap1 root; tc qdisc add dev tap1 root handle 1: fq_codel;"
            "tc qdisc add dev tap1 clsact"
        )
        for rate in ("{in: 20mbit}", "{out: 20mbit}"):
            with pytest.raises(ApplyError, match="shows what stands there") as caught:
                place.apply(site(port=rate))
            assert caught.value.undone
        queues = place.gw("tc qdisc show dev tap1")
        assert "fq_codel 1:" in queues
        assert "clsact" in queues
    finally:
        place.gw("tc qdisc delete dev tap1 root; tc qdisc delete dev tap1 clsact")


def test_nothing_is_left_behind(place: Place) -> None:
    place.apply(site(rate="20mbit", port="20mbit"))
    place.hosts["gw"].inside(lambda: place.engine.destroy("cnaf"))
    assert "tbf" not in place.gw("tc qdisc show")
    assert "clsact" not in place.gw("tc qdisc show")
    assert place.gw("ip link show type ifb") == ""
