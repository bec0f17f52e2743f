"""How often things go wrong in one story: drawn from its seed, many of them not at all."""

from __future__ import annotations

import random
from dataclasses import dataclass


class Killed(BaseException):
    """kill -9 of the gateway; nothing but the world may catch it."""


class Broken(AssertionError):  # noqa: N818 - the product is
    """Something happened that must never happen."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities a call (or a machine, or a round), and seconds where the name says so."""

    kill: float  # the gateway dies before, within or after a call
    lost_before: float  # no answer, and nothing was done
    lost_after: float  # no answer, and it was done
    duplicate: float  # the request arrives twice
    throttle: float
    no_capacity: float
    partial: float  # fewer machines than asked for
    outage: float  # a service is away for a while
    store: float  # the database refuses a transaction
    no_boot: float  # a machine whose guest never starts
    no_tunnel: float  # its tunnel never passes a packet
    no_join: float  # it reports a failed join
    wrong_clock: float  # the machine's clock is off
    dies: float  # the machine ends by itself
    hangs: float  # the machine runs, but nothing in it answers any more
    partition: float  # its tunnel is down for a while
    cut_off: float  # nothing passes between it and the gateway, for good
    interrupted: float  # the provider takes it back, after a notice
    rejoins: float  # a node that was removed registers once more
    clock_jump: float  # the gateway's clock is set
    operator: float  # somebody wants a machine back
    farm_operator: float  # somebody drains a node in the batch system
    cancel: float  # a user cancels a job
    rush: float  # a job arrives in the very moment its node is drained, deleted or returned
    lag_s: float  # how late the provider's lists may be
    slow_s: float  # how long a call may take at most

    @classmethod
    def draw(cls, rng: random.Random) -> Faults:
        def rate(most: float) -> float:
            return rng.choice([0.0, 0.0, most * rng.random(), most * rng.random()])

        return cls(
            kill=rate(0.06),
            lost_before=rate(0.15),
            lost_after=rate(0.2),
            duplicate=rate(0.2),
            throttle=rate(0.4),
            no_capacity=rate(0.5),
            partial=rate(0.5),
            outage=rate(0.02),
            store=rate(0.02),
            no_boot=rate(0.5),
            no_tunnel=rate(0.5),
            no_join=rate(0.4),
            wrong_clock=rate(0.3),
            dies=rate(0.4),
            hangs=rate(0.3),
            partition=rate(0.5),
            cut_off=rate(0.3),
            interrupted=rate(0.5),
            rejoins=rate(0.4),
            clock_jump=rate(0.03),
            operator=rate(0.02),
            farm_operator=rate(0.01),
            cancel=rate(0.01),
            rush=rate(0.5),
            lag_s=rng.choice([0.0, 5.0, 20.0, 45.0]),
            slow_s=rng.choice([0.1, 0.1, 2.0, 8.0]),
        )


def quiet() -> Faults:
    """Nothing goes wrong."""
    return Faults(**dict.fromkeys(Faults.__dataclass_fields__, 0.0))
