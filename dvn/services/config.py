"""What the services of one network are to do: frozen values, and JSON for the process that serves.

That process loads no pydantic: it trusts what it reads, since only root can write it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Literal

from dvn.ipam import Address, Span

# Files of the serving process, below its directory.
CONFIG, LOCK, CONTROL, LOG = "config.json", "lock", "control", "log"


@dataclass(frozen=True)
class Family:
    """Of one family: the gateway's address, which addresses are given out, what is told besides.

    `fixed`: (MAC address, address). `resolvers`: those machines are told of.
    """

    gateway: Address
    length: int
    span: Span
    reserved: tuple[Address, ...] = ()
    fixed: tuple[tuple[str, Address], ...] = ()
    resolvers: tuple[Address, ...] = ()


@dataclass(frozen=True)
class Service:
    """What is served in one network, as a thing of the kernel's state (kernel/things.py).

    `mac` and `link_local` are the bridge's; `resolves`: whether the gateway answers DNS.
    """

    site: str
    network: str  # TENANT/NETWORK
    bridge: str
    mac: str
    mtu: int
    lease_s: int
    four: Family | None = None
    six: Family | None = None
    link_local: str = ""
    resolves: bool = True
    domain: str = ""
    kind: Literal["service"] = "service"
    rank: int = 9  # the last: what it answers on is there

    @property
    def key(self) -> tuple[object, ...]:
        return (self.network,)

    @property
    def link(self) -> str | None:
        """None: the process must be told that a network is gone."""
        return None

    def families(self) -> tuple[Family, ...]:
        return tuple(family for family in (self.four, self.six) if family)

    def __str__(self) -> str:
        said = [f"{family.span.first}-{family.span.last}" for family in self.families()]
        more = [f"mtu {self.mtu}"] + (["dns"] if self.resolves else [])
        fixed = sum(len(family.fixed) for family in self.families())
        more += [f"{fixed} fixed"] if fixed else []
        return f"of {self.bridge}: dhcp {', '.join(said)}, {', '.join(more)}"


def to_json(services: Iterable[Service]) -> str:
    """One line a network, in their order."""
    rows = (json.dumps(_plain(service), default=str) for service in services)
    return "[\n" + ",\n".join(rows) + "\n]\n"


def from_json(text: str) -> tuple[Service, ...]:
    """Raises ValueError, KeyError or TypeError for what `to_json` did not write."""
    return tuple(_service(row) for row in json.loads(text))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(service: Service) -> dict[str, Any]:
    row = dataclasses.asdict(service)
    del row["kind"], row["rank"]
    return row


def _service(row: Mapping[str, Any]) -> Service:
    return Service(**{**row, "four": _family(row["four"]), "six": _family(row["six"])})


def _family(row: Mapping[str, Any] | None) -> Family | None:
    if row is None:
        return None
    return Family(
        gateway=ip_address(row["gateway"]),
        length=int(row["length"]),
        span=Span(ip_address(row["span"]["first"]), ip_address(row["span"]["last"])),
        reserved=_addresses(row["reserved"]),
        fixed=tuple((mac, ip_address(address)) for mac, address in row["fixed"]),
        resolvers=_addresses(row["resolvers"]),
    )


def _addresses(texts: Iterable[str]) -> tuple[IPv4Address | IPv6Address, ...]:
    return tuple(map(ip_address, texts))
