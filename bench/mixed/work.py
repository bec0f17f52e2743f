"""The work of both sides: processors, and a disk. Run as `python -m bench.mixed.work GROUP ...`.

    GROUP cpu SECONDS         counts additions
    GROUP disk SECONDS FILE   counts reads of 4 KiB at random places, past the page cache

Enters the control group, says `ready`, waits for a line, works, prints how many it did. Plain
Python: both sides do the same, and only the ratio is looked at.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
import time
from pathlib import Path

BLOCK = 4096
_BATCH = 20_000


def cpu(seconds: float) -> int:
    done, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        total = 0
        for number in range(_BATCH):
            total += number
        done += _BATCH
    return done


def disk(seconds: float, path: Path) -> int:
    done, end = 0, time.monotonic() + seconds
    handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        blocks = os.lseek(handle, 0, os.SEEK_END) // BLOCK
        buffer = mmap.mmap(-1, BLOCK)  # aligned, as O_DIRECT wants it (open(2))
        while time.monotonic() < end:
            os.preadv(handle, [buffer], random.randrange(blocks) * BLOCK)
            done += 1
    finally:
        os.close(handle)
    return done


def main(group: str, kind: str, seconds: str, *rest: str) -> None:
    Path(group, "cgroup.procs").write_text("0")  # the writer itself (cgroups(7))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    count = cpu(float(seconds)) if kind == "cpu" else disk(float(seconds), Path(rest[0]))
    sys.stdout.write(f"{count}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
