"""Drift without a kernel: when to look and to give way, who did it, whose rules drop ours."""

from __future__ import annotations

import struct
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from dvn.change.blame import culprit
from dvn.change.changes import Changes, Wish
from dvn.change.drift import FIGHT_WINDOW_S, FIGHTS, FIRST_WAIT_S, LONGEST_WAIT_S, Debounce, Fight
from dvn.change.foreign import Ours, droppers
from dvn.change.memory import SwitchMemory
from dvn.change.wanted import WantedSites
from dvn.change.watch import Event, Interest, Reader, concerns, is_foreign_nft
from dvn.engine import Engine
from dvn.kernel import netlink as nl
from dvn.kernel.state import LINK_GROUP
from tests.dvn.sites import a_kernel, full_site
from tests.dvn.test_change import smaller
from tests.dvn.test_engine import grown


def test_a_burst_is_one_look_soon_after_its_end() -> None:
    debounce = Debounce(quiet=0.1, latest=0.3)
    assert debounce.due() is None
    debounce.happened(10.0)
    assert debounce.due() == pytest.approx(10.1)
    for now in (10.08, 10.16, 10.24):
        debounce.happened(now)
    assert debounce.due() == pytest.approx(10.3)  # not later, however long it goes on
    debounce.looked()
    assert debounce.due() is None


SAME = ("+ table inet dvn-cnaf",)


def fought(fight: Fight, now: float) -> float:
    """The time after a fight about SAME has begun."""
    for _ in range(FIGHTS - 1):
        fight.repaired(now, SAME)
        now += 0.2
        assert fight.held_until(now, SAME) is None
    assert not fight.on(now)
    assert fight.repaired(now, SAME) == FIGHTS
    return now


def test_a_fight_is_held_longer_and_longer_and_ends_when_it_is_quiet() -> None:
    fight = Fight()
    now = fought(fight, 100.0)
    waits = []
    for _ in range(8):
        held = fight.held_until(now, SAME)
        assert held is not None
        assert fight.on(now)
        waits.append(held - now)
        now = held
        assert fight.held_until(now, SAME) is None
        fight.repaired(now, SAME)
    assert waits[0] == pytest.approx(FIRST_WAIT_S)
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(LONGEST_WAIT_S)
    now += LONGEST_WAIT_S + FIGHT_WINDOW_S
    assert not fight.on(now)
    assert fight.held_until(now, SAME) is None
    fought(fight, now)


def test_different_repairs_are_no_fight() -> None:
    fight = Fight()
    for number in range(FIGHTS * 4):
        fight.repaired(number * 0.1, (f"+ link {number}",))
        assert not fight.on(number * 0.1)


def test_while_a_fight_is_on_other_repairs_do_not_wait() -> None:
    fight, other = Fight(), ("~ link b-cms-farm: mtu 1300 => 1500",)
    now = fought(fight, 100.0)
    held = fight.held_until(now, SAME)
    assert fight.held_until(now, other) is None
    fight.repaired(now, other)
    assert fight.held_until(now, other) is None
    assert fight.held_until(now, SAME) == held  # nor is it put off by them


def message(kind: int, payload: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, 0, 0, 0) + payload


def link(index: int, name: str, *, alias: str = "", group: int = 0, gone: bool = False) -> bytes:
    body = struct.pack("=BxHiII", 0, 1, index, 1, 0) + nl.text(3, name) + nl.u32(27, group)
    return message(17 if gone else 16, body + (nl.text(20, alias) if alias else b""))


def nft(kind: int, family: int, *attributes: bytes) -> bytes:
    return message(10 << 8 | kind, struct.pack("!BBH", family, 0, 0) + b"".join(attributes))


GEN = nft(15, 0, nl.be32(1, 7), nl.be32(2, 4711), nl.text(3, "nft"))


def test_links_are_known_by_their_stamp_even_when_it_is_taken_away() -> None:
    reader = Reader()
    (made,) = reader.route(link(5, "b-x", alias="dvn:cnaf:network:cms/farm", group=LINK_GROUP))
    (stripped,) = reader.route(link(5, "b-x"))
    assert made.ours
    assert stripped.ours
    (other,) = reader.route(link(6, "eth0"))
    assert not other.ours
    address = message(21, struct.pack("=BBBBI", 2, 24, 0, 0, 5))
    (lost,) = reader.route(address)
    assert (lost.kind, lost.link, lost.ours, lost.gone) == ("address", "b-x", True, True)
    (gone,) = reader.route(link(5, "b-x", alias="dvn:cnaf:network:cms/farm", gone=True))
    assert gone.ours
    assert gone.gone
    (again,) = reader.route(link(5, "eth5"))  # the index, given to somebody else
    assert not again.ours


