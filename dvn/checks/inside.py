"""Which prefixes an address lies in, however many there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dvn.values import Address, Prefix


class Inside:
    """Prefixes and whose they are; they may overlap. A look-up costs one step for each length of
    prefix, not for each prefix."""

    def __init__(self, rows: Iterable[tuple[str, Prefix]]) -> None:
        self._by_length: dict[tuple[int, int], dict[int, list[tuple[str, Prefix]]]] = {}
        for owner, prefix in rows:
            starts = self._by_length.setdefault((prefix.version, prefix.prefixlen), {})
            starts.setdefault(int(prefix.network_address), []).append((owner, prefix))

    def holding(self, address: Address) -> Iterator[tuple[str, Prefix]]:
        """(owner, prefix) of those that the address lies in."""
        number = int(address)
        for (version, length), starts in self._by_length.items():
            if version == address.version:
                free = address.max_prefixlen - length
                yield from starts.get(number >> free << free, ())
