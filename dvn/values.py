"""The kinds of value a site file holds: names, interfaces, prefixes, addresses, as pydantic types.

Each is strict, and says in words what is wrong and what to write instead.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator

from dvn.forms import fault

Address: TypeAlias = IPv4Address | IPv6Address
Prefix: TypeAlias = IPv4Network | IPv6Network

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_UNUSABLE = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/128",
        "::1/128",
        "fe80::/10",
        "ff00::/8",
    )
)


def _name(value: Any) -> str:
    text = _text(value, "a name")
    if not _NAME.fullmatch(text):
        raise fault(
            f"the name {text!r} cannot be used",
            "use at most 31 lower-case letters, digits and `-`, a letter first",
        )
    return text


def _interface(value: Any) -> str:
    text = _text(value, "an interface")
    if len(text) > 15:
        raise fault(
            f"interface name {text!r} has {len(text)} characters",
            "Linux allows 15; check it with `ip link`",
        )
    if not text or text in {".", ".."} or re.search(r"[/\s:%\"\\*]", text) or not text.isascii():
        raise fault(
            f"{text!r} cannot be the name of an interface", "write it as `ip link` shows it"
        )
    return text


def _prefix(value: Any) -> Prefix:
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    text = _text(value, "a prefix")
    example = "write it like 10.9.0.0/24 or fd00:9::/64"
    if "/" not in text:
        raise fault(f"prefix {text!r} has no length", example)
    try:
        network = ip_network(text)
    except ValueError:
        try:
            inside = ip_network(text, strict=False)
        except ValueError:
            raise fault(f"{text!r} is not a prefix", example) from None
        raise fault(f"prefix {text} has host bits set", f"use {inside}") from None
    longest = 30 if network.version == 4 else 126
    if network.prefixlen > longest:
        raise fault(
            f"prefix {network} has no room for a gateway and a machine",
            f"use /{longest} or shorter",
        )
    for unusable in _UNUSABLE:
        if unusable.version == network.version and network.overlaps(unusable):
            raise fault(
                f"prefix {network} overlaps {unusable}, which no network can use",
                "use a private prefix (RFC 1918, RFC 4193) or one of your own",
            )
    return network


def _address(value: Any) -> Address:
    if isinstance(value, IPv4Address | IPv6Address):
        return value
    text = _text(value, "an address")
    try:
        return ip_address(text)
    except ValueError:
        hint = "write it without `/...`" if "/" in text else "write it like 192.0.2.7"
        raise fault(f"{text!r} is not an address", hint) from None


def _unicast(address: Address) -> Address:
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        raise fault(f"{address} is not the address of one machine", "use a unicast address")
    return address


def _mac(value: Any) -> str:
    text = _text(value, "a MAC address").lower().replace("-", ":")
    if not _MAC.fullmatch(text):
        raise fault(f"{text!r} is not a MAC address", "write it like 02:00:00:00:00:03")
    if int(text[:2], 16) & 1:
        raise fault(
            f"{text} is a multicast address, no machine has it", "the first byte must be even"
        )
    return text


def _service(value: Any) -> str:
    text = _text(value, "a service")
    found = re.fullmatch(r"(tcp|udp)/([0-9]{1,5})", text)
    if not found or not 1 <= int(found[2]) <= 65535:
        raise fault(f"{text!r} is not a service", "write it like tcp/22 or udp/53")
    return f"{found[1]}/{int(found[2])}"


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise fault(
            f"{value!r} is not {what}",
            "put it in quotes" if value is not None else "write it after the colon",
        )
    return value


def one_or_more(value: Any) -> Any:
    """A lone value where a list may stand is a list of one."""
    return value if isinstance(value, list | tuple) else (value,)


def in_range(what: str, low: int, high: int) -> Callable[[int], int]:
    """A validator with the words of a person: `VLAN id 5000 is out of range; use 1 to 4094`."""

    def check(value: int) -> int:
        if not low <= value <= high:
            raise fault(f"{what} {value} is out of range", f"use {low} to {high}")
        return value

    return check


def not_yet(what: str) -> BeforeValidator:
    """Refuses a key that a later version will know; leaving it out is fine."""

    def refuse(value: Any) -> None:
        if value is not None and value is not False:
            raise fault(f"{what} is not in this version", "leave it out")

    return BeforeValidator(refuse)


def _file(value: Any) -> str:
    text = _text(value, "the path of a file")
    if not text.startswith("/") or "\0" in text:
        raise fault(f"{text!r} is not a full path", "write it from / on, like /etc/dvn/secret")
    return text


Name = Annotated[str, BeforeValidator(_name)]
Interface = Annotated[str, BeforeValidator(_interface)]
PrefixField = Annotated[IPv4Network | IPv6Network, BeforeValidator(_prefix)]
AddressField = Annotated[
    IPv4Address | IPv6Address, AfterValidator(_unicast), BeforeValidator(_address)
]
SecretFile = Annotated[str, BeforeValidator(_file)]
"""The path of a file with a secret in it: the site file itself holds none."""
Mac = Annotated[str, BeforeValidator(_mac)]
Service = Annotated[str, BeforeValidator(_service)]


def site_name(value: object) -> str:
    """A site's name that came from outside. ValueError if it is none."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{value!r} is not the name of a site")
    return value


def _public_key(value: Any) -> str:
    example = "write what `wg pubkey` shows on the other host, 44 characters"
    if not isinstance(value, str):
        raise fault("a WireGuard public key is text", example)
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32 or len(value) != 44:
        raise fault(f"{value!r} is not a WireGuard public key", example)
    return value


PublicKey = Annotated[str, BeforeValidator(_public_key)]


@dataclass(frozen=True)
class NotInFiles:
    """Marks a field that programs set and site files may not."""
