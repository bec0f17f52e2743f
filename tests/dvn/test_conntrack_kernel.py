"""Connections are cut by the kernel as they are described, and no others are."""

from __future__ import annotations

import socket
from collections import Counter

import pytest

from dvn.kernel import conntrack
from dvn.kernel import netlink as nl
from dvn.kernel.conntrack import Flows
from lab.host import Host
from lab.hosts import Lab

pytestmark = pytest.mark.kernel

EACH = 5
MARKS = (0, 1, 2, 3, 12)
RULES = """
add table inet marks
add chain inet marks out { type filter hook output priority -150; }
""" + "".join(f"add rule inet marks out udp dport {1000 + m} ct mark set {m}\n" for m in MARKS)


def cut(host: Host, *flows: Flows) -> tuple[int, dict[int, int]]:
    """Among some connections of each mark: the requests it took, and what is left."""
    host.run("ip", "link", "set", "lo", "up")
    host.run("nft", "-f", "-", input=RULES)

    def run() -> tuple[int, dict[int, int]]:
        for mark in MARKS:
            for _ in range(EACH):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.sendto(b"x", ("127.0.0.1", 1000 + mark))
        netfilter = nl.Socket(nl.NETLINK_NETFILTER)
        try:
            requests = conntrack.flush(netfilter, flows)
            left = Counter(one.mark for one in conntrack.dump(netfilter, (0, 0xFF)))
            return requests, dict(left)
        finally:
            netfilter.close()

    return host.inside(run)


@pytest.mark.parametrize(
    ("flows", "requests", "gone"),
    [
        ((), 0, ()),
        ((Flows(1),), 1, (1,)),
        ((Flows(1), Flows(1, protocol="tcp", port=80), Flows(3)), 2, (1, 3)),
        ((Flows(2, protocol="tcp", port=1002),), 0, ()),
        ((Flows(2, protocol="udp", port=1002),), EACH, (2,)),
        ((Flows(3), Flows(2, protocol="udp", port=1002)), 1 + EACH, (2, 3)),
        (tuple(map(Flows, range(1, 12))), 3 * EACH, (1, 2, 3)),  # many: the table is read
    ],
)
def test_what_is_cut(flows: tuple[Flows, ...], requests: int, gone: tuple[int, ...]) -> None:
    with Lab() as lab:
        assert cut(lab.host("control")) == (0, dict.fromkeys(MARKS, EACH))
        left = {mark: EACH for mark in MARKS if mark not in gone}
        assert cut(lab.host("one"), *flows) == (requests, left)
