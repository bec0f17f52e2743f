"""A hypervisor's machine is in its tenant's network: no tunnel is made to it, its health is what a
ping says, and it is told to meet the gateway there."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from burst.join.userdata import JoinGateway, inner_mac, user_data
from burst.model import LeaseState
from dvn import located
from gateway import sitefile
from gateway.loops.network import has_link, has_tunnel, wanted_tunnels
from gateway.parts import machine_mtu
from tests.gateway.leases import T0, lease
from tests.gateway.test_sitefile import RIGHT

AT_HOME = replace(
    lease(), state=LeaseState.BOOTING, address="10.9.0.101", underlay="10.9.0.101", enrolled=T0
)


def test_it_needs_no_tunnel_and_is_watched_all_the_same() -> None:
    assert (has_link(AT_HOME), has_tunnel(AT_HOME)) == (True, False)
    assert wanted_tunnels([AT_HOME]) == ()
    abroad = replace(AT_HOME, underlay="192.0.2.7")
    assert (has_link(abroad), has_tunnel(abroad)) == (True, True)
    assert len(wanted_tunnels([AT_HOME, abroad])) == 1


@pytest.mark.parametrize("without", ["enrolled", "underlay"])
def test_before_it_has_come_nobody_pings_it(without: str) -> None:
    changes = {"enrolled": {"enrolled": None}, "underlay": {"underlay": ""}}[without]
    assert not has_link(replace(AT_HOME, **changes))  # type: ignore[arg-type]


def test_its_script_finds_the_interface_by_its_address_and_makes_no_tunnel() -> None:
    gateway = JoinGateway(
        address="10.9.0.1",
        enrol_url="https://10.9.0.1:8443",
        pin="sha256//" + "A" * 43 + "=",
        prefix_length=24,
        attached=True,
        watchdog=timedelta(minutes=5),
    )
    script = user_data(AT_HOME, gateway, "t" * 40)
    assert "ATTACHED=yes\n" in script
    assert f"MAC={inner_mac('10.9.0.101')}\n" in script
    assert "GATEWAY=10.9.0.1\n" in script
    assert "ATTACHED=''\n" in user_data(AT_HOME, replace(gateway, attached=False), "t" * 40)


def test_its_interface_sends_no_more_than_the_tunnels_of_its_network_carry() -> None:
    """An Ethernet frame that a tunnel cannot carry is dropped, and nobody is told."""
    file = sitefile.parse(located.loads(RIGHT), Path("right.yaml"))
    (tenant, network), *_ = [(tenant, name) for tenant, name, _ in file.site.networks()]
    mine = replace(AT_HOME, tenant=tenant, network=network)
    assert machine_mtu(file, mine) == 1458, "gretap with a key on a path of 1500"
    alone = replace(file, site=file.site.model_copy(update={"underlay": None}))
    assert machine_mtu(alone, mine) == 1500
