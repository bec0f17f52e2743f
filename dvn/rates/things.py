"""What caps a rate in the kernel: a shaper on a device, and the detour of what comes in by one.

Only what leaves a device can be queued. What *comes in* by a port or a bridge is led through a
device made for that (ifb), which has the shaper, and goes on from there as if nothing had been:
the filters still see the port.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from dvn.spec.rate import written


def major(site: str) -> int:
    """The handle of our queues says whose they are: queues have no other mark. Between 0x4000 and
    0x7FFF: people number theirs from 1, the kernel from 0x8000 (net/sched/sch_api.c)."""
    return 0x4000 | int.from_bytes(hashlib.sha256(site.encode()).digest()[:2], "big") & 0x3FFF


@dataclass(frozen=True)
class Shaper:
    """A token bucket (tc-tbf(8)) as the root queue of `on`, with fq_codel behind it, so that one
    flow that fills the cap does not delay the others. `fair` is false where that is missing."""

    on: str
    bits: int  # per second
    site: str
    fair: bool = True
    kind: Literal["rate"] = "rate"
    rank: int = -1  # before the link goes up: nothing passes uncapped

    @property
    def key(self) -> tuple[object, ...]:
        return (self.on,)

    @property
    def link(self) -> str | None:
        return self.on

    def __str__(self) -> str:
        return f"of {self.on}: {written(self.bits)}{'' if self.fair else ', without fq_codel'}"


@dataclass(frozen=True)
class Detour:
    """What comes in by `on` goes through `through` first (tc-mirred(8)). `through` is "" where the
    way in is prepared (clsact) and nothing is led off."""

    on: str
    through: str
    site: str
    kind: Literal["detour"] = "detour"
    rank: int = 1  # after the device is up, which would drop what it gets before

    @property
    def key(self) -> tuple[object, ...]:
        return (self.on,)

    @property
    def link(self) -> str | None:
        return self.on

    def __str__(self) -> str:
        return f"of {self.on} through {self.through or 'nothing'}"
