"""A gateway with two machines on ports and an operator who comes over a link of their own.

op 192.0.2.9 ── op0 (192.0.2.1) gw ── tap3 ── m1 10.9.0.3 (cms)
                                   └─ tap4 ── m2 10.8.0.4 (atlas)
Bridges, veth and nftables only: it works on kernels without GRE and 802.1Q too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dvn import located
from dvn.change.changes import Changes, Done, Wish
from dvn.change.files import STATE_VARIABLE
from dvn.change.history import Revision
from dvn.change.names import GUARD
from dvn.change.verify import LivePackets
from dvn.engine import Engine
from dvn.spec import Site, parse_site
from lab.host import Host, wait_for
from lab.hosts import Lab
from lab.net import build
from lab.topology import Link, Machine, Topology

CHECKOUT = Path(__file__).parents[2]
OPERATOR = "192.0.2.9"
STATE = "/var/lib/dvn"
_PRIVATE = ("/etc", "/var:empty", "/run:empty")

SITE = """
site: cnaf
tenants:
  cms:
    networks:
      farm: {{prefix: 10.9.0.0/24, ports: [{cms}]}}
  atlas:
    networks:
      farm: {{prefix: 10.8.0.0/24, ports: [{{interface: tap4, address: 10.8.0.4}}]}}
"""
TAP3 = "{interface: tap3, address: 10.9.0.3}"
GOOD = SITE.format(cms=TAP3)
CUTS_OFF = SITE.format(cms=f"{TAP3}, {{interface: op0}}")
SILENCES = SITE.format(cms="{interface: tap3, mac: '02:00:00:00:00:99'}")
WITH_A_SERVICE = GOOD.replace("prefix: 10.9.0.0/24,", "prefix: 10.9.0.0/24, services: [tcp/22],")


def site(text: str) -> Site:
    return parse_site(located.loads(text))


def wish(text: str) -> Wish:
    return Wish(site(text), "site.yaml", text)


def topology() -> Topology:
    return Topology(
        nodes=(
            Machine("gw", {"op0": "192.0.2.1/24"}, private=_PRIVATE),
            Machine("op", {"eth0": f"{OPERATOR}/24"}),
            Machine("m1", {"eth0": "10.9.0.3/24"}, {"default": "10.9.0.1"}),
            Machine("m2", {"eth0": "10.8.0.4/24"}, {"default": "10.8.0.1"}),
        ),
        links=(
            Link("gw:op0", "op:eth0"),
            Link("gw:tap3", "m1:eth0"),
            Link("gw:tap4", "m2:eth0"),
        ),
    )


class ChangePlace:
    """The hosts, and the command line in the gateway."""

    def __init__(self, lab: Lab) -> None:
        self.hosts = build(lab, topology())
        self.gw: Host = self.hosts["gw"]
        self.ssh = {"SSH_CONNECTION": f"{OPERATOR} 50000 192.0.2.1 22"}
        self.env = {
            "PYTHONPATH": str(CHECKOUT),
            STATE_VARIABLE: STATE,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        for name, text in (
            ("good", GOOD), ("cuts", CUTS_OFF), ("silences", SILENCES), ("service", WITH_A_SERVICE)
        ):  # fmt: skip
            self.gw.write(f"/etc/{name}.yaml", text)

    def dvn(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "gateway", *words]
        return self.gw.run(*argv, env=self.env, check=check)

    def dvn_json(self, *words: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.dvn(*words, "-o", "json", check=False).stdout)
        return answer

    def begin(self, *words: str, log: Path) -> subprocess.Popen[bytes]:
        """A command that goes on; its output is in `log`."""
        argv = [sys.executable, "-m", "gateway", *words]
        return self.gw.spawn(*argv, env={**self.env, **self.ssh}, log=log)

    def child(self, action: Callable[[], object]) -> int:
        """A process of the gateway that does `action` and ends: its id. Forked from this one, with
        all that is loaded: to start Python anew takes ten seconds on a slow machine."""

        def fork() -> int:
            child = os.fork()
            if child:
                return child
            status = 1
            try:
                os.environ[STATE_VARIABLE] = STATE
                action()
                status = 0
            except Exception:  # noqa: BLE001 - shown; the parent looks at the status
                traceback.print_exc()
            finally:
                os._exit(status)

        return self.gw.inside(fork)

    def changes(self) -> Changes:
        """Of the gateway: to be used in it."""
        return Changes(Engine(), Path(STATE), packets=LivePackets())

    def apply(self, text: str) -> Done:
        return self.gw.inside(lambda: self.changes().apply(wish(text)))

    def planned(self, text: str) -> tuple[str, ...]:
        return self.gw.inside(lambda: Engine().plan(site(text))).lines()

    def reached(self, source: str = "op", address: str = "192.0.2.1") -> bool:
        argv = ["ping", "-n", "-q", "-c", "1", "-W", "1", address]
        return self.hosts[source].run(*argv, check=False).returncode == 0

    def ports(self) -> list[str]:
        return self.gw.script("ls /sys/class/net/b-cms-farm/brif").stdout.split()

    def waits(self) -> bool:
        """Whether a change waits to be confirmed."""
        return self.gw.run("test", "-e", f"{STATE}/change/cnaf.json", check=False).returncode == 0

    def settled(self, limit_s: float = 60.0) -> None:
        wait_for(lambda: not self.waits(), limit_s, what="the trial is decided")

    def last(self) -> Revision:
        """The newest revision."""
        return self.gw.inside(lambda: self.changes().history.revisions("cnaf")[-1])

    def guards(self) -> list[int]:
        """The guards of the gateway, by its own process ids."""
        return [int(p) for p in self.gw.run("pgrep", "-x", GUARD, check=False).stdout.split()]
