"""Changes that the kernel takes in place: a TCP connection runs through them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from dvn import located
from dvn.spec import Site, parse_site
from lab.host import wait_for
from lab.hosts import Lab
from tests.dvn.place import OUTSIDE, SITE, Place

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

PORT = 5005
MORE = 256 << 10  # bytes that must pass after a change


class Stream:
    """One TCP connection that carries bytes until it is stopped, and never another."""

    def __init__(self, place: Place, source: str, server: str, address: str, port: int) -> None:
        self.received = 0
        self.broken = ""
        self._stopping = False
        with place[server].listen("0.0.0.0", port) as listener:
            listener.settimeout(20)
            self._out = place[source].connect(address, port, timeout=20)
            self._in, self.peer = listener.accept()
        for sock in (self._out, self._in):
            sock.settimeout(60)
        self._threads = [
            threading.Thread(target=run, daemon=True) for run in (self._send, self._receive)
        ]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        try:
            while not self._stopping:
                self._out.sendall(bytes(16 << 10))
        except OSError as error:
            self.broken = self.broken or f"sending: {error}"

    def _receive(self) -> None:
        try:
            while not self._stopping:
                got = len(self._in.recv(1 << 16))
                if not got:
                    raise ConnectionError("the connection ended")
                self.received += got
        except OSError as error:
            self.broken = self.broken or f"receiving: {error}"

    def goes_on(self) -> None:
        """That more arrives, on the same connection."""
        start = self.received
        wait_for(lambda: self.received > start + MORE or self.broken, 60, what="more of the stream")
        assert self.broken == ""

    def stop(self) -> None:
        self._stopping = True
        for sock in (self._out, self._in):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(10)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Lab() as lab:
        made = Place(lab)
        made["cloud"].script("ip address add 203.0.113.8/24 dev eth0")
        made.apply()
        yield made


def site(*changes: tuple[str, str]) -> Site:
    text = SITE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parse_site(located.loads(text))


DEVICES = "for i in t-cms-bari b-cms-farm v-cms-farm; do cat /sys/class/net/$i/ifindex; done"
CLOUD = (
    "ip link set dvn0 type gretap local {local} remote 198.51.100.1 key {key} "
    "ttl 64 nopmtudisc ignore-df"
)

REMOTE = ("remote: 203.0.113.7, key: 42", "remote: 203.0.113.8, key: 42")
KEY = ("remote: 203.0.113.7, key: 42", "remote: 203.0.113.7, key: 77")
FILTER = ("services: [tcp/22]", "services: [tcp/22, udp/53]")
RATE = ("services: [tcp/22]", "services: [tcp/22]\n        rate: 200mbit")
OTHERS_NAT = ("nat: {snat: 198.51.100.11}", "nat: {snat: 198.51.100.13}")
OWN_NAT = ("nat: {snat: 198.51.100.10}", "nat: {snat: 198.51.100.12}")


def test_a_connection_through_a_tunnel_runs_on(place: Place) -> None:
    """Filter, rate, NAT, then the tunnel's key and its remote end, each with the other end's."""
    place.apply()
    devices = place.gw(DEVICES)
    stream = Stream(place, "head", "cloud", "10.9.0.101", PORT)
    try:
        stream.goes_on()
        for change in (FILTER, RATE, OTHERS_NAT, OWN_NAT):
            assert place.apply(site(change)).steps, change
            stream.goes_on()
        for change, local, key in ((KEY, "203.0.113.7", 77), (REMOTE, "203.0.113.8", 42)):
            steps = place.apply(site(change)).steps
            assert not any(step.startswith(("- link", "+ link")) for step in steps)
            place["cloud"].script(CLOUD.format(local=local, key=key))
            stream.goes_on()
        assert place.gw(DEVICES) == devices
    finally:
        stream.stop()
        place["cloud"].script(CLOUD.format(local="203.0.113.7", key=42))
        place.apply()


def test_a_connection_through_nat_runs_on_when_others_change(place: Place) -> None:
    place.apply()
    stream = Stream(place, "head", "internet", OUTSIDE, PORT)
    try:
        assert stream.peer[0] == "198.51.100.10"
        stream.goes_on()
        for change in (OTHERS_NAT, FILTER, RATE):
            place.apply(site(change))
            stream.goes_on()
    finally:
        stream.stop()
        place.apply()
