"""What the engine answers: plain frozen values that turn into JSON by dataclasses.asdict."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TunnelStatus:
    """A tunnel device and what passed through it. `name` is the device; `up` its administrative
    state: whether the other end answers is a matter of `probe`."""

    name: str
    tenant: str
    tunnel: str
    local: str
    remote: str
    key: int
    up: bool
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int


@dataclass(frozen=True)
class Passed:
    """What a link has counted: packets and bytes, in and out."""

    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0


@dataclass(frozen=True)
class Dropped:
    """What a rule of ours has dropped; `why` in the words that stand beside it."""

    table: str
    chain: str
    why: str
    packets: int
    bytes: int


@dataclass(frozen=True)
class Probe:
    """Echo requests to one address. `rtt_ms`: the shortest of the answers, None without one."""

    address: str
    network: str
    sent: int
    received: int
    rtt_ms: float | None
    detail: str


@dataclass(frozen=True)
class Applied:
    """What was done. `steps` empty: the kernel was as wanted and nothing was written."""

    steps: tuple[str, ...]
    netlink_writes: int
    nft_writes: int
    sysctl_writes: int
    verified: bool
    notes: tuple[str, ...] = ()
