"""Which machines run on which host, as the hosts say: on the disk, so that a restarted gateway
takes away no tunnel of a machine that runs.

Who came first keeps what two want; a host that is away keeps what it had. What of it may be is
decided anew each time (dvn/hosts/joining.py): a changed file may allow what it did not.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from dvn.change.files import ChangeError, read_json, write_json
from dvn.hosts.joining import Joined, Nic, Refused, join, nics_from_json
from dvn.spec import Site

log = logging.getLogger(__name__)

_FILE = "hosts.json"


@dataclass(frozen=True)
class Heard:
    """What a host said last. In memory: after a restart hosts are soon heard again."""

    at: datetime
    version: str = ""
    state: Mapping[str, Any] = field(default_factory=dict)


class Reports:
    """Called from several threads at once."""

    def __init__(
        self,
        site: Site,
        directory: Path,
        reserved: Mapping[tuple[str, str], Mapping[object, str]] | None = None,
    ) -> None:
        self._site = site
        self._reserved = reserved or {}
        self._file = directory / _FILE
        self._lock = threading.Lock()
        self._nics: tuple[tuple[str, Nic], ...] = tuple(
            pair for pair in self._load() if pair[0] in site.hosts
        )
        self._joined: Joined | None = None
        self._heard: dict[str, Heard] = {}

    def report(self, host: str, nics: Sequence[Nic], heard: Heard) -> bool:
        """What runs on `host` now; whether that has changed. OSError if it cannot be kept."""
        with self._lock:
            self._heard[host] = heard
            before = {nic for owner, nic in self._nics if owner == host}
            if before == set(nics):
                return False
            stay = (pair for pair in self._nics if pair[0] != host or pair[1] in nics)
            come = ((host, nic) for nic in nics if nic not in before)
            self._nics = (*stay, *come)
            self._save()
            before_refused = self._joined.refused if self._joined else ()
            self._joined = None
            joined = self._now()
        for one in joined.refused:
            if one not in before_refused:
                log.warning("event=port-refused host=%s what=%r", one.host, str(one))
        log.info("event=machines host=%s nics=%d", host, len(nics))
        return True

    def joined(self) -> Joined:
        """The site with the ports of all machines that may have one; the same object until a host
        says something new."""
        with self._lock:
            return self._now()

    def heard(self) -> Mapping[str, Heard]:
        with self._lock:
            return dict(self._heard)

    def machines(self, host: str) -> tuple[Nic, ...]:
        with self._lock:
            return tuple(nic for owner, nic in self._nics if owner == host)

    def refused(self, host: str) -> tuple[tuple[Nic, Refused], ...]:
        """Of a host: the NICs that are in no network, and why."""
        found = {(one.interface, one.machine): one for one in self.joined().refused
                 if one.host == host}  # fmt: skip
        return tuple(
            (nic, found[nic.interface, nic.machine])
            for nic in self.machines(host)
            if (nic.interface, nic.machine) in found
        )

    def _now(self) -> Joined:
        if self._joined is None:
            self._joined = join(self._site, self._nics, self._reserved)
        return self._joined

    def _load(self) -> list[tuple[str, Nic]]:
        try:
            rows = (read_json(self._file) or {}).get("machines", [])
        except ChangeError as error:
            log.warning("event=damaged file=%s error=%r", self._file, str(error))
            return []
        found = []
        for row in rows if isinstance(rows, list) else ():
            nics, _wrong = nics_from_json([row.get("nic")] if isinstance(row, dict) else [])
            found += [(str(row.get("host")), nic) for nic in nics]
        return found

    def _save(self) -> None:
        rows = [{"host": host, "nic": nic.model_dump(mode="json")} for host, nic in self._nics]
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(self._file, {"machines": rows})
