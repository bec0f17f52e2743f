"""Every revision of a site that was applied or tried, and what came of it.

`STATE/history/SITE/0007.json`: the file's text, the spec it means, who, when, the plan, the result.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dvn.change.files import ChangeError, create_json, own_directory, read_json, remove
from dvn.spec import Network, Site, site_from_json

KEEP = 200
DONE = "done"
_PLAN_LINES = 10_000  # kept of a plan: the first revision of 4,000 networks has 60,000


@dataclass(frozen=True)
class Revision:
    """`result`: `done`, or why it is not in force. `number` 0: not written yet."""

    site: str
    time: str  # UTC, ISO 8601
    who: str
    source: str  # the file's path, or which program asked
    text: str  # the file as it was; "" where there was none
    spec: Mapping[str, Any]  # the site without the tunnels of leases
    plan: tuple[str, ...]
    result: str = DONE
    number: int = 0
    boot: str = ""  # of the machine's start in which it was applied

    @property
    def in_force(self) -> bool:
        return self.result == DONE

    def site_spec(self) -> Site:
        """Raises SpecError if this version of the software does not know such a site any more."""
        return site_from_json(self.spec)


class History:
    """The revisions of all sites below `root`. Reading needs no directory to be there."""

    def __init__(self, root: Path, *, keep: int = KEEP) -> None:
        self._root = root / "history"
        self._keep = keep

    def add(self, revision: Revision) -> Revision:
        """Write it under the next free number; the oldest beyond `keep` go."""
        own_directory(self._root)
        directory = own_directory(self._root / revision.site)
        kept = replace(revision, plan=revision.plan[:_PLAN_LINES])
        while True:
            numbers = self._numbers(revision.site)
            numbered = replace(kept, number=max(numbers, default=0) + 1)
            try:
                create_json(directory / _name(numbered.number), asdict(numbered))
            except FileExistsError:
                continue  # another process was quicker
            self._prune(revision.site, (*numbers, numbered.number))
            return numbered

    def _prune(self, site: str, numbers: tuple[int, ...]) -> None:
        """What is in force is never pruned, however many trials came after it."""
        surplus = sorted(numbers)[: -self._keep]
        if not surplus:
            return
        current = self.current(site)
        for number in surplus:
            if current is None or number != current.number:
                remove(self._root / site / _name(number))

    def revisions(self, site: str) -> tuple[Revision, ...]:
        """All that are kept, the newest last."""
        found = (self.get(site, number) for number in self._numbers(site))
        return tuple(revision for revision in found if revision)

    def get(self, site: str, number: int) -> Revision | None:
        value = read_json(self._root / site / _name(number))
        if value is None:
            return None
        try:
            return Revision(**{**value, "plan": tuple(value["plan"]), "number": number})
        except (KeyError, TypeError) as error:
            where = self._root / site / _name(number)
            raise ChangeError(f"{where} is no revision ({error}): move it away") from error

    def current(self, site: str) -> Revision | None:
        """The newest that was done and stayed."""
        for number in reversed(self._numbers(site)):
            revision = self.get(site, number)
            if revision and revision.in_force:
                return revision
        return None

    def newest_number(self, site: str) -> int:
        return max(self._numbers(site), default=0)

    def sites(self) -> tuple[str, ...]:
        try:
            return tuple(sorted(path.name for path in self._root.iterdir() if path.is_dir()))
        except OSError:
            return ()

    def _numbers(self, site: str) -> tuple[int, ...]:
        try:
            names = [path.name for path in (self._root / site).iterdir()]
        except FileNotFoundError:
            return ()
        except PermissionError as error:
            raise ChangeError(f"cannot read {self._root / site}: run as root") from error
        stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return tuple(sorted(int(stem) for stem in stems if stem.isdigit()))


def _name(number: int) -> str:
    return f"{number:04d}.json"


def static_site(site: Site) -> Site:
    """The site as its file has it: without the tunnels that leases brought, and the ports that
    running machines did."""
    tenants = {
        name: tenant.model_copy(
            update={
                "tunnels": {n: t for n, t in tenant.tunnels.items() if not t.dynamic},
                "networks": {n: without_machines(net) for n, net in tenant.networks.items()},
            }
        )
        for name, tenant in site.tenants.items()
    }
    return site.model_copy(update={"tenants": tenants})


def without_machines(network: Network) -> Network:
    """Without the ports that are there because a machine runs."""
    if not any(port.dynamic for port in network.ports):
        return network
    ports = tuple(port for port in network.ports if not port.dynamic)
    return network.model_copy(update={"ports": ports})


def whoami() -> str:
    """The account, and who became it."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid {os.geteuid()}"
    before = os.environ.get("SUDO_USER")
    return f"{before} as {name}" if before and before != name else name
