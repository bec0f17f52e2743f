"""The picture of a site: everything is in it once, well-formed, and health is told."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET

import pytest

from dvn import located
from dvn.diagnose.drawing import COLOURS, svg
from dvn.diagnose.graphtext import dot, mermaid
from dvn.diagnose.health import seen_devices, with_leased
from dvn.diagnose.scene import Device, Scene
from dvn.diagnose.topology import Seen, State, topology
from dvn.spec import parse_site
from dvn.status import TunnelStatus
from tests.dvn.sites import full_site

WORDS = ("cms", "atlas", "farm", "store", "10.9.0.0/24", "tap3", "VLAN 101", "bari", "203.0.113.8")


def texts(picture: str) -> str:
    root = ET.fromstring(picture)
    return " | ".join(element.text or "" for element in root.iter())


def test_every_tenant_network_port_and_tunnel_is_in_the_picture() -> None:
    found = topology(full_site())
    for words in WORDS:
        for text in (texts(svg(found)), mermaid(found), dot(found)):
            assert words in text, words
    assert COLOURS[State.UP] not in svg(found)  # nobody has looked


def test_health_is_told_by_colour_and_word() -> None:
    seen = {
        "b-cms-farm": Seen(State.UP),
        "t-cms-bari": Seen(State.UP, "12 ms"),
        "t-cms-pisa": Seen(State.DEGRADED, "nothing received yet"),
    }
    found = topology(full_site(), seen, tenants=["cms"])
    picture = svg(found)
    assert "degraded: nothing received yet" in texts(picture)
    assert "tap3: down: not there" in texts(picture)
    assert all(COLOURS[state] in picture for state in (State.UP, State.DEGRADED, State.DOWN))
    assert "atlas" not in picture
    assert ":::degraded" in mermaid(found)


def test_names_that_are_markup_do_no_harm() -> None:
    site = parse_site(located.loads("site: x\ntenants: {}\n"))
    assert "no tenants" in texts(svg(topology(site)))
    text = """
site: x
tenants:
  t: {networks: {n: {prefix: 10.1.0.0/24, ports: [{interface: 'a<&b'}]}}}
"""
    found = topology(parse_site(located.loads(text)))
    assert "a<&b" in texts(svg(found))
    assert "<&" not in mermaid(found).replace("<br/>", "")


def status(name: str, tunnel: str, received: int) -> TunnelStatus:
    return TunnelStatus(
        name, "cms", tunnel, "198.51.100.1", "203.0.113.9", 7, True, received, 0, 5, 0
    )


def test_tunnels_of_leases_are_found_in_the_kernel() -> None:
    scene = Scene(
        {
            "b-cms-farm": Device("b-cms-farm", "bridge", alias="dvn:cnaf:network:cms/farm"),
            "t-cms-l1": Device("t-cms-l1", "gretap", master="b-cms-farm"),
            "t-lost": Device("t-lost", "gretap"),
        }
    )
    tunnels = {"cms/l1": status("t-cms-l1", "l1", 3), "cms/lost": status("t-lost", "lost", 0)}
    site = with_leased(full_site(), scene, tunnels)
    found = topology(site, seen_devices(scene, tunnels.values()))
    assert "lease l1 → 203.0.113.9" in texts(svg(found))
    assert "3 received, 5 sent" in texts(svg(found))
    assert {tunnel.name for tunnel in site.tunnels()} == {"bari", "pisa", "l1"}


@pytest.mark.parametrize("count", [0, 1, 7])
def test_boxes_of_a_column_do_not_overlap(count: int) -> None:
    ports = ", ".join(f"{{interface: tap{n}}}" for n in range(count))
    text = (
        f"site: x\ntenants: {{t: {{networks: {{n: {{prefix: 10.1.0.0/24, ports: [{ports}]}}}}}}}}"
    )
    root = ET.fromstring(svg(topology(parse_site(located.loads(text)))))
    boxes = [
        (float(r.get("y", "0")), float(r.get("height", "0")))
        for r in root.iter("{http://www.w3.org/2000/svg}rect")
        if r.get("width") == "190"
    ]
    assert len(boxes) == count
    boxes.sort()
    assert all(a + height <= b for (a, height), (b, _) in itertools.pairwise(boxes))
