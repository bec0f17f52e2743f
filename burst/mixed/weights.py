"""How batch jobs and virtual machines share a host when both want more than there is.

A hold keeps jobs off a machine's cores in the batch system's books; the kernel knows nothing of
that, and neither of disks and caches. Control group weights (Linux, admin-guide/cgroup-v2:
`cpu.weight` and `io.weight`, 1 to 10000, 100 unless set) say who gets how much when both sides are
busy; who is alone gets all. Weights count between siblings: here between the slice in which the
batch system's daemon and its jobs run, and `machine.slice`, where libvirt puts machines.

Disks heed weights when their scheduler is BFQ, or with io.cost; elsewhere the kernel ignores them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from burst.lrms.base import LrmsError
from burst.lrms.command import Result

DEFAULT = 100
TIMEOUT = timedelta(seconds=30)

_SLICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.@-]*\.(slice|service|scope)")


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight of each side, for processors and disks alike."""

    batch: int = DEFAULT
    machines: int = DEFAULT
    batch_slice: str = "system.slice"
    machine_slice: str = "machine.slice"

    def __post_init__(self) -> None:
        for weight in (self.batch, self.machines):
            if not 1 <= weight <= 10_000:
                raise ValueError(f"weight {weight}: must be between 1 and 10000")
        for name in (self.batch_slice, self.machine_slice):
            if not _SLICE.fullmatch(name):
                raise ValueError(f"{name!r} is no unit of systemd such as system.slice")

    @property
    def sides(self) -> tuple[tuple[str, int], ...]:
        return ((self.batch_slice, self.batch), (self.machine_slice, self.machines))

    def neutral(self) -> Weights:
        """What the kernel starts with: for a host that leaves mixed mode."""
        return Weights(DEFAULT, DEFAULT, self.batch_slice, self.machine_slice)


def write(weights: Weights, root: Path) -> list[str]:
    """Set the weights in a cgroup v2 hierarchy mounted at `root`, without systemd.

    Returns what could not be set, for people. BFQ has a file and a range of its own (1 to 1000).
    """
    missing = []
    for unit, weight in weights.sides:
        group = root / unit
        if not group.is_dir():
            missing.append(f"{group}: there is no such control group")
            continue
        disks = (("io.bfq.weight", f"{min(weight, 1000)}"), ("io.weight", f"default {weight}"))
        for files in ((("cpu.weight", f"{weight}"),), disks):
            problems = [problem for name, value in files if (problem := _put(group / name, value))]
            if len(problems) == len(files):
                missing.append(problems[-1])
    return missing


def _put(file: Path, value: str) -> str:
    try:
        with file.open("r+") as there:  # a missing file is a missing controller: none is made
            there.write(value)
    except OSError as error:
        return f"{file}: {error.strerror}"
    return ""


def commands(weights: Weights, uri: str) -> list[list[str]]:
    """What sets them through systemd, until the next boot, on the host of a libvirt URI.

    systemd owns the hierarchy: what is written past it is undone when it next looks.
    """
    begin = [*_reach(uri), "systemctl", "set-property", "--runtime"]
    return [
        [*begin, unit, f"CPUWeight={weight}", f"IOWeight={weight}"]
        for unit, weight in weights.sides
    ]


def _reach(uri: str) -> list[str]:
    parts = urlsplit(uri)
    if not parts.scheme.endswith("+ssh") or not parts.hostname:
        return []
    who = f"{parts.username}@{parts.hostname}" if parts.username else parts.hostname
    port = ["-p", str(parts.port)] if parts.port else []
    # As libvirt's own ssh does ("Connection URIs", ssh transport).
    said = parse_qs(parts.query)
    key = ["-i", said["keyfile"][-1]] if "keyfile" in said else []
    trust = ["-o", "StrictHostKeyChecking=no"] if said.get("no_verify", ["0"])[-1] == "1" else []
    options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", *key, *trust, *port]
    return ["ssh", *options, "--", who]


RETRY = timedelta(minutes=5)


class Balance:
    """Sets the weights of one host when they should be others than were set last. What failed is
    tried again after a while: it may be an ssh login each time."""

    def __init__(
        self,
        weights: Weights,
        uri: str,
        run: Callable[[Sequence[str], str, timedelta], Result],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` in seconds, from any beginning."""
        self._weights = weights
        self._uri = uri
        self._run = run
        self._clock = clock
        self._done: Weights | None = None
        self._failed: tuple[Weights, float] | None = None

    def set(self, enabled: bool) -> str:
        """Returns what went wrong, for people; "" also while it is not tried again yet."""
        wanted = self._weights if enabled else self._weights.neutral()
        if wanted == self._done or self._waits(wanted):
            return ""
        for argv in commands(wanted, self._uri):
            try:
                done = self._run(argv, "", TIMEOUT)
                problem = done.said if done.status != 0 else ""
            except LrmsError as error:
                problem = str(error)
            if problem:
                self._failed = (wanted, self._clock())
                return f"{' '.join(argv[argv.index('systemctl') :])}: {problem}"
        self._done, self._failed = wanted, None
        return ""

    def _waits(self, wanted: Weights) -> bool:
        if self._failed is None:
            return False
        weights, when = self._failed
        return weights == wanted and self._clock() - when < RETRY.total_seconds()
