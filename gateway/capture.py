"""`dvn capture`: from a network's or tunnel's name to its device; frames to lines and a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO

from dvn import addresses
from dvn.diagnose.capturing import Capture, FilterError
from dvn.diagnose.describe import describe, inside
from dvn.diagnose.frames import Packet
from dvn.diagnose.pcap import ETHERNET, Captured, PcapWriter
from dvn.problems import Problem, SpecError
from dvn.spec import Site, Tunnel

_NO_ADDRESSES = bytes(12)


@dataclass(frozen=True)
class Target:
    """A device, and a filter that belongs to what was asked for."""

    device: str
    filter: str = ""


@dataclass(frozen=True)
class Limits:
    """When to stop, and how much of each frame to keep."""

    count: int | None = None
    seconds: float | None = None
    snaplen: int = 262144


def target(site: Site, text: str, *, outer: bool = False) -> Target:
    """Where to listen. Raises SpecError."""
    name, _, interface = text.partition(":")
    tenant, slash, what = name.partition("/")
    networks = {(t, n): network for t, n, network in site.networks()}
    tunnels = {(t.tenant, t.name): t for t in site.tunnels()}
    if not slash:
        return Target(text)
    if (tenant, what) in tunnels and not interface:
        return _tunnel(site, tunnels[tenant, what], outer)
    if (tenant, what) not in networks:
        known = [f"{t}/{n}" for t, n in (*networks, *tunnels)]
        raise _wrong(f"there is no network or tunnel {name}", f"there are {', '.join(known)}")
    if outer:
        raise _wrong(f"{name} is a network; only tunnels have an outside", "leave out --outer")
    if not interface:
        return Target(addresses.bridge_name(tenant, what))
    network = networks[tenant, what]
    ports = [port.interface for port in network.on(site.here)]
    if network.vlan and interface in (network.vlan.uplink, "uplink"):
        return Target(addresses.vlan_name(tenant, what))
    if interface not in ports:
        fix = f"its ports are {', '.join(ports)}" if ports else "it has none"
        raise _wrong(f"{name} has no port {interface}", fix)
    return Target(interface)


def _tunnel(site: Site, tunnel: Tunnel, outer: bool) -> Target:
    if not outer:
        return Target(addresses.tunnel_name(tunnel.tenant, tunnel.name))
    if site.underlay is None or tunnel.remote is None:
        raise _wrong(
            f"where {tunnel.tenant}/{tunnel.name} ends is not in the file",
            "listen to the underlay's interface instead",
        )
    return Target(site.underlay.interface, f"host {tunnel.remote}")


def _wrong(what: str, fix: str) -> SpecError:
    return SpecError([Problem("", 0, what, fix)])


def run(
    place: Target,
    filter_: str,
    write: str | None,
    limits: Limits,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Print a line a frame until a limit, or Ctrl-C. Raises SpecError, KernelError."""
    both = " and ".join(f"({text})" for text in (place.filter, filter_) if text)
    told = sys.stderr if write == "-" else sys.stdout
    try:
        capture = Capture(place.device, filter_=both, snaplen=limits.snaplen)
    except FilterError as error:
        raise SpecError([Problem("", 0, str(error))]) from None
    seen = 0
    with capture, _file(write) as file:
        writer = PcapWriter(file, capture.link_type, limits.snaplen) if file else None
        try:
            for frame in capture.frames(_until(limits, clock)):
                seen += 1
                if writer:
                    writer.write(frame)
                    writer.flush()
                told.write(_line(frame, capture.link_type) + "\n")
                told.flush()
                if limits.count is not None and seen >= limits.count:
                    break
        except (KeyboardInterrupt, BrokenPipeError):  # Ctrl-C, or the reader of the pipe left
            pass
        lost = capture.lost()
        words = f"{seen} captured on {place.device}"
        sys.stderr.write(words + (f", {lost} lost: too fast\n" if lost else "\n"))


def _until(limits: Limits, clock: Callable[[], float]) -> Callable[[], float | None]:
    if limits.seconds is None:
        return lambda: None
    end = clock() + limits.seconds
    return lambda: end - clock()


@contextmanager
def _file(name: str | None) -> Iterator[BinaryIO | None]:
    if name is None:
        yield None
    elif name == "-":
        yield sys.stdout.buffer
    else:
        try:
            file = open(name, "wb")  # noqa: SIM115 - closed below
        except OSError as error:
            raise _wrong(f"{name}: {error.strerror}", "write it somewhere else") from None
        with file:
            yield file


def _line(frame: Captured, link_type: int) -> str:
    moment = datetime.fromtimestamp(frame.time_ns // 1_000_000_000).astimezone()
    micro = frame.time_ns % 1_000_000_000 // 1000
    direction = "<" if frame.outgoing else ">"
    if link_type == ETHERNET:
        words = describe(Packet(frame.data))
    else:
        version = frame.data[:1][0] >> 4 if frame.data else 0
        ethertype = {4: b"\x08\x00", 6: b"\x86\xdd"}.get(version, b"\0\0")
        words = inside(Packet(_NO_ADDRESSES + ethertype + frame.data))
    return f"{moment:%H:%M:%S}.{micro:06d} {direction} {words} ({frame.length})"
