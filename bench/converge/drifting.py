"""How long after the kernel's event drift is repaired, by the agent's own clock."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

from bench.converge.content import make_site
from bench.converge.restart import SOCKET, agent, applied
from dvn.addresses import bridge_name

_PATIENCE_S = 120.0
_TENANT, _NETWORK = "t0", "n0"


def drift(count: int) -> dict[str, Any]:
    """Damage what the agent keeps of `count` networks, each time in another way. Seconds from the
    event to the end of the repair, verified; raises RuntimeError if one is not repaired."""
    site = make_site(count)
    bridge = bridge_name(_TENANT, _NETWORK)
    damages = {
        "mtu": f"ip link set {bridge} mtu 1300",
        "link": f"ip link delete {bridge}",
        "rules": f"nft delete table inet dvn-{site.site}",
        "ruleset": "nft flush ruleset",
    }
    found: dict[str, Any] = {}
    with agent():
        applied(site)
        for name, command in damages.items():
            _wait(lambda: _asked()["settled"])
            before = len(_asked()["repairs"])
            subprocess.run(command.split(), check=True)
            found[name] = _repaired_after(before)
    return found


def _repaired_after(count: int) -> float:
    """How long the repair took that comes after so many reports."""

    def repaired() -> list[dict[str, Any]]:
        return [each for each in _asked()["repairs"][count:] if each["action"] == "repaired"]

    _wait(repaired)
    return float(repaired()[-1]["seconds"])


def _asked() -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(SOCKET))
        sock.sendall(json.dumps({"op": "drift"}).encode() + b"\n")
        with sock.makefile("rb") as answer:
            found: dict[str, Any] = json.loads(answer.readline())["drift"]
    return found


def _wait(done: Callable[[], object]) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not done():
        if time.monotonic() > end:
            raise RuntimeError(f"drift was not repaired within {_PATIENCE_S:.0f} s")
        time.sleep(0.02)
