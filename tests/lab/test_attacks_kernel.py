"""The whole attack suite on the wire, and the same with a filter broken on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import pytest

from lab.attacks import change
from lab.attacks.bench import Bench
from lab.attacks.case import Case
from lab.attacks.siege import besiege
from lab.attacks.store import kept
from lab.host import Host
from lab.hosts import Lab
from lab.kernel import FEATURES

pytestmark = pytest.mark.kernel

BROKEN = {
    "leaving: closed by default": "closed-to-site",
    "the gateway's own services are closed": "gateway-service",
    "STP, LLDP and other link-local multicast": "link-only",
}
SOME = 40  # of how many cases one is made where nobody has kept them: a VM is slow at it
FIRST = 30  # cases of an attack that a broken filter lets through


@pytest.fixture(scope="module")
def cases() -> tuple[Case, ...]:
    """All, as the pure tests left them; else a part of them, of every attack."""
    found = kept()
    if found is None:
        from lab.attacks import catalogue  # scapy takes its time

        found = tuple(catalogue.some(SOME, BROKEN.values(), FIRST))
    return found


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Lab() as lab, Bench(lab, FEATURES) as made:
        made.apply()
        yield made


def test_every_attack_is_blocked_and_every_control_passes(
    bench: Bench, cases: tuple[Case, ...]
) -> None:
    verdict = besiege(bench, cases)
    assert not verdict.left_out
    assert [f"{leak.case.name}: {leak.places}" for leak in verdict.leaks] == []
    assert verdict.missed == {}


def test_with_filters_broken_the_suite_fails(bench: Bench, cases: tuple[Case, ...]) -> None:
    """Each by its own attacks; what the filters let pass still passes."""
    whole = bench.apply()
    parts = [part for words in BROKEN for part in change.find(whole, words)]
    bench.apply(lambda state: reduce(change.without, parts, state))
    chosen = [
        case
        for attack in BROKEN.values()
        for case in [each for each in cases if each.attack == attack][:FIRST]
    ]
    try:
        verdict = besiege(bench, chosen)
    finally:
        bench.apply()
    assert not verdict.holds
    assert {leak.case.attack for leak in verdict.leaks} == set(BROKEN.values())
    assert verdict.missed == {}


@pytest.mark.long
def test_with_br_netfilter_it_is_the_same(bench: Bench, cases: tuple[Case, ...]) -> None:
    """As on hosts with Docker or Kubernetes: bridged frames meet the rules for routed packets as
    well, conntrack and IP's own opinion of them. Nothing leaks, and nothing honest is lost."""
    gateway = bench.hosts["gw"]
    gateway.run("modprobe", "br_netfilter", check=False)
    _show_to_ip(gateway, True)
    bench.apply()
    try:
        verdict = besiege(bench, cases)
        (rule,) = change.find(bench.apply(), "only bridged")
        bench.apply(lambda state: change.without(state, rule))
        fragments = [case for case in cases if "in fragments" in case.name]
        without = besiege(bench, fragments)
    finally:
        _show_to_ip(gateway, False)
        bench.apply()
    assert [f"{leak.case.name}: {leak.places}" for leak in verdict.leaks] == []
    assert verdict.missed == {}
    assert without.missed, "the control: conntrack keeps fragments where it sees them"


def _show_to_ip(host: Host, on: bool) -> None:
    switches = "/proc/sys/net/bridge/bridge-nf-call-*"
    host.script(f"for each in {switches}; do echo {int(on)} >$each; done")
