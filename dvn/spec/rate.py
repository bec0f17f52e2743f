"""Rates as `tc` writes them: `50mbit`. Bits per second, decimal multiples."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from dvn.forms import Model, fault

_UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9, "tbit": 10**12}
_EXAMPLE = "write it like 500kbit, 50mbit, 2.5gbit"
LOWEST, HIGHEST = 64 * 10**3, 10**12


def _rate(value: Any) -> str:
    """A rate in its shortest form, so that two ways to write it are one value."""
    text = str(value).strip().lower()
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([a-z]*)", text)
    if not found or isinstance(value, bool):
        raise fault(f"{value!r} is not a rate", _EXAMPLE)
    number, unit = found.groups()
    if not unit:
        raise fault(f"rate {text} has no unit", _EXAMPLE)
    if unit in {"bps", "kbps", "mbps", "gbps", "tbps"}:
        # tc(8) reads it as bytes, most people mean bits.
        raise fault(f"rate {text}: `{unit}` may mean bits or bytes", _EXAMPLE)
    if unit not in _UNITS:
        raise fault(f"rate {text}: `{unit}` is not a unit", _EXAMPLE)
    bits = round(float(number) * _UNITS[unit])
    if not LOWEST <= bits <= HIGHEST:
        raise fault(f"rate {text} is out of range", f"use {written(LOWEST)} to {written(HIGHEST)}")
    return written(bits)


def bits(rate: str) -> int:
    """Bits per second of a rate that was checked."""
    number, unit = re.findall(r"[0-9]+|[a-z]+", rate)
    return int(number) * _UNITS[unit]


def written(bits: int) -> str:
    """`50mbit` for 50,000,000: the largest unit that leaves a whole number."""
    for unit, size in reversed(_UNITS.items()):
        if bits % size == 0 and bits >= size:
            return f"{bits // size}{unit}"
    return f"{bits}bit"


BitRate = Annotated[str, BeforeValidator(_rate)]


class Rate(Model):
    """The most that passes, each way; no limit for a way that is left out."""

    model_config = ConfigDict(populate_by_name=True)

    inward: BitRate | None = Field(None, alias="in", examples=["1gbit"])
    """What the machines receive."""
    outward: BitRate | None = Field(None, alias="out", examples=["1gbit"])
    """What the machines send."""

    @model_validator(mode="before")
    @classmethod
    def _both_ways(cls, value: Any) -> Any:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            rate = _rate(value)
            return {"inward": rate, "outward": rate}
        return value

    @model_validator(mode="after")
    def _says_something(self) -> Rate:
        if self.inward is None and self.outward is None:
            raise fault("the rate limits nothing", "write {in: 1gbit, out: 1gbit}, or one of them")
        return self