def test_an_nft_transaction_is_one_event_with_who_did_it() -> None:
    reader = Reader()
    data = nft(2, 1, nl.text(1, "dvn-cnaf")) + nft(5, 7, nl.text(1, "dvn-cnaf"))
    data += nft(0, 1, nl.text(1, "theirs"))
    assert list(reader.nft(data)) == []  # not before its end
    (event,) = reader.nft(GEN)
    assert event.tables == {("inet", "dvn-cnaf"), ("bridge", "dvn-cnaf"), ("inet", "theirs")}
    assert event.removed == {("inet", "dvn-cnaf"), ("bridge", "dvn-cnaf")}
    assert (event.process, event.pid) == ("nft", 4711)
    (empty,) = reader.nft(GEN)
    assert empty.tables == frozenset()


def test_what_the_kernel_learns_by_itself_is_no_event() -> None:
    learned = message(28, struct.pack("=BxxxiHBB", 2, 5, 0x02, 0, 0))
    written = message(28, struct.pack("=BxxxiHBB", 2, 5, 0x80, 0, 0))
    assert list(Reader().route(learned)) == []
    assert [event.kind for event in Reader().route(written)] == ["neighbour"]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Event("lost", ""), True),
        (Event("rule", ""), True),
        (Event("link", "", "b-x", ours=True), True),
        (Event("link", "", "tap3"), True),
        (Event("link", "", "eth9"), False),
        (Event("address", "", "wan0"), True),
        (Event("address", "", "eth9"), False),
        (Event("nft", "", tables=frozenset({("inet", "dvn-cnaf")})), True),
        (Event("nft", "", tables=frozenset({("inet", "theirs")})), False),
    ],
)
def test_what_concerns_us(event: Event, expected: bool) -> None:
    assert concerns(event, Interest(frozenset({"tap3", "wan0"}))) == expected


def test_whose_rules_changed() -> None:
    assert is_foreign_nft(Event("nft", "", tables=frozenset({("inet", "theirs")})))
    assert not is_foreign_nft(Event("nft", "", tables=frozenset({("inet", "dvn-cnaf")})))


OURS_TABLE = frozenset({("inet", "dvn-cnaf")})
BOTH = frozenset({("inet", "dvn-cnaf"), ("bridge", "dvn-cnaf")})


@pytest.mark.parametrize(
    ("events", "processes", "parents", "words"),
    [
        ([Event("nft", "", tables=OURS_TABLE, process="nft", pid=7)], (), {}, "nft (process 7)"),
        (
            [Event("nft", "", tables=BOTH, removed=BOTH, process="nft", pid=7)],
            (),
            {7: "firewalld"},
            "nft (process 7, started by firewalld) (flushed or deleted tables)",
        ),
        (
            [Event("nft", "", tables=OURS_TABLE, process="dockerd", pid=9)],
            (),
            {},
            "docker (process 9)",
        ),
        (
            [Event("link", "", "b-x", ours=True)],
            ("systemd-network", "sshd"),
            {},
            "perhaps systemd-networkd, which runs here",
        ),
        (
            [Event("link", "", "b-x", ours=True)],
            ("systemd-network", "NetworkManager"),
            {},
            "perhaps NetworkManager or systemd-networkd, which run here",
        ),
        ([Event("link", "", "b-x", ours=True)], ("sshd",), {}, ""),
        ([Event("nft", "", tables=OURS_TABLE, process="dvn-agent", pid=1)], (), {}, ""),
    ],
)
def test_who_did_it(
    events: list[Event], processes: tuple[str, ...], parents: dict[int, str], words: str
) -> None:
    assert culprit(events, frozenset(processes), parents) == words


def table(*rules: Any, policy: str = "accept", hook: str = "forward", **more: Any) -> list[Any]:
    chain = {"family": "inet", "table": "theirs", "name": "f", "type": "filter", "hook": hook}
    items: list[Any] = [{"chain": {**chain, "policy": policy, **more}}]
    for number, rule in enumerate(rules):
        expressions = rule if isinstance(rule, list) else [rule]
        where = {"family": "inet", "table": "theirs", "chain": "f", "handle": number}
        items.append({"rule": {**where, "expr": expressions}})
    return items


def match(left: Any, right: Any, op: str = "==") -> Any:
    return {"match": {"op": op, "left": left, "right": right}}


def device(name: str, op: str = "==") -> Any:
    return match({"meta": {"key": "iifname"}}, name, op)


def saddr(prefix: str) -> Any:
    address, _, length = prefix.partition("/")
    right = {"prefix": {"addr": address, "len": int(length)}}
    return match({"payload": {"protocol": "ip", "field": "saddr"}}, right)


DROP, ACCEPT = {"drop": None}, {"accept": None}
INVALID = match({"ct": {"key": "state"}}, "invalid", "in")
PORT_22 = match({"payload": {"protocol": "tcp", "field": "dport"}}, 22)


