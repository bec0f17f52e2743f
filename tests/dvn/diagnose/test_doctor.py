"""Each ailment of a host is found and named with its cure; a healthy one has none."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface
from typing import Any

import pytest

from dvn.diagnose.checkup import Facts, Manager, check_host, needs
from dvn.diagnose.findings import Finding, Health, worst
from dvn.diagnose.listing import parse_listing
from dvn.diagnose.obstacles import check_rules
from dvn.diagnose.planned import planned_walker
from dvn.diagnose.rulesets import Ruleset
from dvn.diagnose.scene import Device, Scene
from dvn.spec import Site
from tests.dvn.sites import full_site

WAN = Device("wan0", mtu=1500, addresses=(ip_interface("198.51.100.1/24"),))


@pytest.fixture(scope="module")
def site() -> Site:
    return full_site()


def healthy(site: Site) -> Facts:
    return Facts(
        kernel="Linux 6.1",
        features=dict.fromkeys(needs(site), True),
        scene=Scene({"wan0": WAN}),
        clock=True,
        sysctls={"net/ipv4/conf/wan0/forwarding": "1"},
        applied=True,
    )


def changed(facts: Facts, **scene: Any) -> Facts:
    return replace(facts, scene=replace(facts.scene, **scene))


def test_a_healthy_host_is_healthy(site: Site) -> None:
    found = [*check_host(site, healthy(site))]
    assert worst(found) is Health.OK, [f for f in found if f.health is not Health.OK]
    assert {"kernel", "underlay", "rp_filter", "mtu", "offloads", "clock"} <= {
        f.check for f in found
    }


STRICT = {"net/ipv4/conf/all/rp_filter": "1"}


@pytest.mark.parametrize(
    ("facts", "health", "says"),
    [
        (lambda f: replace(f, may_change=False), "fail", "rights: .*sudo"),
        (lambda f: replace(f, features={**f.features, "gretap": False}), "fail", "modprobe ip_gre"),
        (lambda f: replace(f, features={**f.features, "vlan": False}), "fail", "modprobe 8021q"),
        (lambda f: changed(f, devices={}), "fail", "there is no interface wan0"),
        (lambda f: changed(f, devices={"wan0": replace(WAN, up=False)}), "fail", "wan0 is down"),
        (
            lambda f: changed(f, devices={"wan0": replace(WAN, addresses=())}),
            "fail",
            "has not the address 198.51.100.1",
        ),
        (lambda f: replace(f, sysctls={}), "fail", "somebody switched it off"),
        (lambda f: changed(f, sysctls=STRICT), "fail", "rp_filter: strict on wan0, and the route"),
        (
            lambda f: changed(f, sysctls={"net/ipv4/conf/all/rp_filter": "2"}),
            "warn",
            "loosens the networks' own check",
        ),
        (
            lambda f: changed(f, sysctls={"net/bridge/bridge-nf-call-iptables": "1"}),
            "warn",
            "br_netfilter",
        ),
        (lambda f: replace(f, merging=frozenset({"wan0"})), "fail", "ethtool -K wan0 lro off"),
        (lambda f: replace(f, paths={"203.0.113.7": 1400}), "warn", "carries 1400 bytes"),
        (lambda f: replace(f, clock=False), "warn", "not synchronised"),
        (
            lambda f: replace(f, managers=(Manager("systemd-networkd", ("b-cms-farm",)),)),
            "fail",
            "thinks it has to manage b-cms-farm",
        ),
        (lambda f: replace(f, managers=(Manager("NetworkManager"),)), "warn", "unmanaged-devices"),
        (lambda f: replace(f, legacy=("ip filter",)), "warn", "legacy tables"),
        (
            lambda f: changed(f, devices={"wan0": WAN, "gretap0": Device("gretap0")}),
            "fail",
            "gretap0 is up",
        ),
        (
            lambda f: replace(
                f,
                sysctls={
                    **f.sysctls,
                    "net/netfilter/nf_conntrack_count": "90",
                    "net/netfilter/nf_conntrack_max": "100",
                },
            ),
            "warn",
            "90 of 100 entries",
        ),
    ],
)
def test_an_ailment_is_found_and_named(site: Site, facts: Any, health: str, says: str) -> None:
    found = [*check_host(site, facts(healthy(site)))]
    assert worst(found) == health
    pytest_match = [f for f in found if f.health == health and _matches(f, says)]
    assert pytest_match, [f for f in found if f.health is not Health.OK]
    assert all(f.fix for f in found if f.health is not Health.OK)


def _matches(finding: Finding, says: str) -> bool:
    import re

    return bool(re.search(says, f"{finding.check}: {finding.words}; {finding.fix}"))


FOREIGN = """
table inet other {
    chain c {
        type filter hook %s priority 10; policy %s;
        %s
    }
}
"""


@pytest.mark.parametrize(
    ("hook", "policy", "rule", "says"),
    [
        ("forward", "drop", "", "chain c drops IPv4 of atlas/farm to the internet"),
        ("forward", "accept", "oifname wan0 ip protocol udp drop", "to the internet (udp)"),
        ("input", "accept", "iifname g-* tcp dport 22 reject", "tcp/22 of the gateway"),
        ("input", "accept", "meta l4proto gre drop", "tunnel cms/bari, coming in"),
        ("output", "accept", "ip daddr 203.0.113.0/24 drop", "drops tunnel cms/"),
        ("forward", "accept", "oifname docker0 drop", None),
        ("input", "drop", "accept", None),
    ],
)
def test_a_rule_of_others_that_drops_our_traffic_is_named(
    site: Site, hook: str, policy: str, rule: str, says: str | None
) -> None:
    walker = planned_walker(site)
    others = parse_listing(FOREIGN % (hook, policy, rule)).tables
    found = [*check_rules(site, Ruleset((*walker.ruleset.tables, *others)), walker.scene)]
    if says is None:
        assert worst(found) is Health.OK, found
    else:
        assert any(f.health is Health.FAIL and says in f.words for f in found), found


@pytest.mark.parametrize("shown", [True, False])
def test_what_br_netfilter_shows_to_a_rule_that_drops_it_is_named(site: Site, shown: bool) -> None:
    """Docker's own: what is not its own is not forwarded (`iptables -P FORWARD DROP`)."""
    walker = planned_walker(site)
    switch = "net/bridge/bridge-nf-call-iptables"
    scene = replace(walker.scene, sysctls={**walker.scene.sysctls, switch: str(int(shown))})
    docker = parse_listing(FOREIGN % ("forward", "drop", "oifname wan0 accept")).tables
    found = [*check_rules(site, Ruleset((*walker.ruleset.tables, *docker)), scene)]
    between = [f for f in found if "IPv4 of cms/farm between its machines" in f.words]
    assert bool(between) == shown, found


def test_a_rule_that_is_not_understood_is_a_warning(site: Site) -> None:
    walker = planned_walker(site)
    others = parse_listing(FOREIGN % ("forward", "accept", 'xt match "conntrack" drop')).tables
    found = [*check_rules(site, Ruleset((*walker.ruleset.tables, *others)), walker.scene)]
    assert [f.health for f in found] == ["warn", "ok"]
