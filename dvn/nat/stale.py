"""Which connections a change of rules makes stale. Pure.

The kernel asks the rules about the first packet of a connection only: NAT always, and filters by
our own "replies" rules. So after a change, what was allowed or translated by what is gone must be
cut, or it goes on for ever (moby#44752). Told from the elements that leave our sets and maps; what
the change has nothing to do with is not touched.

Where a description takes in more than it must, it does so among connections without NAT only: the
next packet of one that is still allowed finds its way as if nothing had been
(nf_conntrack_tcp_loose).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

from dvn import prefixsets
from dvn.allocate import mark_of, number_of
from dvn.kernel.conntrack import Flows
from dvn.kernel.state import Element, KernelState, Vrf


def stale(observed: KernelState, desired: KernelState) -> tuple[Flows, ...]:
    """Descriptions of connections that must not survive the change from one to the other."""
    before, after = _Sets(observed), _Sets(desired)
    if not before.numbers and not after.numbers:
        return ()
    whole = {
        number
        for router, number in (before.numbers.items() ^ after.numbers.items())
        # New ones, too: a number may have been somebody's before, and a kill in between.
    }
    found = [Flows(mark_of(number)) for number in sorted(whole)]
    marks = {flows.mark for flows in found}
    found += [flows for flows in _parts(before, after) if flows.mark not in marks]
    return tuple(dict.fromkeys(found))


class _Sets:
    """The elements of a state's inet sets by name, and the numbers of its routers."""

    def __init__(self, state: KernelState) -> None:
        self._state = state

    @cached_property
    def elements(self) -> Mapping[str, frozenset[Element]]:
        return {
            each.name: each.elements
            for table in self._state.tables
            if table.family == "inet"
            for each in table.sets
        }

    def of(self, name: str) -> frozenset[Element]:
        return self.elements.get(name, frozenset())

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """Of routers, by their device names."""
        found = {}
        for link in self._state.links:
            number = number_of(link.params.table) if isinstance(link.params, Vrf) else None
            if number is not None:
                found[link.name] = number
        return found

    @cached_property
    def bridges(self) -> Mapping[str, str]:
        """The bridge of each router."""
        return {link.master: link.name for link in self._state.links if link.master}

    @cached_property
    def sources(self) -> frozenset[tuple[str, str]]:
        """(router, prefix) of the networks."""
        return frozenset(
            (router, prefixsets.whole(written, version) if usual else written)
            for version in (4, 6)
            for name, usual in (
                (f"sources{version}", False),
                (prefixsets.exact("sources", version), True),
            )
            for router, written in self.of(name)
        )

    def site(self, version: int) -> tuple[str, ...]:
        return tuple(sorted(element[0] for element in self.of(f"site{version}")))


def _parts(before: _Sets, after: _Sets) -> Iterator[Flows]:
    def gone(name: str) -> list[Element]:
        return sorted(before.of(name) - after.of(name))

    for version in (4, 6):
        for mark, address in gone(f"snat{version}"):
            yield Flows(int(mark), outside=address)
        for (mark,) in gone(f"masquerade{version}"):
            yield Flows(int(mark), version=version, translated=True)
        yield from _newly_translated(before, after, version)
        for mark, _inside, address in gone(f"single_out{version}"):
            yield Flows(int(mark), outside=address)
        zones = {element[:3]: int(element[3]) for element in before.of(f"forward_zones{version}")}
        for way in gone(f"forward_in{version}"):
            number = zones.get(way[:3])
            if number is not None:
                yield Flows(mark_of(number), outside=way[0], protocol=way[1], port=int(way[2]))
    yield from _closed(before, after)
    for router, protocol, port in gone("services"):
        if router in before.numbers:
            own = mark_of(before.numbers[router])
            yield Flows(own, protocol=protocol, port=int(port), translated=False)
    for router, bridge in gone("may_start"):
        yield from _between(before, router, bridge)
    for router, bridge, protocol, port in gone("may_use"):
        yield from _between(before, router, bridge, protocol, int(port))


def _newly_translated(before: _Sets, after: _Sets, version: int) -> Iterator[Flows]:
    """A network that had no outside address has one: what goes on without it is lost."""

    def translated(sets: _Sets) -> set[str]:
        names = (f"snat{version}", f"masquerade{version}")
        return {element[0] for name in names for element in sets.of(name)}

    known = {str(mark_of(number)) for number in before.numbers.values()}
    for mark in sorted((translated(after) - translated(before)) & known):
        yield Flows(int(mark), version=version, not_to=after.site(version), translated=False)


def _closed(before: _Sets, after: _Sets) -> Iterator[Flows]:
    """`access: open` that became `closed`: nothing goes on with the site, be it by a forward."""
    for (router,) in sorted(before.of("open") - after.of("open")):
        number = before.numbers.get(router)
        if number is not None:
            yield Flows(mark_of(number), translated=False)
            for version in (4, 6):
                yield Flows(mark_of(number), version=version, source=after.site(version))


def _between(
    before: _Sets, router: str, bridge: str, protocol: str = "", port: int = 0
) -> Iterator[Flows]:
    """Of a pair of networks: what the one whose `router` it is started to the one of `bridge`."""
    theirs = {prefix for name, prefix in before.sources if before.bridges.get(name) == bridge}
    own = before.bridges.get(router)
    for version in (4, 6):
        for name, prefix, zone in sorted(before.of(f"peers{version}")):
            if name == own and prefix in theirs:
                yield Flows(mark_of(int(zone)), to=prefix, protocol=protocol, port=port)
