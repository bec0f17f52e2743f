"""How often something must pass a tunnel so that nobody on its path forgets it.

Boxes on the path keep what they know of a flow for a time only. The tightest of those that may
stand there decides, less a margin for the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["gre", "udp", "esp"]


@dataclass(frozen=True)
class Timer:
    """`idle_s`: seconds without a packet after which a flow is forgotten."""

    what: str
    idle_s: int
    source: str


# What carries packets of a kind may be forgotten by any of these.
TIMERS: dict[Kind, tuple[Timer, ...]] = {
    "udp": (
        Timer("Linux conntrack, answered", 120, "nf_conntrack_udp_timeout_stream"),
        Timer("Linux conntrack, unanswered", 30, "nf_conntrack_udp_timeout"),
        Timer("NAT, least that RFC 4787 allows", 120, "RFC 4787, REQ-5"),
        Timer("NAT as often found", 30, "RFC 4787, REQ-5, and WireGuard's keepalive of 25 s"),
        Timer("EC2 security group, one way", 30, "EC2: connection tracking timeouts"),
        Timer("EC2 security group, both ways", 180, "EC2: connection tracking timeouts"),
    ),
    "gre": (
        Timer("Linux conntrack, unanswered", 30, "nf_conntrack_gre_timeout"),
        Timer("Linux conntrack, answered", 180, "nf_conntrack_gre_timeout_stream"),
        Timer("EC2 security group", 600, "EC2: connection tracking, other protocols"),
    ),
    "esp": (
        Timer("Linux conntrack", 600, "nf_conntrack_generic_timeout"),
        Timer("EC2 security group", 600, "EC2: connection tracking, other protocols"),
    ),
}
_KIND: dict[str, Kind] = {"plain": "gre", "fou": "udp", "wireguard": "udp", "ipsec": "udp"}
MARGIN_S = 5


def tightest(kind: Kind) -> Timer:
    return min(TIMERS[kind], key=lambda timer: timer.idle_s)


def keepalive_s(transport: str) -> int:
    """Seconds between packets for a transport, at most.

    `ipsec` counts as UDP, since NAT traversal may put it there.
    """
    return tightest(_KIND[transport]).idle_s - MARGIN_S


WIREGUARD_KEEPALIVE_S = keepalive_s("wireguard")
