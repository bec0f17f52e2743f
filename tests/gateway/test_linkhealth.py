"""The daemon's word on a lease's tunnel becomes the device's state in a picture."""

from __future__ import annotations

from typing import Any

from dvn import addresses
from dvn.diagnose.topology import Seen, State
from gateway.linkhealth import measured
from gateway.loops import network
from tests.gateway.leases import lease


def test_what_was_measured_is_told_by_device() -> None:
    link = {"state": "degraded", "rtt_ms": 12.34, "loss": 0.25, "detail": ""}
    rows: list[dict[str, Any]] = [
        {"id": "1a2b3c4d", "tenant": "cms", "link": link},
        {"id": "5e6f", "tenant": "cms", "link": None},
    ]
    assert measured(rows) == {"t-cms-l1a2b3c4d": Seen(State.DEGRADED, "12.3 ms, 25% lost")}


def test_the_name_is_the_one_the_daemon_gives() -> None:
    one = lease()
    device = addresses.tunnel_name(one.tenant, network.tunnel_name(one))
    row = {"id": one.id, "tenant": one.tenant}
    link = {"state": "up", "rtt_ms": None, "loss": 0.0, "detail": ""}
    assert [*measured([{**row, "link": link}])] == [device]
