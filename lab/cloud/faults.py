"""The switchboard: what the lab EC2 does wrong on purpose. All off by default.

Another process sets the same switches by `POST /_lab/faults` at the API endpoint, with a JSON
object of the fields below (see `Faults.update`); `GET` shows them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


class UnknownFaultError(ValueError):
    """No such switch, or a value it cannot take; the message lists what there is."""


@dataclass(frozen=True, slots=True)
class Throttle:
    """A token bucket in front of the actions that start with one of `actions` ("" is all)."""

    capacity: float
    refill_per_s: float
    actions: tuple[str, ...] = ("",)


@dataclass
class Faults:
    """Set a field and it holds from the next request on. Durations in seconds.

    throttle: None, or a bucket added to the account's own; `Throttle(0, 0)` refuses everything.
    capacity: (type, zone) -> how many may run at once; "*" stands for any type or zone.
    hide_new_for: a new instance, or a new tag, is absent from every Describe for that long.
    boot_never: the instance stays `pending`.
    guest_hangs: the instance is `running`, but nothing ever runs inside.
    user_data_fails: cloud-init's script part exits 1 at once; the machine goes on running.
    api_down: every request gets HTTP 503 without an EC2 error in it.
    launch_timeout_after_success: so many next RunInstances are done, but never answered.
    answer_delay: every request is answered that much later.
    interrupt_spot_after: a spot instance gets its notice so long after it started; 0: never.
    interruption_notice: and is taken back that much later.
    """

    throttle: Throttle | None = None
    capacity: dict[tuple[str, str], int] = field(default_factory=dict)
    hide_new_for: float = 0.0
    boot_never: bool = False
    guest_hangs: bool = False
    user_data_fails: bool = False
    api_down: bool = False
    launch_timeout_after_success: int = 0
    answer_delay: float = 0.0
    interrupt_spot_after: float = 0.0
    interruption_notice: float = 120.0
    changed: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def no_capacity(self, type_name: str = "*", zone: str = "*", *, limit: int = 0) -> None:
        """At most `limit` instances of this type in this zone at once."""
        self.capacity[type_name, zone] = limit

    def free_capacity(
        self, type_name: str, zone: str, running: Mapping[tuple[str, str], int]
    ) -> int:
        """How many more may start, given how many run by (type, zone)."""
        free = 10_000
        for (of_type, in_zone), limit in self.capacity.items():
            if of_type in ("*", type_name) and in_zone in ("*", zone):
                used = sum(
                    count
                    for (t, z), count in running.items()
                    if of_type in ("*", t) and in_zone in ("*", z)
                )
                free = min(free, limit - used)
        return max(free, 0)

    def take_lost_answer(self) -> bool:
        """True when the answer of this launch shall be lost; counts down."""
        if self.launch_timeout_after_success <= 0:
            return False
        self.launch_timeout_after_success -= 1
        return True

    def clear(self) -> None:
        """All switches off."""
        for item in fields(self):
            if item.name not in ("changed", "capacity"):
                setattr(self, item.name, item.default)
        self.capacity = {}
        self._notify()

    def update(self, values: Mapping[str, Any]) -> None:
        """Set switches from JSON.

        `throttle` is null or an object with the fields of `Throttle`; `capacity` an object of
        "type/zone" to a number; `clear: true` first switches everything off.
        Raises `UnknownFaultError`; then nothing was changed.
        """
        known = {f.name for f in fields(self)} - {"changed"}
        if wrong := sorted(set(values) - known - {"clear"}):
            raise UnknownFaultError(
                f"there is no fault {', '.join(wrong)}; there are: "
                f"{', '.join(sorted(known))}, clear"
            )
        new: dict[str, Any] = {}
        try:
            for name in known & set(values):
                new[name] = _converted(name, values[name])
        except (TypeError, ValueError, KeyError) as error:
            raise UnknownFaultError(f"wrong value: {error}") from error
        if values.get("clear"):
            self.clear()
        for name, value in new.items():
            setattr(self, name, value)
        self._notify()

    def shown(self) -> dict[str, Any]:
        """What `update` would take to make the same state."""
        throttle = self.throttle and {
            "capacity": self.throttle.capacity,
            "refill_per_s": self.throttle.refill_per_s,
            "actions": list(self.throttle.actions),
        }
        rest = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("changed", "throttle", "capacity")
        }
        capacity = {f"{t}/{z}": limit for (t, z), limit in self.capacity.items()}
        return {**rest, "throttle": throttle, "capacity": capacity}

    def _notify(self) -> None:
        with self.changed:
            self.changed.notify_all()


def _converted(name: str, value: Any) -> Any:
    if name == "throttle":
        if value is None:
            return None
        known = dict(value)
        known["actions"] = tuple(known.get("actions", ("",)))
        return Throttle(**known)
    if name == "capacity":
        pairs = (key.partition("/") for key in value)
        return {(t or "*", z or "*"): int(value[f"{t}{s}{z}"]) for t, s, z in pairs}
    kind: type = type(getattr(Faults, name))
    if kind is bool and not isinstance(value, bool):
        raise TypeError(f"{name} is true or false, not {value!r}")
    return kind(value)
