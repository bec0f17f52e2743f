"""Hosts that hold the kernel by a network file system still end at once, server or no server."""

import time
from collections.abc import Iterator

import pytest

from lab.farm import nfs
from lab.farm.config import User
from lab.hosts import Host, Lab

pytestmark = pytest.mark.kernel

# What hangs waits for the kernel's own timers, on any machine: 120 s and more. What does not takes
# a second or two, and on an emulated and busy machine half a minute.
SOON_S = 60.0
ALICE = "alice:x:2001:2001::/home/alice:/bin/sh"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        nfs.serve(lab.host("server"), network="10.0.0.0/8", users=(User("alice", 2001),))
        yield lab
        started = time.monotonic()
    assert time.monotonic() - started < SOON_S


def client(lab: Lab, number: int, *, busy: bool) -> Host:
    """A host that has mounted /home; if busy, alice writes a file in it without end."""
    server, host = lab.hosts["server"], lab.host(f"client{number}")
    lab.link(server, host.name, host, "eth0")
    server.run("ip", "address", "add", f"10.0.{number}.1/24", "dev", host.name)
    host.run("ip", "address", "add", f"10.0.{number}.2/24", "dev", "eth0")
    host.script(
        'echo "$1" >> /etc/passwd; shift; modprobe -a nfs nfsv4 || true; exec "$@"',
        ALICE,
        *nfs.mount_command(f"10.0.{number}.1", f"10.0.{number}.2"),
    )
    file = f"/home/alice/{host.name}"
    if busy:
        host.spawn(
            "sh", "-c", f"while :; do head -c 1000000 /dev/zero > {file}; done", user="alice"
        )
        server.wait_for(["test", "-s", file], what="what the client writes to be on the server")
    else:
        host.run("touch", file, user="alice")
        server.run("test", "-e", file)
    return host


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("end", ["remove", "cut", "power"])
def test_a_client_ends_at_once(lab: Lab, end: str, busy: bool) -> None:
    """Removed in order; removed when the server is out of reach; powered off."""
    host = client(lab, 1 + len(lab.hosts), busy=busy)
    if end == "cut":
        lab.hosts["server"].run("ip", "link", "set", host.name, "down")
    started = time.monotonic()
    if end == "power":
        host.kill()
    lab.remove(host)
    assert time.monotonic() - started < SOON_S
    assert lab.host(host.name).alive  # and the lab can make another one
    lab.remove(lab.hosts[host.name])


def test_the_whole_lab_ends_at_once_with_its_server(lab: Lab) -> None:
    client(lab, 101, busy=True)  # the fixture measures, when it ends the lab
    assert lab.hosts["server"].read("/proc/fs/nfsd/threads").strip() != "0"
