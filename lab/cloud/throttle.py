"""Token buckets (AWS: "Request throttling for the Amazon EC2 API")."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from lab.cloud.faults import Throttle

# AWS's published limits; the first bucket whose prefix fits counts the request.
REQUESTS: Mapping[str, Throttle] = {
    "RunInstances": Throttle(5, 2),
    "StartInstances": Throttle(5, 2),
    "TerminateInstances": Throttle(100, 5),
    "StopInstances": Throttle(100, 5),
    "Describe": Throttle(100, 20),
    "": Throttle(50, 5),
}
# Besides, these are counted by instance, not by request.
RESOURCES: Mapping[str, Throttle] = {
    "RunInstances": Throttle(1000, 2),
    "StartInstances": Throttle(1000, 2),
    "TerminateInstances": Throttle(1000, 20),
    "StopInstances": Throttle(1000, 20),
}


class Bucket:
    def __init__(self, size: Throttle, now: datetime) -> None:
        self.size = size
        self._tokens = size.capacity
        self._at = now

    def take(self, now: datetime, amount: float = 1) -> bool:
        """True when there were `amount` tokens; else none is taken."""
        gone = max((now - self._at) / timedelta(seconds=1), 0)
        self._tokens = min(self.size.capacity, self._tokens + gone * self.size.refill_per_s)
        self._at = now
        if self._tokens < amount:
            return False
        self._tokens -= amount
        return True


class Throttler:
    """The buckets of one account, and the one a fault may add."""

    def __init__(self, limits: Mapping[str, Throttle] = REQUESTS) -> None:
        self._limits = limits
        self._buckets: dict[str, Bucket] = {}
        self._fault: Bucket | None = None

    def allows(
        self, action: str, now: datetime, fault: Throttle | None = None, instances: int = 0
    ) -> bool:
        """Whether this request passes all its buckets."""
        if fault is None:
            self._fault = None
        elif self._fault is None or self._fault.size != fault:
            self._fault = Bucket(fault, now)
        if fault and self._fault and action.startswith(fault.actions) and not self._fault.take(now):
            return False
        prefix = next((p for p in self._limits if action.startswith(p)), None)
        if prefix is not None:
            key = action if prefix == "" else prefix
            bucket = self._buckets.setdefault(key, Bucket(self._limits[prefix], now))
            if not bucket.take(now):
                return False
        if instances and action in RESOURCES:
            counted = self._buckets.setdefault(f"{action}#", Bucket(RESOURCES[action], now))
            return counted.take(now, instances)
        return True
