"""The grammar knows every rule the compiler can write, and refuses what it does not know."""

from __future__ import annotations

import pytest
from hypothesis import given

from dvn.compile import compile_site
from dvn.diagnose.nftast import Binary, Constant, Field, Match, Raw, SetName, Verdict
from dvn.diagnose.nftparse import parse_rule
from dvn.diagnose.nftwords import GrammarError
from dvn.diagnose.rulesets import Ruleset
from dvn.spec import Site
from tests.dvn.sites import a_kernel, full_site, sites


def _not_understood(site: Site) -> list[str]:
    state = compile_site(site, a_kernel().look(site.site).host).state
    ruleset = Ruleset.of(state.tables)  # raises for an element that is none of its type
    return [
        f"{table.id} {chain.name}: {line.text}: {line.why_not}"
        for table in ruleset.tables
        for chain in table.chains.values()
        for line in chain.lines
        if line.rule is None
    ]


def test_every_rule_of_a_full_site_is_understood() -> None:
    assert _not_understood(full_site()) == []


@given(sites())
def test_every_rule_of_any_site_is_understood(site: Site) -> None:
    assert _not_understood(site) == []


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("accept", (Verdict("accept"),)),
        ("jump leaving", (Verdict("jump", "leaving"),)),
        (
            "ether type arp arp saddr ip != @own counter drop",
            (
                Match(Field("ether", "type"), "", Constant("arp")),
                Match(Field("arp", "saddr ip"), "!=", SetName("own")),
                *parse_rule("counter drop"),
            ),
        ),
        ("@th,136,8 47", (Match(Raw("th", 136, 8), "", Constant("47")),)),
        (
            "tcp flags & (syn | rst) == syn",
            (
                Match(
                    Binary(
                        "&",
                        Field("tcp", "flags"),
                        Binary("|", Constant("syn"), Constant("rst")),
                    ),
                    "==",
                    Constant("syn"),
                ),
            ),
        ),
    ],
)
def test_a_rule_means_what_it_says(text: str, rule: object) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize(
    "text",
    [
        "ct zone set iifname map @zones",
        "ct original zone set iifname map @zones",
        "ct mark set iifname map @marks",
        "meta mark set ct mark",
        'iifname . ip daddr vmap { "lo" . 127.0.0.1 : accept, "eth0" . 10.0.0.0/8 : jump x }',
        "fib saddr . iif oif missing drop",
        "fib daddr . iif type != { local, broadcast } drop",
        "dnat ip to ip daddr . tcp dport map @forwards4",
        "dnat ip addr . port to ip daddr . tcp dport map @forwards4",
        "dnat ip6 to [fd00::3]:80",
        "snat ip to ct mark map @snat4",
        "meta nfproto ipv4 masquerade random,persistent",
        "exthdr frag exists drop",
        "ip6 nexthdr vmap { tcp : accept, ipv6-icmp : goto icmp6 }",
        "ip frag-off & 0x1fff != 0 counter packets 12 bytes 345 drop",
        "limit rate 10/second burst 5 packets accept",
        "limit rate over 10 mbytes/second drop",
        'log prefix "no: " level info drop',
        "reject with icmp type port-unreachable",
        "udp sport 67 udp dport 68 counter drop",
        "tcp flags syn / syn,rst tcp option maxseg size set 1400",
        "update @seen { ip saddr timeout 1m }",
        "vlan id 0 drop",
        "ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop",
    ],
)
def test_what_others_write_is_understood_too(text: str) -> None:
    assert parse_rule(text)


@pytest.mark.parametrize(
    "text",
    [
        "xt match conntrack",
        "meta random < 3 drop",
        "ip saddr",
        "accept or drop",
        "tcp option maxseg",
        "numgen inc mod 2 vmap { 0 : accept }",
        "ip saddr { 10.0.0.1 10.0.0.2 }",
        "counter packets many bytes 3",
    ],
)
def test_an_unknown_word_is_an_error_not_a_guess(text: str) -> None:
    with pytest.raises(GrammarError):
        parse_rule(text)
