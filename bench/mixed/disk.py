"""A disk that answers after a time of its own and one request at a time, under BFQ: the kernel's
null_blk, since an emulated machine's own disk is the host's page cache."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LATENCY_NS = 500_000
_DEVICE = Path("/dev/nullb0")


@contextmanager
def slow_disk() -> Iterator[Path | None]:
    """The device; None where the kernel has none, or no BFQ."""
    made = _modprobe("bfq") and _modprobe(
        "null_blk",
        "nr_devices=1",
        "queue_mode=2",
        "submit_queues=1",
        "hw_queue_depth=1",
        "irqmode=2",
        f"completion_nsec={_LATENCY_NS}",
        "gb=4",
    )
    scheduler = Path("/sys/block/nullb0/queue/scheduler")
    try:
        if not made or not _DEVICE.exists() or not scheduler.exists():
            yield None
            return
        scheduler.write_text("bfq")
        yield _DEVICE
    finally:
        if made:
            subprocess.run(["modprobe", "-r", "null_blk"], check=False, timeout=30)


def _modprobe(*argv: str) -> bool:
    done = subprocess.run(["modprobe", *argv], check=False, capture_output=True, timeout=60)
    return done.returncode == 0
