"""Elements of sets, packed and read: what we write nft shows, and what it shows we read."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvn.compile import compile_site
from dvn.kernel import netlink as nl
from dvn.kernel.elements import Form, UnknownFormError
from dvn.kernel.state import Element, NftSet
from tests.dvn.sites import a_kernel, full_site

_NAMES = st.from_regex(r"[a-z][a-z0-9~-]{0,14}", fullmatch=True)
_MACS = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
_FOUR = st.ip_addresses(v=4).map(str)
_SIX = st.integers(2**96, 2**128 - 1).map(lambda number: str(IPv6Address(number)))
_NUMBERS = st.integers(0, 2**32 - 1).map(str)
_FIELDS = {
    "ifname": _NAMES,
    "ipv4_addr": _FOUR,
    "ipv6_addr": _SIX,
    "ether_addr": _MACS,
    "inet_proto": st.sampled_from(["tcp", "udp", "gre"]),
    "inet_service": st.integers(0, 65535).map(str),
    "nf_proto": st.sampled_from(["ipv4", "ipv6"]),
    "mark": _NUMBERS,
}
_KINDS = st.lists(st.sampled_from(sorted(_FIELDS)), min_size=1, max_size=4).map(tuple)


def through(set_: NftSet) -> frozenset[Element]:
    """What is read of a set where its elements were written."""
    return Form(set_.frame()).read(Form(set_).messages(set_.elements))


@given(_KINDS, st.sampled_from(["", "mark", "ipv4_addr", "ipv4_addr . inet_service"]), st.data())
def test_what_is_written_is_read(
    kinds: tuple[str, ...], data_kind: str, data: st.DataObject
) -> None:
    key = st.tuples(*(_FIELDS[kind] for kind in kinds))
    keys = data.draw(st.lists(key, unique=True, max_size=20))
    value = st.tuples(*(_FIELDS[kind] for kind in data_kind.split(" . ") if kind))
    elements = frozenset((*each, *data.draw(value)) for each in keys)
    set_ = NftSet("s", kinds, elements, data_kind)
    assert through(set_) == elements


def prefixes(version: int) -> st.SearchStrategy[frozenset[str]]:
    """Some of the parts that a prefix falls into: neighbours, but none twice."""
    if version == 4:
        whole: list[str] = [str(p) for p in IPv4Network("10.0.0.0/8").subnets(new_prefix=13)]
        whole += ["0.0.0.0/8", "224.0.0.0/3", "192.0.2.1"]
    else:
        whole = [str(p) for p in IPv6Network("fd00::/8").subnets(new_prefix=12)] + ["ff00::/8"]
    return st.frozensets(st.sampled_from(whole))


@given(st.sampled_from([4, 6]), st.booleans(), st.data())
def test_intervals_that_touch_stay_apart(version: int, mapped: bool, data: st.DataObject) -> None:
    some = data.draw(prefixes(version))
    elements = frozenset((p, data.draw(_FOUR)) if mapped else (p,) for p in some)
    set_ = NftSet(
        "s", (f"ipv{version}_addr",), elements, "ipv4_addr" if mapped else "", interval=True
    )
    assert through(set_) == elements


@given(st.data())
def test_intervals_beside_other_fields(data: st.DataObject) -> None:
    some = data.draw(prefixes(4))
    elements = frozenset((data.draw(_NUMBERS), p) for p in some)
    set_ = NftSet("s", ("mark", "ipv4_addr"), elements, interval=True)
    assert through(set_) == elements


def test_ranges_as_nft_shows_them() -> None:
    elements = frozenset({("10.9.0.1-10.9.0.9",), ("10.9.1.0/24",)})
    assert through(NftSet("s", ("ipv4_addr",), elements, interval=True)) == elements


def test_integers_are_as_long_as_their_typeof_says() -> None:
    elements = frozenset({("tap3", "2199023255555")})
    typeof = "iifname . @th,208,48"
    assert through(NftSet("s", ("ifname", "integer"), elements, typeof=typeof)) == elements
    with pytest.raises(UnknownFormError):
        Form(NftSet("s", ("ifname", "integer"), elements))
    sizes = frozenset({("t-cms-bari", "1398")})
    words = "iifname : tcp option maxseg size"
    assert through(NftSet("s", ("ifname",), sizes, "integer", typeof=words)) == sizes


@pytest.mark.parametrize(
    "set_",
    [
        NftSet("s", ("inet_proto",), frozenset({("no-such-protocol",)})),
        NftSet("s", ("ifname",), frozenset({("an-interface-name-too-long",)})),
        NftSet("s", ("ifname",), frozenset({("eth*",)})),
        NftSet("s", ("ipv4_addr",), frozenset({("10.9.0.300",)})),
        NftSet("s", ("ct_state",), frozenset({("new",)})),
        NftSet("s", ("ifname",), frozenset({("eth0", "jump x")}), "verdict"),
        NftSet("s", ("inet_service",), frozenset({("1-5",)}), interval=True),
    ],
    ids=lambda set_: f"{set_.type[0]}-{next(iter(set_.elements))[0]}",
)
def test_what_only_nft_knows_is_left_to_nft(set_: NftSet) -> None:
    with pytest.raises(UnknownFormError):
        list(Form(set_).messages(set_.elements))


def pieces(count: int) -> Iterator[bytes]:
    elements = frozenset((f"b-{number}", "10.0.0.0/8") for number in range(count))
    set_ = NftSet("s", ("ifname", "ipv4_addr"), elements, interval=True)
    return Form(set_).messages(elements)


def test_no_piece_is_longer_than_an_attribute_can_be() -> None:
    found = list(pieces(5000))
    assert len(found) > 1
    assert max(map(len, found)) < 2**16 - 4


@given(st.lists(st.binary(max_size=12), max_size=6), st.lists(st.binary(max_size=12), max_size=6))
def test_shapes_read_what_a_walk_reads(first: list[bytes], second: list[bytes]) -> None:
    shapes, some = nl.Shapes(), nl.Shapes(1, 3)
    for values in (first, second, first, [bytes(len(v)) for v in first]):
        data = b"".join(nl.attribute(number % 4, value) for number, value in enumerate(values))
        whole = nl.attributes(data)
        assert shapes.read(data) == whole
        assert some.read(data) == {kind: v for kind, v in whole.items() if kind in (1, 3)}


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_shapes_survive_garbage(first: bytes, second: bytes) -> None:
    shapes = nl.Shapes()
    for data in (first, second, first, second):
        assert shapes.read(data) == nl.attributes(data)


def test_no_set_of_ours_is_left_to_nft() -> None:
    """It would work, but thousands of elements would be slow."""
    state = compile_site(full_site(), a_kernel().look("cnaf").host).state
    for table in state.tables:
        for each in table.sets:
            assert list(Form(each).messages(each.elements)) or not each.elements, each.name
