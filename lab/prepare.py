"""What takes minutes and a mirror, made before: the lab's own kernel reaches no mirror.

python -m lab.prepare NAME...     NAME: a batch system of `./run demo --lrms`, or guest
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from lab.host import LabError
from lab.scenarios.farms import KINDS
from lab.virt.disk import debian_disk

Say = Callable[[str], None]

GUEST = "guest"  # the disk that a hypervisor's machines boot from


def _nothing(_: Say) -> None:
    """A batch system whose packages are this machine's own."""


MAKERS: Mapping[str, Callable[[Say], object]] = {
    **{name: kind.tree.build if kind.tree else _nothing for name, kind in KINDS.items()},
    GUEST: debian_disk,
}


def _say(line: str) -> None:
    sys.stderr.write(f"run: {line}\n")


def main(names: Sequence[str], makers: Mapping[str, Callable[[Say], object]] = MAKERS) -> int:
    """0: all are there. 1: one could not be made, and why is said. 2: no such name: nothing is."""
    unknown = [name for name in names if name not in makers]
    if unknown:
        sys.stderr.write(f"nothing to prepare for {', '.join(unknown)}: {', '.join(makers)}\n")
        return 2
    try:
        for name in names:
            makers[name](_say)
    except LabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
