"""The frame filters on the wire: what each case says, with filters, without them, and without one.

The network's ports are cables to one host, which sends through each and listens at one.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from dvn import addresses, located
from dvn.engine import Engine
from dvn.kernel.nft import Nft
from dvn.kernel.nftcommands import AddChain, AddRule, AddTable, FlushChain, NftCommand
from dvn.kernel.state import NftChain, NftRule, table_name
from dvn.spec import parse_site
from dvn.vlans import isolation
from lab.attacks.fence import Fence, dropped, one_cpu, receiver
from lab.hosts import Lab
from tests.dvn.frames import ARP, BROADCAST, VLAN, arp, eth, tagged, untagged
from tests.dvn.isolation_cases import FREE, FREE_MAC, NEIGHBOUR, SITE, Case, cases
from tests.dvn.wire import ETH_P_ALL

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

SWITCHES = Path("/proc/sys/net/bridge")
UNKNOWN = ("isolation", "unknown", "unknown_out")
STRAY_MAC = "02:00:00:00:00:05"
PORTS = ("pinned", "free", "watch", "lan0", "stray")
HOPS = 3  # to the gateway, to the port that listens, and one more
TABLE = ("bridge", table_name("cnaf"))
GATEWAY_MAC = addresses.mac_address("cnaf", "gw", "cms", "farm")
GATEWAY_LOCAL = addresses.link_local(GATEWAY_MAC).split("/")[0]
# Somebody else's table: the mark that our rules use meanwhile is not to be seen after them.
_THEIRS = ("bridge", "witness")
WITNESS = (
    AddTable(_THEIRS),
    AddChain(_THEIRS, NftChain("forward", (), "filter", "forward", 100, "accept")),
    AddRule(_THEIRS, "forward", NftRule.of("meta mark != 0 drop", "a mark")),
)
CASES = cases(GATEWAY_MAC, GATEWAY_LOCAL)


class Wires:
    """A gateway with ports, and the other end of each."""

    def __init__(self, lab: Lab) -> None:
        self.gateway, self.far = lab.host("gw"), lab.host("far")
        for name in (*PORTS, "fence"):
            lab.link(self.gateway, name, self.far, name)
        self.engine = Engine()
        self.site = parse_site(located.loads(SITE))
        self._nft: Nft | None = None
        self.sockets = {name: self.far.inside(partial(_open, name)) for name in PORTS}
        self.br_netfilter(False)
        self.apply()
        self.nft(*WITNESS)
        self.bridge = self.gateway.inside(lambda: _open("b-cms-farm"))
        fence = self.far.inside(lambda: _open("fence"))
        self.fence = Fence(fence, self.gateway.inside(lambda: receiver("fence")), HOPS)

    def apply(self) -> None:
        self.gateway.inside(lambda: self.engine.apply(self.site))

    def plan(self) -> tuple[str, ...]:
        return self.gateway.inside(lambda: self.engine.plan(self.site)).lines()

    def br_netfilter(self, on: bool) -> bool:
        """Whether bridged frames pass the inet tables as well; False where it cannot be."""

        def write() -> bool:
            there = [SWITCHES / f"bridge-nf-call-{name}" for name in ("iptables", "ip6tables")]
            for each in there:
                if each.exists():
                    each.write_text(str(int(on)))
            return there[0].exists()

        return self.gateway.inside(write)

    def nft(self, *commands: NftCommand) -> None:
        def run() -> None:
            self._nft = self._nft or Nft()
            self._nft.run(commands)

        self.gateway.inside(run)

    def send(self, port: str, frame: bytes) -> None:
        if port == "uplink":
            port, frame = "lan0", tagged(frame, (VLAN, 101))
        self.sockets[port].send(frame)

    def arrived(self, some: tuple[Case, ...]) -> set[str]:
        """The names of those that came to the port that listens, or to the gateway's own stack."""
        for listener in (self.sockets["watch"], self.bridge):
            _drain(listener)
        with one_cpu():
            lost = dropped()
            # The bridge copies each to every port, and a processor has room for 1,000.
            parts = [some[start : start + 50] for start in range(0, len(some), 50)]
            names = {name for part in parts for name in self._arrived(part)}
            assert dropped() == lost, "the kernel had no room for a frame"
        return names

    def _arrived(self, some: tuple[Case, ...]) -> Iterator[str]:
        for case in some:
            self.send(case.port, case.frame)
        self.fence.wait()
        seen = _drain(self.sockets["watch"]) + _drain(self.bridge)
        for case in some:
            if any(each.startswith(untagged(case.frame)) for each in seen):
                yield case.name


