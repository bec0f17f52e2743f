"""Not more requests than a provider takes: token buckets on our side of the wire.

A request that would be refused is not sent: it would only delay the next one. The figures are AWS's
defaults ("Request throttling for the Amazon EC2 API", docs.aws.amazon.com/ec2/latest/devguide/
ec2-api-throttling.html): by request, and for some by machine, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from burst.providers.base import Throttled


@dataclass(frozen=True, slots=True)
class Rate:
    """So many at once, and so many more each second."""

    burst: float
    per_second: float


EC2_REQUESTS: Mapping[str, Rate] = {
    "RunInstances": Rate(5, 2),
    "TerminateInstances": Rate(100, 5),
    "Describe": Rate(100, 20),
}
EC2_MACHINES: Mapping[str, Rate] = {
    "RunInstances": Rate(1000, 2),
    "TerminateInstances": Rate(1000, 20),
}


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: datetime


class Pace:
    """One account's buckets. Not for several threads at once in one call."""

    def __init__(
        self,
        clock: Callable[[], datetime],
        requests: Mapping[str, Rate] = EC2_REQUESTS,
        machines: Mapping[str, Rate] = EC2_MACHINES,
    ) -> None:
        self._clock = clock
        self._rates = {
            **requests,
            **{f"{name} of machines": rate for name, rate in machines.items()},
        }
        self._buckets: dict[str, _Bucket] = {}

    def take(self, action: str, machines: int = 0) -> None:
        """Count one request, for so many machines. Raises `Throttled` if it must wait."""
        wanted = [(action, 1.0)]
        if machines:
            wanted.append((f"{action} of machines", float(machines)))
        known = [(name, amount) for name, amount in wanted if name in self._rates]
        for name, amount in known:
            short = amount - self._filled(name).tokens
            if short > 0:
                wait = short / self._rates[name].per_second
                raise Throttled(f"our own pace: {name} is asked again in {wait:.0f} s")
        for name, amount in known:
            self._buckets[name].tokens -= amount

    def _filled(self, name: str) -> _Bucket:
        now, rate = self._clock(), self._rates[name]
        bucket = self._buckets.setdefault(name, _Bucket(rate.burst, now))
        passed = max((now - bucket.at) / timedelta(seconds=1), 0.0)
        bucket.tokens = min(rate.burst, bucket.tokens + passed * rate.per_second)
        bucket.at = now
        return bucket
