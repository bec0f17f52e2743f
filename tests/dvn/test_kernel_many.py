"""Two tenants or two hundred, all with the same prefix: the kernel has as many nft rules."""

from __future__ import annotations

import json
from functools import partial

import pytest

from dvn.engine import Engine
from dvn.spec import site_from_json
from lab import linux
from lab.host import Host
from lab.hosts import Lab
from lab.net import build
from lab.topology import Link, Machine, Router, Topology
from tests.dvn.test_overlap import twins_of

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]
# A large site is made by two threads, and none starts where another pid namespace was entered.
WITHOUT_PIDS = linux.CLONE_NEWNET | linux.CLONE_NEWNS


def counts(gateway: Host) -> tuple[int, int]:
    """nft rules, and bridges."""
    ruleset = json.loads(gateway.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    bridges = json.loads(gateway.run("ip", "-j", "link", "show", "type", "bridge").stdout)
    return sum("rule" in entry for entry in ruleset), len([b for b in bridges if b])


def test_2_and_200_tenants_have_as_many_rules_in_the_kernel() -> None:
    topology = Topology(
        nodes=(
            Machine("gw", {"wan0": "198.51.100.1/24"}, {"default": "198.51.100.254"}),
            Router("internet", {"site": "198.51.100.254/24"}),
        ),
        links=(Link("gw:wan0", "internet:site"),),
    )
    with Lab() as lab:
        gateway = build(lab, topology)["gw"]
        engine = Engine()
        seen: dict[int, int] = {}
        for count in (2, 200):
            apply = partial(engine.apply, site_from_json(twins_of(count)))
            gateway.inside(apply, namespaces=WITHOUT_PIDS)
            seen[count], bridges = counts(gateway)
            assert bridges == count
        assert seen[2] == seen[200] > 50