def _open(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.bind((interface, ETH_P_ALL))
    sock.setblocking(False)
    return sock


def _drain(sock: socket.socket) -> list[bytes]:
    """What is there, from the ethertype on."""
    seen: list[bytes] = []
    while True:
        try:
            data, address = sock.recvfrom(4096)
        except BlockingIOError:
            return seen
        if address[2] != socket.PACKET_OUTGOING:
            seen.append(untagged(data))


@pytest.fixture(scope="module")
def wires() -> Iterator[Wires]:
    with Lab() as lab:
        yield Wires(lab)


@pytest.fixture(scope="module")
def outcome(wires: Wires) -> set[str]:
    return wires.arrived(CASES)


def expected(some: tuple[Case, ...] = CASES) -> set[str]:
    return {case.name for case in some if case.arrives}


@pytest.mark.parametrize("port", ["pinned", "free", "uplink"])
def test_what_passes_and_what_does_not(port: str, outcome: set[str]) -> None:
    some = [case for case in CASES if case.port == port]
    assert len(some) > 100
    wrong = [case.name for case in some if (case.name in outcome) != case.arrives]
    assert wrong == []


def test_without_the_filters_all_of_it_passes(wires: Wires) -> None:
    """The control: every frame is one that the bridge itself would carry."""
    wires.nft(FlushChain(TABLE, "isolation", "the control"))
    assert {case.name for case in CASES} == wires.arrived(CASES)
    wires.apply()
    assert wires.arrived(CASES) == expected()


def test_br_netfilter_makes_no_difference(wires: Wires) -> None:
    """Fragments pass one by one, too: the frames are nobody's connection. Only what is shorter than
    its IP header says is dropped by IP's own opinion."""
    whole = tuple(case for case in CASES if case.whole)
    wires.gateway.run("modprobe", "br_netfilter", check=False)
    assert wires.br_netfilter(True)
    try:
        assert wires.arrived(whole) == expected(whole)
        frame = next(chain for chain in isolation.CHAINS if chain.name == "frame")
        with without(wires, frame, frame.rules.index(isolation.ONLY_BRIDGED)):
            lost = expected(whole) - wires.arrived(whole)
        assert lost
        assert [name for name in lost if "fragment" not in name] == []
    finally:
        wires.br_netfilter(False)
    assert wires.arrived(whole) == expected(whole)


@pytest.mark.parametrize("chain", isolation.CHAINS, ids=lambda chain: chain.name)
def test_every_rule_is_needed(wires: Wires, chain: NftChain) -> None:
    """Without it some case goes wrong: so the cases can fail, and no rule is there for nothing."""
    idle = []
    for index, rule in enumerate(chain.rules):
        if rule in (*isolation.SHORT_CUTS, isolation.ONLY_BRIDGED):
            continue
        with without(wires, chain, index):
            if wires.arrived(CASES) == expected():
                idle.append(rule)
    assert idle == []


@contextmanager
def without(wires: Wires, chain: NftChain, index: int) -> Iterator[None]:
    """A chain without one of its rules."""

    def put(rules: tuple[NftRule, ...]) -> None:
        flush = FlushChain(TABLE, chain.name, "one rule less")
        wires.nft(flush, *(AddRule(TABLE, chain.name, rule) for rule in rules))

    put((*chain.rules[:index], *chain.rules[index + 1 :]))
    try:
        yield
    finally:
        put(chain.rules)


def test_an_interface_nobody_declared_gets_nothing(wires: Wires) -> None:
    """Somebody puts it into the bridge by hand; until the drift is repaired it is shut off."""
    wires.gateway.run("ip", "link", "set", "stray", "master", "b-cms-farm")
    try:
        for closed in (True, False):
            hello = eth(STRAY_MAC, arp(closed, STRAY_MAC, NEIGHBOUR, FREE), ARP, BROADCAST)
            case = Case("from the stray", "stray", hello, not closed)
            _drain(wires.sockets["stray"])
            assert bool(wires.arrived((case,))) != closed
            to_it = [
                eth(mac, arp(number + closed, mac, FREE, NEIGHBOUR), ARP, BROADCAST)
                for number, mac in ((2, FREE_MAC), (4, GATEWAY_MAC))
            ]
            with one_cpu():
                wires.send("free", to_it[0])
                wires.bridge.send(to_it[1])
                wires.fence.wait()
            heard = _drain(wires.sockets["stray"])
            for frame in to_it:
                assert any(each.startswith(untagged(frame)) for each in heard) != closed
            if closed:  # and now the control
                wires.nft(*(FlushChain(TABLE, name, "the control") for name in UNKNOWN))
        assert any("stray" in line for line in wires.plan())
    finally:
        wires.apply()
    assert wires.plan() == ()
