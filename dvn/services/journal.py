"""Leases on disk: a line for each change, synced before the answer goes out.

A lease that was promised is there after a kill or a power cut at any instant; a line that was torn
was promised to nobody. Written through a descriptor of the directory, so that the process may give
up its privileges.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from ipaddress import ip_address

from dvn.ipam import Lease

log = logging.getLogger(__name__)

NAME = "leases.jsonl"
_SPARE = 4096  # lines beyond twice the leases before the file is written anew


class Journal:
    """The file of one site. Raises OSError where the disk does."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._file = os.open(NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640, dir_fd=directory)
        self._lines = 0

    def close(self) -> None:
        os.close(self._file)

    def read(self) -> dict[str, dict[str, Lease]]:
        """The last lease of each address, by network and address."""
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            data = file.read()
        if data and not data.endswith(b"\n"):  # what comes next must not become part of it
            os.write(self._file, b"\n")
        self._lines = data.count(b"\n") + 1
        return last_leases(data)

    def write(self, rows: Iterable[tuple[str, Lease]]) -> None:
        """(network, lease) pairs, on disk when it returns."""
        lines = [_line(network, lease) for network, lease in rows]
        os.write(self._file, b"".join(lines))
        os.fdatasync(self._file)
        self._lines += len(lines)

    def is_long(self, leases: int) -> bool:
        return self._lines > 2 * leases + _SPARE

    def rewrite(self, rows: Iterable[tuple[str, Lease]]) -> None:
        """Only these from now on; the old file stands until the new one is on disk."""
        new = f"{NAME}.new"
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        file = os.open(new, flags, 0o640, dir_fd=self._directory)
        lines = 0
        try:
            for row in rows:
                lines += 1
                os.write(file, _line(*row))
            os.fsync(file)
            os.rename(new, NAME, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            os.fsync(self._directory)
        except OSError:
            os.close(file)
            raise
        os.close(self._file)
        self._file, self._lines = file, lines


def last_leases(data: bytes) -> dict[str, dict[str, Lease]]:
    """What a file says: the last lease of each address, by network and address."""
    found: dict[str, dict[str, Lease]] = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            network, lease = _read(line)
        except (ValueError, TypeError, KeyError):
            if line:
                log.warning("%s: line %d is unreadable and left out", NAME, number)
            continue
        found.setdefault(network, {})[str(lease.address)] = lease
    return found


def living(
    found: dict[str, dict[str, Lease]], networks: Iterable[str], now: float
) -> Iterator[tuple[str, Lease]]:
    """What is worth keeping: all of the networks that are served, for the same address again, and
    of others what is not over: a network may come back."""
    served = frozenset(networks)
    for network, leases in found.items():
        for lease in leases.values():
            if network in served or lease.until > now:
                yield network, lease


def _line(network: str, lease: Lease) -> bytes:
    row = [network, str(lease.address), lease.client, lease.until, lease.mac, lease.name]
    return json.dumps(row, separators=(",", ":")).encode() + b"\n"


def _read(line: bytes) -> tuple[str, Lease]:
    network, address, client, until, mac, name = json.loads(line)
    return str(network), Lease(ip_address(address), str(client), float(until), str(mac), str(name))
