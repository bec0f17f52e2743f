"""Looking at this host for `dvn doctor`. Only reading; what the kernel can is tried out in a
network namespace of its own that is gone at once."""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from dvn.diagnose.checkup import Facts, Manager
from dvn.diagnose.rulesets import Ruleset
from dvn.diagnose.scene import Scene
from dvn.diagnose.surroundings import read_ruleset, read_scene
from dvn.kernel.driver import KernelError
from dvn.kernel.ipsec import VICI
from dvn.kernel.rights import may_change_networks
from dvn.kernel.state import table_name
from dvn.spec import Site

_SIOCETHTOOL, _ETHTOOL_GFLAGS, _FLAG_LRO = 0x8946, 0x25, 1 << 15  # linux/ethtool.h
_IP_MTU, _IPV6_MTU = 14, 24  # linux/in.h, linux/in6.h
_TIME_ERROR, _TIMEX_SIZE = 5, 256  # adjtimex(2): not synchronised; the structure has 208 bytes
_TIMEOUT_S = 30
_PROC, _RUN, _ETC = Path("/proc"), Path("/run"), Path("/etc")
_MANAGERS = {
    "NetworkManager": "NetworkManager",
    "systemd-network": "systemd-networkd",
    "firewalld": "firewalld",
    "dhcpcd": "dhcpcd",
    "connmand": "connman",
}
_TRIALS = {
    "bridge": "link add dvnbr type bridge",
    "gretap": "link add dvngre type gretap local 192.0.2.1 remote 192.0.2.2 key 1",
    "vlan": "link add link dvnbr name dvnvlan type vlan id 5",
    "vrf": "link add dvnvrf type vrf table 10",
    "wireguard": "link add dvnwg type wireguard",
    "fou": "fou add port 5555 ipproto 47",
    "ifb": "link add dvnifb type ifb",
}
_NFT_TRIALS = {
    "nft bridge": "add table bridge t; "
    "add chain bridge t c { type filter hook prerouting priority -300; }",
    "nft inet nat": "add table inet t; "
    "add chain inet t c { type nat hook postrouting priority 100; }",
}
_SYSCTLS = (
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
    "net/ipv4/neigh/default/gc_thresh3",
)


def examine(site: Site) -> Facts:
    """What can be seen of this host; without rights less than with them. Raises KernelError if
    iproute2 is not there."""
    rights = may_change_networks()
    scene = read_scene()
    ruleset = read_ruleset() if rights else Ruleset(())
    remotes = {str(tunnel.remote) for tunnel in site.tunnels() if tunnel.remote}
    return Facts(
        may_change=rights,
        kernel=f"Linux {os.uname().release}",
        features=_features() if rights else None,
        scene=scene,
        ruleset=ruleset,
        merging=frozenset(_merging(scene)),
        paths=dict(_paths(remotes)),
        clock=_clock(),
        charon=VICI.exists(),
        managers=tuple(_managers(scene)),
        legacy=tuple(_legacy()),
        sysctls=dict(_sysctls(site)),
        applied=any(table.name == table_name(site.site) for table in ruleset.tables),
    )


def _features() -> Mapping[str, bool]:
    """Each is made in a namespace of its own; `ip -batch -force` goes on after a failure."""
    lines = list(_TRIALS.values())
    done = _enclosed("ip", "-force", "-batch", "-", fed="\n".join(lines) + "\n")
    failed = {
        int(word.rsplit(":", 1)[1]) - 1
        for word in done.stderr.split()
        if word.startswith("-:") and word[2:].isdigit()
    }
    found = {name: at not in failed for at, name in enumerate(_TRIALS)}
    for name, table in _NFT_TRIALS.items():
        done = _enclosed("nft", "-f", "-", fed=table + "\n")
        found[name] = done.returncode == 0
    return found


def _enclosed(*argv: str, fed: str) -> subprocess.CompletedProcess[str]:
    """Raises KernelError if there is no such program."""
    try:
        return subprocess.run(
            ["unshare", "--net", *argv],
            input=fed, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise KernelError("unshare is not installed: apt-get install util-linux") from None


def _merging(scene: Scene) -> Iterator[str]:
    """Devices with large receive offload."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for name in scene.devices:
            value = array.array("B", struct.pack("II", _ETHTOOL_GFLAGS, 0))
            request = struct.pack("16sP", name.encode(), value.buffer_info()[0])
            try:
                fcntl.ioctl(sock, _SIOCETHTOOL, request)
            except OSError:
                continue
            if struct.unpack("II", value.tobytes())[1] & _FLAG_LRO:
                yield name


def _paths(remotes: Iterable[str]) -> Iterator[tuple[str, int]]:
    """The MTU the kernel knows of the path to each remote; it learns it by "packet too big"."""
    for remote in sorted(remotes):
        six = ":" in remote
        with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            option = (socket.IPPROTO_IPV6, _IPV6_MTU) if six else (socket.IPPROTO_IP, _IP_MTU)
            try:
                sock.connect((remote, 9))
                yield remote, sock.getsockopt(*option)
            except OSError:
                continue


def _clock() -> bool | None:
    """Whether the kernel's clock is disciplined (adjtimex(2))."""
    buffer = ctypes.create_string_buffer(_TIMEX_SIZE)
    state = ctypes.CDLL(None).adjtimex(buffer)
    return None if state < 0 else state != _TIME_ERROR


def _managers(scene: Scene) -> Iterator[Manager]:
    running = set()
    for directory in _PROC.glob("[0-9]*"):
        try:
            running.add((directory / "comm").read_text().strip())
        except OSError:
            continue
    for process, name in _MANAGERS.items():
        if process in running:
            yield Manager(name, tuple(_managed(name, scene)), _told(name))


def _managed(manager: str, scene: Scene) -> Iterator[str]:
    """Links of ours that a program says are its own."""
    ours = [device.name for device in scene.devices.values() if device.alias.startswith("dvn:")]
    for name in ours:
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            continue
        if manager == "systemd-networkd":
            text = _text(_RUN / "systemd" / "netif" / "links" / str(index))
            if "ADMIN_STATE=" in text and "ADMIN_STATE=unmanaged" not in text:
                yield name
        elif manager == "NetworkManager":
            text = _text(_RUN / "NetworkManager" / "devices" / str(index))
            if "managed=true" in text.replace("managed=1", "managed=true"):
                yield name


def _told(manager: str) -> bool:
    """Whether its configuration says something of what is not its own."""
    places = {
        "NetworkManager": ("NetworkManager", "unmanaged-devices"),
        "systemd-networkd": ("systemd", "ManageForeignRoutes=no"),
    }
    if manager not in places:
        return False
    directory, word = places[manager]
    files = [*(_ETC / directory).glob("*.conf"), *(_ETC / directory).glob("*conf.d/*.conf")]
    return any(word in _text(file) for file in files)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _legacy() -> Iterator[str]:
    for name in ("ip", "ip6"):
        for table in _text(_PROC / "net" / f"{name}_tables_names").split():
            yield f"{name} {table}"


def _sysctls(site: Site) -> Iterator[tuple[str, str]]:
    keys = [*_SYSCTLS]
    if site.underlay:
        keys.append(f"net/ipv4/conf/{site.underlay.interface}/forwarding")
    for key in keys:
        if text := _text(_PROC / "sys" / key).strip():
            yield key, text
