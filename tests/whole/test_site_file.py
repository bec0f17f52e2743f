"""`dvn apply` on the demo's own site file: the second time nothing is written, and what is not
ours survives everything."""

from __future__ import annotations

import json

import pytest

from lab.scenarios import site
from lab.scenarios.story import Story

pytestmark = [pytest.mark.whole, pytest.mark.xdist_group("whole"), pytest.mark.timeout(300)]

FOREIGN = """
ip link add br-foreign type bridge
ip addr add 192.0.2.1/24 dev br-foreign
nft 'add table inet foreign; add chain inet foreign input { type filter hook input priority 0; }'
nft 'add rule inet foreign input tcp dport 9 counter'
"""


def test_the_second_apply_writes_nothing_and_foreign_things_survive(story: Story) -> None:
    story.gw1.script(FOREIGN)
    try:
        story.dvn("apply", site.SITE_FILE)
        # The kernel's own word on what was written, beside ours.
        watch = story.gw1.spawn(
            "sh", "-c",
            "ip -o monitor link address route > /run/ip.log & nft monitor > /run/nft.log & "
            "touch /run/watching; wait",
        )  # fmt: skip
        try:
            story.gw1.wait_for(["test", "-e", "/run/watching"], 30, what="the monitors")
            second = story.ask("apply", site.SITE_FILE)
            plan = story.ask("plan", site.SITE_FILE)
            # Positive control: the monitors do see a write, and see it after all that was before.
            story.gw1.script("ip link add marker type bridge; nft add table inet marker")
            story.gw1.wait_for(
                lambda: (
                    "marker" in story.gw1.read("/run/ip.log")
                    and "marker" in story.gw1.read("/run/nft.log")
                ),
                30,
                what="the monitors to see the marker",
            )
        finally:
            story.gw1.script("ip link del marker; nft delete table inet marker", check=False)
            story.gw1.run("pkill", "-x", "nft", check=False)
            story.gw1.run("pkill", "-x", "ip", check=False)
            watch.wait(30)
        assert second["steps"] == []
        assert second["writes"] == {"netlink": 0, "nft": 0, "sysctl": 0}
        assert plan["steps"] == []
        before_marker = story.gw1.read("/run/nft.log").split("marker")[0]
        assert "dvn" not in before_marker
        links = [line for line in story.gw1.read("/run/ip.log").splitlines() if "farm" in line]
        assert links == []

        story.dvn("destroy", site.SITE_FILE)
        tables = story.gw1.run("nft", "list", "tables").stdout
        assert "dvn" not in tables
        assert story.tunnel_links() == []
        assert "tcp dport 9" in story.gw1.run("nft", "list", "table", "inet", "foreign").stdout
        address = json.loads(story.gw1.run("ip", "-j", "addr", "show", "br-foreign").stdout)
        assert address[0]["addr_info"][0]["local"] == "192.0.2.1"
    finally:
        story.gw1.script("ip link del br-foreign; nft delete table inet foreign", check=False)
        story.dvn("apply", site.SITE_FILE)
