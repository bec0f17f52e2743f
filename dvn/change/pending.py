"""A change that waits to be confirmed: written before the act, gone when it is decided.

`STATE/change/SITE.json` holds what was tried and what to go back to. Two lock files beside it:
`SITE.lock` is held while a change is decided, so that it is confirmed or undone and never both;
`SITE.guard` for as long as a guard lives (guard.py), or the command that applies for good: that is
its own guard, and whoever finds its file without it knows that it was killed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dvn.change import snapshot
from dvn.change.files import (
    ChangeError,
    locked,
    own_directory,
    read_json,
    remove,
    try_lock,
    write_json,
)
from dvn.kernel.state import KernelState
from dvn.spec import Site, site_from_json

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PATIENCE_S = 60.0

State = Literal["applying", "trying", "undoing"]


@dataclass(frozen=True)
class Pending:
    """`deadline` in seconds of CLOCK_BOOTTIME of the boot `boot`: a changed wall clock moves it
    not, and after a restart of the machine there is nothing to undo."""

    site: str
    who: str
    source: str
    text: str
    spec: Mapping[str, Any]
    plan: tuple[str, ...]
    started: str  # UTC, ISO 8601
    timeout: float  # seconds
    deadline: float
    boot: str
    before: Mapping[str, Any]  # a snapshot
    watch: str | None = None  # the operator's address, whose loss undoes
    state: State = "trying"
    reason: str = ""  # why it is being undone

    def snapshot(self) -> KernelState:
        return snapshot.from_json(self.before)

    def site_spec(self) -> Site:
        return site_from_json(self.spec)

    def left(self, now: float) -> float:
        """Seconds until it is undone."""
        return max(0.0, self.deadline - now)


class PendingStore:
    def __init__(self, root: Path) -> None:
        self._root = root / "change"

    def begin(self, pending: Pending) -> None:
        """Write the intention. ChangeError if another change of this site is under way."""
        with self.deciding(pending.site):
            self.refuse(pending.site)
            write_json(self._path(pending.site), asdict(pending))

    def refuse(self, site: str) -> None:
        """ChangeError if a change of this site is under way."""
        other = self.get(site)
        if other is None:
            return
        if other.state == "applying":
            raise ChangeError(f"{other.who} is changing site {site} at this moment: try again")
        raise ChangeError(
            f"another change of site {site} waits to be confirmed: "
            f"dvn confirm {site}, or dvn confirm {site} --undo"
        )

    def get(self, site: str) -> Pending | None:
        value = read_json(self._path(site))
        if value is None:
            return None
        try:
            return Pending(**{**value, "plan": tuple(value["plan"])})
        except (KeyError, TypeError) as error:
            where = self._path(site)
            raise ChangeError(f"{where} is no change ({error}): move it away") from error

    def undoing(self, pending: Pending, reason: str) -> Pending:
        """Say that it is being undone, before it is."""
        changed = replace(pending, state="undoing", reason=reason)
        write_json(self._path(pending.site), asdict(changed))
        return changed

    def end(self, site: str) -> None:
        remove(self._path(site))

    def sites(self) -> tuple[str, ...]:
        try:
            names = [path.name for path in self._root.iterdir()]
        except OSError:
            return ()
        return tuple(
            sorted(
                name.removesuffix(".json")
                for name in names
                if name.endswith(".json") and not name.startswith(".")
            )
        )

    def deciding(self, site: str) -> AbstractContextManager[None]:
        own_directory(self._root)
        return locked(self._root / f"{site}.lock", patience_s=_PATIENCE_S)

    @contextmanager
    def guarding(self, site: str) -> Iterator[None]:
        """Be the guard of what one does oneself. ChangeError if there is one."""
        with self.guard_file(site).open("a") as file:
            if not try_lock(file.fileno()):
                raise ChangeError(f"somebody is changing site {site} at this moment: try again")
            yield

    def guard_file(self, site: str) -> Path:
        own_directory(self._root)
        return self._root / f"{site}.guard"

    def _path(self, site: str) -> Path:
        return self._root / f"{site}.json"


def boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def boot_time() -> float:
    """Seconds since this boot, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
