"""Deterministic names, MAC addresses and GRE keys: the same declaration, the same values, anywhere.

Nothing is stored: a restart with an empty memory computes what it computed before.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address

# Where the two ends of a WireGuard session have their addresses, inside it. Half of class E
# (RFC 1112, 4): Linux uses it like any other, and no network that a host knows can overlap it.
# IPv4, since it costs 20 bytes less, and what does not fit is broken up instead of lost.
WIREGUARD_INNER = IPv4Network("240.0.0.0/5")

_REMEMBERED = 1 << 16  # names of a large site; each is asked for by several passes
IFNAMSIZ = 15  # usable characters of a Linux interface name (linux/if.h: 16 with the final 0)


def bridge_name(tenant: str, network: str) -> str:
    return _device("b", tenant, network)


def router_name(tenant: str, network: str) -> str:
    return _device("g", tenant, network)


def vlan_name(tenant: str, network: str) -> str:
    return _device("v", tenant, network)


def tunnel_name(tenant: str, tunnel: str) -> str:
    return _device("t", tenant, tunnel)


def network_rate_name(tenant: str, network: str) -> str:
    return _device("r", tenant, network)


def port_rate_name(interface: str) -> str:
    """`q-tap3`: interfaces of this host are known by their names alone."""
    plain = f"q-{interface}"
    if len(plain) <= IFNAMSIZ:
        return plain
    return f"q-{interface[:5]}~{_tail(interface)}"


def wireguard_name(port: int) -> str:
    """A host has one WireGuard device of ours for each UDP port; ports are the host's own."""
    return f"w-{port}"


def wireguard_inner(public_key: str) -> IPv4Address:
    """The address that the host with this WireGuard key has inside its sessions. Both ends know
    both keys, so neither has to be told. 27 bits: of 1,000 peers two get the same one time in 270,
    and checks refuse that."""
    digest = hashlib.sha256(f"dvn wireguard {public_key}".encode()).digest()
    usable = WIREGUARD_INNER.num_addresses - 2
    return WIREGUARD_INNER[1 + int.from_bytes(digest[:8], "big") % usable]


@lru_cache(_REMEMBERED)
def _device(kind: str, tenant: str, name: str) -> str:
    """`b-cms-farm` where that is short and cannot be mistaken, else `b-cmsfa~k3j9f2a`.

    A hyphen inside a name would make `a-b`,`c` and `a`,`b-c` the same device; `~` is in no name, so
    the two forms never meet. 35 bits of hash: 4,000 devices collide once in 4,000 sites, and the
    compiler refuses a spec in which two do.
    """
    plain = f"{kind}-{tenant}-{name}"
    if not {"-", "."} & {*tenant, *name} and len(plain) <= IFNAMSIZ:
        return plain
    return f"{kind}-{re.sub('[-.]', '', tenant + name)[:5]}~{_tail(f'{tenant}/{name}')}"


def _tail(text: str) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode().lower()[:7]


@lru_cache(_REMEMBERED)
def network_number(tenant: str, network: str) -> int:
    """What a network is called in the frame filters' sets: 32 bits, never 0.

    4,000 networks share one in one of 500 sites, and the compiler refuses a spec in which two do.
    """
    digest = hashlib.sha256(f"network/{tenant}/{network}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % (2**32 - 1) + 1


def gre_key(*parts: str) -> int:
    """A GRE key (RFC 2890, 32 bits, never 0) for what `parts` name, such as (site, lease id).

    The key tells tunnels apart; it is no secret.
    """
    digest = hashlib.sha256("/".join(parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") % (2**32 - 1) + 1


@lru_cache(_REMEMBERED)
def link_local(mac: str) -> str:
    """The IPv6 link-local address of a MAC address (RFC 4291, appendix A), with its length."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return f"{IPv6Address(bytes([0xFE, 0x80]) + bytes(6) + identifier)}/64"


@lru_cache(_REMEMBERED)
def mac_address(*parts: str) -> str:
    """A locally administered unicast MAC address (first byte x2) for what `parts` name."""
    digest = hashlib.sha256("/".join(("mac", *parts)).encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))
