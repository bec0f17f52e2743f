"""The largest packet a path carries whole, by trying (RFC 8899, packetization layer PMTUD). Pure.

No ICMP is needed or believed: a packet of a size, with the don't-fragment bit, is sent until the
other end says that it came, or three were lost. A value for each step, so that a search can be told
apart from the clock and the wire.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

TRIES = 3
# Sizes that paths often have, tried first; between two of them a search of halves.
USUAL = (1280, 1380, 1400, 1420, 1450, 1472, 1480, 1492, 1500, 8981, 9000, 9001)


@dataclass(frozen=True)
class Search:
    """`low` passes (or is taken to), above `high` nothing is tried. Ends when they meet."""

    low: int
    high: int
    tries: int = 0
    begun: bool = False

    @property
    def done(self) -> bool:
        return self.low >= self.high

    @property
    def result(self) -> int:
        return self.low

    @property
    def size(self) -> int:
        """The next to try: first the largest, which ends most searches at once."""
        if not self.begun:
            return self.high
        usual = [size for size in USUAL if self.low < size <= self.high]
        if usual:
            return usual[len(usual) // 2]
        return (self.low + self.high + 1) // 2

    def came(self, size: int) -> Search:
        """The other end got a packet of `size`."""
        if size <= self.low:
            return self
        return Search(min(size, self.high), self.high, begun=True)

    def lost(self) -> Search:
        """Nothing was heard of the one sent last."""
        if self.done:
            return self
        if self.tries + 1 < TRIES:
            return replace(self, tries=self.tries + 1)
        return Search(self.low, max(self.low, self.size - 1), begun=True)
