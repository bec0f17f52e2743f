"""What a hypervisor's agent knows, on the disk: so that it needs nobody to start with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dvn.change.files import ChangeError, own_directory, read_json, write_json
from dvn.hosts.domains import Misnamed
from dvn.hosts.joining import Nic, nics_from_json

log = logging.getLogger(__name__)

_PART, _STATUS = "part.json", "status.json"


@dataclass(frozen=True)
class Kept:
    """The part as the gateway told it last (JSON), and the machines that ran when last looked."""

    version: str = ""
    site: object | None = None
    nics: tuple[Nic, ...] = ()
    wrong: tuple[Misnamed, ...] = ()


class KeptPart:
    """In a directory of our own, whole or not at all. Raises ChangeError, OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._shown: Mapping[str, Any] = {}

    def load(self) -> Kept:
        """What is there; nothing, if it is damaged: the gateway will tell again."""
        file = own_directory(self._directory) / _PART
        try:
            found = read_json(file) or {}
            nics, _wrong = nics_from_json(found.get("nics"))
            wrong = tuple(Misnamed(**each) for each in found.get("wrong", ()))
            return Kept(str(found.get("version", "")), found.get("site"), tuple(nics), wrong)
        except (ChangeError, TypeError) as error:
            log.warning("event=damaged file=%s error=%r", file, str(error))
            return Kept()

    def save(self, kept: Kept) -> None:
        write_json(
            own_directory(self._directory) / _PART,
            {
                "version": kept.version,
                "site": kept.site,
                "nics": [nic.model_dump(mode="json") for nic in kept.nics],
                "wrong": [asdict(each) for each in kept.wrong],
            },
        )

    def show(self, status: Mapping[str, Any]) -> None:
        """Keep a status for `dvn agent status`, if it has changed."""
        if status != self._shown:
            write_json(own_directory(self._directory) / _STATUS, dict(status))
            self._shown = status

    def status(self) -> dict[str, Any] | None:
        """None if no agent has run here."""
        return read_json(self._directory / _STATUS)
