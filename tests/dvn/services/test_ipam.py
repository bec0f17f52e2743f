"""An address has one holder at a time, whatever is asked in which order, also after a restart."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvn.ipam import NOBODY, Address, AddressBook, Lease, Span, choose

SPAN = Span(IPv4Address("10.9.0.10"), IPv4Address("10.9.0.15"))
FIXED = ("02:00:00:00:00:03", IPv4Address("10.9.0.12"))
GATEWAY = IPv4Address("10.9.0.10")
LEASE_S = 100.0


def book(leases: tuple[Lease, ...] = ()) -> AddressBook:
    return AddressBook([SPAN], reserved=[GATEWAY], fixed=[FIXED], leases=leases)


def mac(client: str) -> str:
    return FIXED[0] if client == "fixed" else ""


CLIENTS = ("a", "b", "c", "d", "e", "f", "fixed")
ACTS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "release", "decline", "restart", "wait"]),
        st.sampled_from(CLIENTS),
        st.one_of(st.none(), st.sampled_from([IPv4Address(f"10.9.0.{n}") for n in range(9, 18)])),
    ),
    max_size=60,
)


@given(ACTS)
def test_no_address_has_two_holders(acts: list[tuple[str, str, IPv4Address | None]]) -> None:
    held: dict[Address, tuple[str, float]] = {}  # by a model that knows only what was promised
    ours, now = book(), 1000.0
    for act, client, wanted in acts:
        now += 1
        if act == "ask":
            address = ours.offer(client, mac(client), 4, now, wanted=wanted)
            if address is None:
                continue
            holder, until = held.get(address, ("", 0.0))
            assert until <= now or holder == client
            assert address in SPAN
            assert address != GATEWAY
            assert (address == FIXED[1]) == (client == "fixed")
            ours.bind(Lease(address, client, now + LEASE_S, mac(client)), now)
            held[address] = (client, now + LEASE_S)
        elif act == "release" and wanted and ours.release(client, wanted, now):
            assert held.pop(wanted)[0] == client
        elif act == "decline" and wanted and held.get(wanted, ("",))[0] == client:
            ours.quarantine(wanted, now + 2 * LEASE_S)
            held[wanted] = (NOBODY, now + 2 * LEASE_S)
        elif act == "restart":
            ours = book(tuple(ours))
        elif act == "wait":
            now += LEASE_S / 2


@given(st.lists(st.sampled_from("abcdefgh"), max_size=20))
def test_the_same_client_gets_the_same_address(clients: list[str]) -> None:
    """As long as nobody else needed it meanwhile; also over a restart, also when it is over."""
    had: dict[str, Address] = {}
    ours, now = book(), 0.0
    for client in clients:
        now += 1
        address = ours.offer(client, "", 4, now)
        if address is None:
            assert len(had) == 4  # 10 is the gateway's and 12 fixed
            continue
        assert had.setdefault(client, address) == address
        ours.bind(Lease(address, client, now + 1000), now)
        ours = book(tuple(ours))


def test_the_longest_unused_address_is_given_first() -> None:
    over = tuple(
        Lease(IPv4Address(f"10.9.0.{number}"), f"old-{number}", until)
        for number, until in ((11, 30.0), (13, 10.0), (14, 20.0), (15, 40.0))
    )
    assert book(over).offer("new", "", 4, 50.0) == IPv4Address("10.9.0.13")
    # One that nobody had is better still.
    assert book(over[:3]).offer("new", "", 4, 50.0) == IPv4Address("10.9.0.15")


def test_a_machine_with_two_identifiers_has_one_fixed_address() -> None:
    ours = book()
    ours.bind(Lease(FIXED[1], "firmware", 100.0, FIXED[0]), 0.0)
    assert ours.offer("system", FIXED[0], 4, 1.0) == FIXED[1]
    assert ours.offer("thief", "", 4, 1.0, wanted=FIXED[1]) != FIXED[1]


def test_an_address_made_fixed_waits_for_who_has_it() -> None:
    lease = Lease(FIXED[1], "a", 100.0, "02:00:00:00:00:99")
    ours = book((lease,))
    assert ours.offer("fixed", FIXED[0], 4, 50.0) is None
    assert not ours.may_have("a", lease.mac, FIXED[1], 50.0)  # it may not keep it
    assert ours.offer("fixed", FIXED[0], 4, 101.0) == FIXED[1]


def test_binding_what_another_has_is_refused() -> None:
    ours = book((Lease(IPv4Address("10.9.0.11"), "a", 100.0),))
    with pytest.raises(ValueError, match="given to somebody else"):
        ours.bind(Lease(IPv4Address("10.9.0.11"), "b", 200.0), 50.0)


@given(st.integers(0, 2**64), st.integers(1, 2**64), st.text())
def test_a_wide_range_needs_no_time(first: int, size: int, client: str) -> None:
    span = Span(IPv6Address(first), IPv6Address(first + size - 1))
    address = choose(span, client, (), {})
    assert address is not None
    assert address in span
    assert address == choose(span, client, (), {})


def test_a_full_range_has_nothing_left() -> None:
    every = {ip_address(f"10.9.0.{number}") for number in range(10, 16)}
    assert choose(SPAN, "a", every, {}) is None
