"""The number of a network on this host: its routing table, conntrack zone and packet mark.

Nothing is stored but in the kernel: the router device (VRF) of a network has the number in its
routing table. Who has one keeps it, however others come and go; a new network gets the lowest that
is free. Pure.

Linux has 65,535 conntrack zones (0 is everybody's); the same number n makes

- the zone n,
- the routing table 1,000,000 + n, far from what people and other programs number by hand,
- the mark 0x64760000 + n ("dv" in ASCII) of connections, and of their packets where a route must be
  chosen by it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from dvn.problems import Problem, SpecError

HIGHEST = 65535
FIRST_TABLE = 1_000_000
MARK, MARK_MASK = 0x64760000, 0xFFFF0000

NetworkId = tuple[str, str]  # tenant, network


def table_of(number: int) -> int:
    return FIRST_TABLE + number


def mark_of(number: int) -> int:
    return MARK | number


def number_of(table: int) -> int | None:
    """The number a routing table stands for; None if it is none of ours."""
    return table - FIRST_TABLE if 0 < table - FIRST_TABLE <= HIGHEST else None


def allocate(
    networks: Iterable[NetworkId],
    held: Mapping[NetworkId, int],
    taken: Collection[int] = frozenset(),
) -> dict[NetworkId, int]:
    """A number for each of `networks`: the one it holds, else the lowest that nobody holds.

    `held` may name networks that are to go: theirs are not given away before they are gone.
    `taken`: numbers of other sites, or whose routing tables others use. Raises SpecError if there
    are more networks than numbers.
    """
    wanted = list(networks)
    numbers = {network: held[network] for network in wanted if network in held}
    free = _free({*held.values(), *taken})
    for network in wanted:
        if network not in numbers:
            number = next(free, None)
            if number is None:
                what = f"this host has more than {HIGHEST} networks"
                raise SpecError([Problem("", 0, what, "spread them over more hosts")])
            numbers[network] = number
    return numbers


def _free(used: set[int]) -> Iterator[int]:
    return (number for number in range(1, HIGHEST + 1) if number not in used)
