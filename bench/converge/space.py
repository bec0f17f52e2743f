"""A fresh network namespace for each run, and quiet before the next."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from bench.converge.content import ADDRESS, UNDERLAY
from lab.linux import CLONE_NEWNET, CLONE_NEWNS, MS_PRIVATE, MS_REC, mount, unshare

_SET_UP = f"""
link add {UNDERLAY} type veth peer name wan1
link set {UNDERLAY} up
link set wan1 up
link set lo up
address add {ADDRESS}/24 dev {UNDERLAY}
"""
_QUIET_S = 0.02  # what an `ip` command takes when nobody holds RTNL; more on slow machines
_PATIENCE_S = 600.0


def in_space(work: Callable[[], Any]) -> Any:
    """What `work` returns (JSON-able) in a process and a network namespace of its own.

    The namespace has an underlay and nothing else. RuntimeError with the traceback if it failed.
    """
    sys.stdout.flush()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        answer: dict[str, Any]
        try:
            answer = {"result": _inside(work)}
        except BaseException:  # noqa: BLE001 - goes to the parent, which raises it
            answer = {"error": traceback.format_exc()}
        with os.fdopen(writing, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    answer = json.loads(text) if text else {"error": "the process died"}
    wait_until_quiet()
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer["result"]


def _inside(work: Callable[[], Any]) -> Any:
    unshare(CLONE_NEWNET | CLONE_NEWNS)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    for path in ("/run", "/var/lib"):  # locks and history of its own
        mount("tmpfs", path, "tmpfs")
    subprocess.run(["ip", "-batch", "-"], input=_SET_UP, text=True, check=True)
    return work()


def wait_until_quiet() -> None:
    """Until the kernel has taken down what was left: it holds RTNL long after the command that
    removed a namespace has returned."""
    end = time.monotonic() + _PATIENCE_S
    good = 0
    while good < 3 and time.monotonic() < end:
        begin = time.perf_counter()
        _touch()
        good = good + 1 if time.perf_counter() - begin < _QUIET_S else 0
        time.sleep(0.05)


def _touch() -> None:
    """Take RTNL once: ask for a link by route netlink, which waits for its turn."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        # RTM_SETLINK of no change on lo; needs RTNL, changes nothing.
        body = (0).to_bytes(4, sys.byteorder) + (1).to_bytes(4, sys.byteorder) + bytes(8)
        header = (32).to_bytes(4, sys.byteorder) + (19).to_bytes(2, sys.byteorder)
        sock.send(header + (5).to_bytes(2, sys.byteorder) + bytes(8) + body)
        sock.recv(4096)
