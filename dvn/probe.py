"""Echo requests out of a network's bridge (RFC 792, RFC 4443), by a raw socket."""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Callable

from dvn import addresses
from dvn.status import Probe

_HEADER = struct.Struct("!BBHHH")
_SO_BINDTODEVICE = 25


def probe(
    address: str,
    network: str,
    count: int = 1,
    timeout: float = 1.0,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Probe:
    """Send up to `count` echo requests to `address` from the bridge of `network` (`tenant/name`).

    Each waits `timeout` seconds. Needs CAP_NET_RAW. Never raises for a network that does not
    answer: `detail` says what happened. ValueError for an address or network that is none.
    """
    target = ipaddress.ip_address(address)
    tenant, _, name = network.partition("/")
    if not name:
        raise ValueError(f"network {network!r}: write it as TENANT/NETWORK")
    bridge = addresses.bridge_name(tenant, name)
    sent, times = 0, []
    try:
        with _socket(target.version, bridge) as sock:
            identity = os.urandom(8)
            for sequence in range(1, count + 1):
                sent += 1
                rtt = _echo(sock, target, sequence, identity, timeout, clock)
                if rtt is not None:
                    times.append(rtt * 1000)
    except OSError as error:
        return Probe(
            address, network, sent, len(times), min(times, default=None),
            f"cannot send from {bridge}: {error.strerror}",
        )  # fmt: skip
    detail = f"{len(times)} of {sent} answered"
    if not times:
        detail = f"no answer from {address} in {network} within {timeout:g} s, {sent} tried"
    return Probe(address, network, sent, len(times), min(times, default=None), detail)


def _socket(version: int, bridge: str) -> socket.socket:
    if version == 4:
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    else:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, bridge.encode() + b"\0")
    except OSError:
        sock.close()
        raise
    return sock


def _echo(
    sock: socket.socket,
    target: ipaddress.IPv4Address | ipaddress.IPv6Address,
    sequence: int,
    identity: bytes,
    timeout: float,
    clock: Callable[[], float],
) -> float | None:
    """Seconds until the answer, None if there was none."""
    four = target.version == 4
    request, reply = (8, 0) if four else (128, 129)
    body = identity + sequence.to_bytes(2, "big")
    number = int.from_bytes(identity[:2], "big")
    packet = _HEADER.pack(request, 0, 0, number, sequence) + body
    if four:  # ICMPv6 checksums are the kernel's
        packet = _HEADER.pack(request, 0, _checksum(packet), number, sequence) + body
    started = clock()
    sock.sendto(packet, (str(target), 0))
    while (left := started + timeout - clock()) > 0:
        if not select.select([sock], [], [], left)[0]:
            break
        data, sender = sock.recvfrom(2048)
        if four:
            data = data[(data[0] & 15) * 4 :]
        source = ipaddress.ip_address(sender[0].partition("%")[0])
        if source == target and data[:1] == bytes([reply]) and data[8:] == body:
            return clock() - started
    return None


def _checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
