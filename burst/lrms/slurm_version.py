"""Which slurmds a farm's slurmctld takes, asked of slurmctld itself."""

from __future__ import annotations

import re
from datetime import timedelta

from burst.lrms.base import LrmsError
from burst.lrms.command import Runner
from burst.lrms.slurm import run

# slurmctld takes slurmds of its own release and of some before (Slurm's "Upgrade Guide").
_RELEASES = (
    (21, 8), (22, 5), (23, 2), (23, 11), (24, 5), (24, 11), (25, 5), (25, 11), (26, 5),
)  # fmt: skip
_VERSION = re.compile(r"^SLURM_VERSION\s*=\s*(\d+)\.(\d+)", re.MULTILINE)

Version = tuple[int, int]  # (22, 5) for 22.05


class ControllerVersion:
    """Call it for slurmctld's version; None while nobody says. Asked for until it is known."""

    def __init__(self, runner: Runner = run) -> None:
        self._run = runner
        self._known: Version | None = None

    def __call__(self) -> Version | None:
        if self._known is None:
            try:
                said = self._run(("scontrol", "show", "config"), "", timedelta(seconds=20)).out
            except LrmsError:
                return None
            found = _VERSION.search(said)
            self._known = (int(found[1]), int(found[2])) if found else None
        return self._known


def oldest_slurmd(controller: Version) -> Version | None:
    """The oldest release whose slurmd this slurmctld takes; None for one not known here."""
    if controller not in _RELEASES:
        return None
    before = 3 if controller >= (24, 11) else 2
    return _RELEASES[max(_RELEASES.index(controller) - before, 0)]
