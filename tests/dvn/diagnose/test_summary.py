"""The tables of `dvn show`: each thing in its row, drops by their reason."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from dvn.diagnose.summary import (
    NETWORK_COLUMNS,
    PORT_COLUMNS,
    TUNNEL_COLUMNS,
    drop_rows,
    network_rows,
    port_rows,
    size_of,
    tunnel_rows,
)
from dvn.diagnose.topology import Seen, State, topology
from dvn.engine import Engine
from dvn.kernel.driver import RuleCounter
from dvn.kernel.fake import FakeKernel
from dvn.kernel.state import NftTable
from dvn.status import Passed
from tests.dvn.sites import full_site

SEEN = {
    "b-cms-farm": Seen(State.UP),
    "v-cms-farm": Seen(State.UP),
    "t-cms-bari": Seen(State.UP, "3 received"),
    "t-cms-pisa": Seen(State.DEGRADED, "nothing received yet"),
}
PASSED = {
    "b-cms-farm": Passed(10, 1200, 20, 2_500_000),
    "v-cms-farm": Passed(7, 70, 0, 0),
    "t-cms-bari": Passed(3, 300, 4, 400),
}


def test_each_network_port_and_tunnel_has_its_row() -> None:
    site = topology(full_site(), SEEN, tenants=["cms"])
    assert [*network_rows(site, PASSED)] == [
        ["cms/farm", "b-cms-farm", "up", "10.9.0.0/24 fd00:9::/64", "open", "198.51.100.10",
         "10 (1.2 kB)", "20 (2.5 MB)"],
    ]  # fmt: skip
    assert [*port_rows(site, PASSED)] == [
        ["cms/farm", "lan0", "up", "VLAN 101", "7 (70 B)", "0"],
        ["cms/farm", "tap3", "down: not there", "10.9.0.3", "0", "0"],
    ]
    tunnels = [*tunnel_rows(site, PASSED)]
    assert tunnels[0] == [
        "cms/farm", "bari", "up", "plain, key 42", "203.0.113.7", "3 (300 B)", "4 (400 B)",
    ]  # fmt: skip
    assert tunnels[1][2] == "degraded: nothing received yet"
    assert (len(NETWORK_COLUMNS), len(PORT_COLUMNS), len(TUNNEL_COLUMNS)) == (8, 6, 7)


class _Busy(FakeKernel):
    def dropped(self, tables: Iterable[NftTable]) -> tuple[RuleCounter, ...]:
        return (
            RuleCounter("inet dvn-x", "spoof", "its own address only [0123456789]", 3, 252),
            RuleCounter("inet dvn-x", "spoof", "nobody else's [0123456789]", 0, 0),
            RuleCounter("inet dvn-x", "gateway", "closed by default [0123456789]", 9, 1000),
        )


def test_drops_are_told_by_their_reason_the_busiest_first() -> None:
    assert [*drop_rows(Engine(_Busy()).dropped(()))] == [
        ["9", "1.0 kB", "inet dvn-x gateway", "closed by default"],
        ["3", "252 B", "inet dvn-x spoof", "its own address only"],
    ]


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (10**9, "1.0 GB"), (5 * 10**16, "50000.0 TB")],
)
def test_sizes(size: int, words: str) -> None:
    assert size_of(size) == words