@pytest.mark.parametrize(
    ("items", "named"),
    [
        (table(), False),
        (table(DROP), True),
        (table({"reject": {}}), True),
        (table(policy="drop"), True),
        (table(policy="drop", hook="input"), True),
        (table(ACCEPT, policy="drop"), False),
        (table(ACCEPT, DROP), False),
        (table([device("b-*"), ACCEPT], policy="drop"), False),
        (table([device("eth9"), ACCEPT], policy="drop"), True),
        (table([PORT_22, ACCEPT], policy="drop"), True),
        (table([device("eth9"), DROP]), False),
        (table([device("b-cms-farm"), DROP]), True),
        (table([device("b-cms-farm", "!="), DROP]), True),
        (table([saddr("10.9.0.0/16"), DROP]), True),
        (table([saddr("172.16.0.0/12"), DROP]), False),
        (table([INVALID, DROP]), False),
        (table([PORT_22, DROP]), True),
        (table(DROP, type="nat"), False),
        (table(DROP, hook="ingress"), False),
        (table(DROP, table="dvn-other"), False),
    ],
)
def test_whose_rules_would_drop_ours(items: list[Any], named: bool) -> None:
    ours = Ours(frozenset({"b-cms-farm", "wan0"}), (IPv4Network("10.9.0.0/24"),))
    assert bool(list(droppers(items, ours))) == named


def test_a_drop_behind_a_jump_is_found_and_a_loop_is_none() -> None:
    items = table({"jump": {"target": "more"}})
    where = {"family": "inet", "table": "theirs", "chain": "more", "handle": 9, "comment": "why"}
    items.append({"rule": {**where, "expr": [{"jump": {"target": "f"}}]}})
    items.append({"rule": {**where, "expr": [DROP]}})
    (found,) = droppers(items, Ours())
    assert "rule 9 of chain more (why)" in str(found)


def test_flushed_rules_take_no_memory_of_what_was_switched_on(tmp_path: Path) -> None:
    """After `flush ruleset` forwarding is still ours: put back into the sets, and switched off."""
    kernel = a_kernel()
    before = dict(kernel.values)
    engine = Engine(kernel, memory=SwitchMemory(tmp_path))
    engine.apply(full_site())
    sets = {s.name: s.elements for t in kernel.tables.values() for s in t.sets}
    assert sets["opened4"]
    kernel.tables.clear()
    Engine(kernel, memory=SwitchMemory(tmp_path)).apply(full_site())
    assert {s.name: s.elements for t in kernel.tables.values() for s in t.sets} == sets
    kernel.tables.clear()
    Engine(kernel, memory=SwitchMemory(tmp_path)).destroy("cnaf")
    assert {key: kernel.values[key] for key in before} == before
    assert not list(tmp_path.rglob("*.json"))
    # The control: without it, what is switched on looks like somebody else's.
    engine = Engine(kernel)
    engine.apply(full_site())
    kernel.tables.clear()
    engine.destroy("cnaf")
    assert {key: kernel.values[key] for key in before} != before


def test_the_last_word_stands_the_daemons_or_the_operators(tmp_path: Path) -> None:
    engine = Engine(a_kernel())
    changes = Changes(engine, tmp_path, boot=lambda: "boot-1")
    wanted = WantedSites(changes)
    with_lease = grown(full_site())
    dynamic = with_lease.model_dump(mode="json")
    dynamic["tenants"]["cms"]["tunnels"]["lease-1"]["dynamic"] = True
    leased = type(with_lease).model_validate(dynamic)

    assert wanted.asked(leased).note == ""
    wanted.done(leased)
    assert wanted.sites()["cnaf"] == leased
    changes.apply(Wish(smaller(), "site.yaml"))
    standing = wanted.asked(leased)
    assert "stands: restart the daemon" in standing.note
    names = [name for _tenant, name, _network in standing.site.networks()]
    assert "store" not in names
    assert [t.name for t in standing.site.tunnels() if t.dynamic] == ["lease-1"]
    assert wanted.sites()["cnaf"] == standing.site
    # A daemon with the new file, and one that is started again with the old one: they asked last.
    wanted.done(smaller())
    assert wanted.asked(smaller()).note == ""
    assert wanted.asked(full_site()).note == ""
    assert WantedSites(changes).asked(full_site()).note == ""


def test_what_an_earlier_start_of_the_machine_had_is_not_brought_back(tmp_path: Path) -> None:
    Changes(Engine(a_kernel()), tmp_path, boot=lambda: "boot-1").apply(Wish(full_site(), "f"))
    after = Changes(Engine(a_kernel()), tmp_path, boot=lambda: "boot-2")
    assert WantedSites(after).sites() == {}
    same = Changes(Engine(a_kernel()), tmp_path, boot=lambda: "boot-1")
    assert set(WantedSites(same).sites()) == {"cnaf"}
