"""How long after a kill the agent is in control again, and what that writes or loses."""

from __future__ import annotations

import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.converge.content import make_site
from bench.converge.standin import stands_in
from dvn.agent_client import AgentClient, AgentUnavailable
from dvn.spec import Port, Site

SOCKET = Path("/run/dvn/agent.sock")
_PATIENCE_S = 600.0
_NETLINK_NETFILTER, _NFNLGRP_NFTABLES = 12, 7
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_GROUPS = (1, 5, 7, 8, 9, 11, 19)  # RTNLGRP_* of links, addresses, routes, rules
_SO_RCVBUFFORCE, _ROOM = 33, 64 << 20  # thousands of links are announced at once
_PING_S = 0.02
_FIRST = 9


def restart(count: int) -> dict[str, Any]:
    """Kill the agent of `count` networks while a machine in one of them talks to another, start it
    again, and have it apply the site once more."""
    site = _with_ports(make_site(count))
    with _machine(0) as machine, _machine(1):
        with agent():
            applied(site)
            answered = _ping(machine)
            events = _Events()
            events.count()  # until what the kernel still had to say of the making is said
        begin = time.perf_counter()  # the first was killed
        with agent():
            again = applied(site)
            seconds = time.perf_counter() - begin
        sent, received = _answered(answered)
        announced = events.count()
    return {
        "seconds": seconds,
        "steps": len(again.steps),
        "writes": again.netlink_writes + again.nft_writes + again.sysctl_writes,
        "announced": announced,
        "packets_sent": sent,
        "packets_lost": sent - received,
    }


def _with_ports(site: Site) -> Site:
    tenant = site.tenants["t0"]
    ports = (Port(interface="tap0"), Port(interface="tap1"))
    network = tenant.networks["n0"].model_copy(update={"ports": ports})
    moved = tenant.model_copy(update={"networks": {**tenant.networks, "n0": network}})
    return site.model_copy(update={"tenants": {**site.tenants, "t0": moved}})


@contextmanager
def _machine(number: int) -> Iterator[int]:
    """A machine behind `tapN`, in a namespace of its own; its process."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    try:
        own = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{holder.pid}/ns/net").readlink() == own:
            time.sleep(0.01)
        subprocess.run(
            ["ip", "link", "add", f"tap{number}", "type", "veth", "peer", "name", "eth0",
             "netns", str(holder.pid)], check=True,
        )  # fmt: skip
        lines = f"link set eth0 up\naddress add 10.0.0.{_FIRST + number}/24 dev eth0\n"
        subprocess.run([*_in(holder.pid), "ip", "-batch", "-"], input=lines, text=True, check=True)
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()


def _in(pid: int) -> list[str]:
    return ["nsenter", "--target", str(pid), "--net"]


def _ping(machine: int) -> subprocess.Popen[str]:
    argv = [*_in(machine), "ping", "-n", "-q", "-i", str(_PING_S), f"10.0.0.{_FIRST + 1}"]
    # The first answer shows that it works at all: an isolated machine would lose everything.
    subprocess.run([*argv[:-1], "-c", "1", "-W", "30", argv[-1]], check=True, capture_output=True)
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def _answered(ping: subprocess.Popen[str]) -> tuple[int, int]:
    ping.send_signal(signal.SIGINT)
    text, _ = ping.communicate(timeout=30)
    found = re.search(r"(\d+) packets transmitted, (\d+) received", text)
    if not found:
        raise RuntimeError(f"ping said: {text}")
    return int(found[1]), int(found[2])


@contextmanager
def agent() -> Iterator[subprocess.Popen[bytes]]:
    module = "bench.converge.standin" if stands_in() else "dvn.agent"
    argv = [sys.executable, "-m", module, "--socket", str(SOCKET)]
    process = subprocess.Popen([*argv, *([",".join(stands_in())] if stands_in() else [])])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def applied(site: Site) -> Any:
    client = AgentClient(SOCKET, timeout=_PATIENCE_S)
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return client.apply(site)
        except AgentUnavailable:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


class _Events:
    """What the kernel announces of changes, whoever makes them."""

    def __init__(self) -> None:
        route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        nft = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        for sock, groups in ((route, _GROUPS), (nft, (_NFNLGRP_NFTABLES,))):
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
            sock.bind((0, 0))
            for group in groups:
                sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        self._sockets = (route, nft)

    def count(self) -> int:
        found = 0
        while ready := select.select(self._sockets, (), (), 0.2)[0]:
            for sock in ready:
                sock.recv(1 << 18)
                found += 1
        return found
