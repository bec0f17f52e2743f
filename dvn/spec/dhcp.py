"""What a network's machines are told: addresses, resolvers, a domain."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from dvn.forms import Model, fault
from dvn.values import Address, AddressField, NotInFiles, one_or_more

_UNITS = {"m": 60, "h": 3600, "d": 86400}
SHORTEST, LONGEST = 120, 30 * 86400
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_EXAMPLE = "write it like 30m, 1h or 1d"


def _lease(value: Any) -> str:
    text = str(value).strip()
    found = re.fullmatch(r"([0-9]+)([mhd])", text)
    if not found or isinstance(value, bool):
        raise fault(f"{value!r} is not a lease time", _EXAMPLE)
    if not SHORTEST <= seconds(text) <= LONGEST:
        raise fault(f"a lease time of {text} is out of range", "use 2m to 30d")
    return text


def seconds(lease: str) -> int:
    """Of a lease time that was checked."""
    return int(lease[:-1]) * _UNITS[lease[-1]]


def _domain(value: Any) -> str:
    text = value.strip().lower().rstrip(".") if isinstance(value, str) else ""
    if not text or len(text) > 200 or not all(map(_LABEL.fullmatch, text.split("."))):
        raise fault(f"{value!r} is not a domain", "write it like farm.example.org")
    return text


def _range(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise fault("a range has two addresses", "write [10.9.0.100, 10.9.0.199]")
    return value


LeaseTime = Annotated[str, BeforeValidator(_lease)]
Domain = Annotated[str, BeforeValidator(_domain)]
Range = Annotated[tuple[AddressField, AddressField], BeforeValidator(_range)]


class Dhcp(Model):
    """DHCP for the network's machines: IPv4, and IPv6 with router advertisements, as far as the
    network has a prefix of the family. A port with `mac` and `address` always gets its own."""

    range: Range | None = None
    """First and last of the addresses that are given out; without it all of the prefix that are
    nobody's (of an IPv6 prefix, 65,536 of them)."""
    lease: LeaseTime = "1h"
    """How long an address is given for; machines ask again after half of it."""
    dns: Annotated[tuple[AddressField, ...], BeforeValidator(one_or_more)] = ()
    """The resolvers that machines are told of. Without it the gateway resolves for them, as it does
    for itself."""
    domain: Domain | None = None
    """The machines' domain. The gateway resolves their names in it."""
    reserved: Annotated[tuple[AddressField, ...], BeforeValidator(one_or_more), NotInFiles()] = ()
    """Addresses that are given otherwise, such as to borrowed machines."""

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if value is True:
            return {}
        if not isinstance(value, dict | Dhcp):
            raise fault(
                f"{value!r} says nothing about DHCP", "write `dhcp: true`, or its keys below it"
            )
        return value


def off_is_none(value: Any) -> Any:
    """`dhcp: false` is as good as leaving it out."""
    return None if value is False else value


def told_resolvers(dhcp: Dhcp, version: int) -> tuple[Address, ...]:
    return tuple(address for address in dhcp.dns if address.version == version)
