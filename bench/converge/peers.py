"""What else makes networks: pyroute2 one by one and NDB, a shell that forks `ip`, ifupdown2."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.converge.space import in_space


def peers(count: int) -> Iterator[tuple[str, float | str]]:
    """Seconds of each to make `count` bridges with an address and a port, up; and to read them.

    The least that a network needs, so that it can be said in each of their languages; no tunnels,
    filters or NAT.
    """
    tools: dict[str, Callable[[int], float]] = {
        "pyroute2 one by one": _one_by_one,
        "pyroute2 NDB": _ndb,
        "a shell forking ip": _shell,
        "ip -batch": _batch,
    }
    for name, make in tools.items():
        yield name, float(in_space(partial(make, count)))
    if shutil.which("ifreload"):
        yield "ifupdown2", float(in_space(lambda: _ifupdown2(count)))
    else:
        yield "ifupdown2", "not installed"


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _lines(count: int) -> list[str]:
    lines = []
    for number in range(count):
        lines += [
            f"link add br{number} type bridge",
            f"link add vx{number} type vxlan id {number + 1} remote 203.0.113.1 dstport 4789",
            f"link set dev vx{number} master br{number} addrgenmode none",
            f"link set dev br{number} addrgenmode none",
            f"address add {_address(number)} dev br{number}",
            f"link set dev vx{number} up",
            f"link set dev br{number} up",
        ]
    return lines


def _address(number: int) -> str:
    return f"10.{number // 256}.{number % 256}.1/24"


def _batch(count: int) -> float:
    text = "\n".join(_lines(count)) + "\n"
    return _timed(lambda: subprocess.run(["ip", "-batch", "-"], input=text, text=True, check=True))


def _shell(count: int) -> float:
    text = "set -e\n" + "\n".join(f"ip {line}" for line in _lines(count)) + "\n"
    return _timed(lambda: subprocess.run(["sh"], input=text, text=True, check=True))


def _one_by_one(count: int) -> float:
    from pyroute2 import IPRoute

    def make() -> None:
        with IPRoute() as ip:
            for number in range(count):
                ip.link("add", ifname=f"br{number}", kind="bridge")
                bridge = ip.link_lookup(ifname=f"br{number}")[0]
                ip.link(
                    "add", ifname=f"vx{number}", kind="vxlan", vxlan_id=number + 1,
                    vxlan_group="203.0.113.1", vxlan_port=4789,
                )  # fmt: skip
                tunnel = ip.link_lookup(ifname=f"vx{number}")[0]
                ip.link("set", index=tunnel, master=bridge)
                address, length = _address(number).split("/")
                ip.addr("add", index=bridge, address=address, prefixlen=int(length))
                ip.link("set", index=tunnel, state="up")
                ip.link("set", index=bridge, state="up")

    return _timed(make)


def _ndb(count: int) -> float:
    from pyroute2 import NDB

    def make() -> None:
        with NDB() as ndb:
            for number in range(count):
                vxlan = {"vxlan_id": number + 1, "vxlan_group": "203.0.113.1", "vxlan_port": 4789}
                ndb.interfaces.create(ifname=f"vx{number}", kind="vxlan", **vxlan).commit()
                bridge = ndb.interfaces.create(ifname=f"br{number}", kind="bridge")
                bridge.add_port(f"vx{number}").add_ip(_address(number)).set(state="up").commit()
                ndb.interfaces[f"vx{number}"].set(state="up").commit()

    return _timed(make)


def _ifupdown2(count: int) -> float:
    rows = []
    for number in range(count):
        tunnel = f"vxlan-id {number + 1}\n  vxlan-remoteip 203.0.113.1"
        bridge = f"address {_address(number)}\n  bridge-ports vx{number}"
        rows.append(f"auto vx{number}\niface vx{number}\n  {tunnel}")
        rows.append(f"auto br{number}\niface br{number}\n  {bridge}")
    Path("/run/interfaces").write_text("\n".join(rows) + "\n")
    argv = ["ifup", "-a", "-i", "/run/interfaces"]
    return _timed(lambda: subprocess.run(argv, check=True))
