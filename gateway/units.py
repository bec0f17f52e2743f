"""The kinds of value only the gateway's sections of a site file hold: durations, money, ranges."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import BeforeValidator

from dvn.forms import fault

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_MOST_ADDRESSES = 65_536
_UNIX_PATH_BYTES = 107  # sizeof(sun_path) - 1, unix(7)


def parse_duration(value: Any) -> timedelta:
    """`2s`, `5m`, `1h30m`, `1d`; a number without a unit is refused, it is always ambiguous."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise fault(f"duration {value} has no unit", f"write {value}s, {value}m or {value}h")
    text = value.strip() if isinstance(value, str) else ""
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise fault(f"{value!r} is not a duration", "write it like 30s, 5m, 1h30m or 1d")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds > 3650 * 86400:
        raise fault(f"duration {text} is longer than ten years", "write a shorter one")
    return timedelta(seconds=seconds)


def _positive(value: Any) -> timedelta:
    duration = parse_duration(value)
    if duration <= timedelta(0):
        raise fault(f"duration {value} is not positive", "write a longer one, such as 2s")
    return duration


def _money(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise fault(f"{value!r} is not an amount of money", "write it like 5.00")
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        raise fault(
            f"{value!r} is not an amount of money", "write it like 5.00, without a currency"
        ) from None
    if not amount.is_finite() or amount < 0:
        raise fault(f"{value} is not an amount of money", "write 0 or more")
    return amount


def _addresses(value: Any) -> tuple[str, ...]:
    """A range `10.9.0.101-10.9.0.150`, one address, or a list of both; in order, each once."""
    items = value if isinstance(value, list | tuple) else [value]
    found: dict[str, None] = {}
    for item in items:
        low, dash, high = str(item).partition("-")
        first, last = _address(low.strip()), _address((high if dash else low).strip())
        if first.version != last.version or int(last) < int(first):
            raise fault(f"{item} is not a range of addresses", "write the lower address first")
        if int(last) - int(first) + len(found) >= _MOST_ADDRESSES:
            raise fault(f"{item} holds too many addresses", f"use at most {_MOST_ADDRESSES}")
        for number in range(int(first), int(last) + 1):
            found[str(type(first)(number))] = None
    if not found:
        raise fault("there is no address", "write a range like 10.9.0.101-10.9.0.150")
    return tuple(found)


def _address(text: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(text)
    except ValueError:
        raise fault(
            f"{text!r} is not an address", "write a range like 10.9.0.101-10.9.0.150"
        ) from None


def _path(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/"):
        raise fault(f"{value!r} is not an absolute path", "start it with /")
    return str(PurePosixPath(value))


def _socket(value: Any) -> str:
    path = _path(value)
    if len(path.encode()) > _UNIX_PATH_BYTES:
        raise fault(
            f"the socket path has {len(path.encode())} bytes",
            f"a Unix socket's path has at most {_UNIX_PATH_BYTES}, see unix(7)",
        )
    return path


Duration = Annotated[timedelta, BeforeValidator(_positive)]
Money = Annotated[Decimal, BeforeValidator(_money)]
Addresses = Annotated[tuple[str, ...], BeforeValidator(_addresses)]
AbsolutePath = Annotated[str, BeforeValidator(_path)]
SocketPath = Annotated[str, BeforeValidator(_socket)]
