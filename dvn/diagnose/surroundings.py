"""What a running host has, as a scene and a ruleset: `ip -j`, `bridge -j`, /proc/sys, libnftables.

Only reading. In the namespace of the thread that calls.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from dvn.diagnose.listing import parse_listing
from dvn.diagnose.rulesets import Ruleset
from dvn.diagnose.scene import (
    LOCAL,
    MAIN,
    Device,
    IpAddress,
    Scene,
    Selector,
)
from dvn.diagnose.scene import (
    Path as RoutePath,
)
from dvn.kernel.driver import KernelError
from dvn.kernel.nft import Nft

_TIMEOUT_S = 60
_TABLES = {"main": MAIN, "local": LOCAL, "default": 253}
_PROC_SYS = Path("/proc/sys")
_SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv6/conf/all/forwarding",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/bridge/bridge-nf-call-arptables",
)


def read_scene() -> Scene:
    """Links, addresses, routes, rules, neighbours and learned MAC addresses. Raises KernelError if
    iproute2 is not there."""
    devices = {device.name: device for device in _devices()}
    bridges = {name for name, device in devices.items() if device.kind == "bridge"}
    return Scene(
        devices,
        tuple(_routes()),
        tuple(_rules()),
        dict(_neighbours()),
        dict(_learned(devices)) if bridges else {},
        dict(_sysctls(devices)),
    )


def read_ruleset() -> Ruleset:
    """Every nft table, whoever made it. Raises KernelError."""
    nft = Nft()
    try:
        return parse_listing(nft.ruleset())
    finally:
        nft.close()


def ip(*words: str, tool: str = "ip") -> list[dict[str, Any]]:
    """What an iproute2 tool says as JSON. Raises KernelError."""
    if shutil.which(tool) is None:
        raise KernelError(f"{tool} is not installed: apt-get install iproute2")
    done = subprocess.run(
        [tool, "-j", *words], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise KernelError(f"{tool} {' '.join(words)}: {done.stderr.strip()}")
    found = json.loads(done.stdout or "[]")
    return [row for row in found if isinstance(row, dict) and row]


def _devices() -> Iterator[Device]:
    for row in ip("-d", "address", "show"):
        info = row.get("linkinfo", {})
        data, slave = info.get("info_data", {}), info.get("info_slave_data", {})
        yield Device(
            name=row["ifname"],
            kind=info.get("info_kind", ""),
            mtu=row.get("mtu", 1500),
            up="UP" in row.get("flags", ()),
            mac=row.get("address", "") if row.get("link_type") == "ether" else "",
            master=row.get("master", ""),
            group=_group(row.get("group", "0")),
            alias=row.get("ifalias", ""),
            parent=row.get("link") or "",
            vlan=data.get("id", 0) if info.get("info_kind") == "vlan" else 0,
            local=_end(data.get("local")),
            remote=_end(data.get("remote")),
            key=_key(data.get("ikey", 0)),
            fou=_fou(data.get("encap")),
            through=data.get("link") or "",
            table=data.get("table", 0) if info.get("info_kind") == "vrf" else 0,
            isolated=bool(slave.get("isolated", False)),
            addresses=tuple(
                ip_interface(f"{address['local']}/{address['prefixlen']}")
                for address in row.get("addr_info", ())
                if "local" in address
            ),
        )


def _group(value: Any) -> int:
    return 0 if value == "default" else int(value) if str(value).isdigit() else 0


def _end(value: Any) -> str:
    return "" if value in (None, "any") else str(value)


def _key(value: Any) -> int:
    """A GRE key is shown as an address."""
    text = str(value)
    return int(ip_address(text)) if "." in text else int(text or 0)


def _fou(encap: Any) -> tuple[int, int] | None:
    if not isinstance(encap, dict) or encap.get("type") not in ("fou", "gue"):
        return None
    return int(encap.get("sport", 0)), int(encap.get("dport", 0))


def _routes() -> Iterator[RoutePath]:
    for family in ("-4", "-6"):
        for row in ip("-d", family, "route", "show", "table", "all"):
            hop = row["nexthops"][0] if row.get("nexthops") else row
            gateway = hop.get("gateway") or (hop.get("via") or {}).get("host")
            yield RoutePath(
                _prefix(row["dst"], 4 if family == "-4" else 6),
                hop.get("dev", ""),
                ip_address(gateway) if gateway else None,
                _table(row.get("table", MAIN)),
                row.get("type", "unicast"),
                row.get("metric", 0),
                _mtu(row),
            )


def _mtu(row: Mapping[str, Any]) -> int:
    metrics = row.get("metrics") or [{}]
    return int(metrics[0].get("mtu", 0))


def _prefix(text: str, version: int) -> Any:
    if text == "default":
        text = "0.0.0.0/0" if version == 4 else "::/0"
    return ip_network(text, strict=False)


def _table(value: Any) -> int:
    text = str(value)
    return _TABLES.get(text) or (int(text) if text.isdigit() else MAIN)


def _rules() -> Iterator[Selector]:
    for version, family in ((4, "-4"), (6, "-6")):
        for row in ip("-d", family, "rule", "show"):
            yield Selector(
                row["priority"],
                _table(row.get("table", 0)) if "table" in row else 0,
                version,
                iif=row.get("iif", ""),
                oif=row.get("oif", ""),
                source=_selected(row, "src", version),
                destination=_selected(row, "dst", version),
                mark=int(row["fwmark"], 0) if "fwmark" in row else None,
                mask=int(row.get("fwmask", "0xffffffff"), 0),
                l3mdev="l3mdev" in row,
                kind=_kind(row),
                target=row.get("goto", 0),
                inverted="not" in row,
            )


def _kind(row: Mapping[str, Any]) -> str:
    for word in ("goto", "nop"):
        if word in row:
            return word
    action = str(row.get("action", "lookup"))
    return "lookup" if action == "to_tbl" else action


def _selected(row: Mapping[str, Any], key: str, version: int) -> Any:
    if row.get(key, "all") == "all":
        return None
    longest = 32 if version == 4 else 128
    return ip_network(f"{row[key]}/{row.get(key + 'len', longest)}")


def _neighbours() -> Iterator[tuple[tuple[str, IpAddress], str]]:
    for row in ip("neighbour", "show"):
        if "lladdr" in row and "FAILED" not in row.get("state", ()):
            yield (row["dev"], ip_address(row["dst"])), row["lladdr"]


def _learned(devices: Mapping[str, Device]) -> Iterator[tuple[tuple[str, str], str]]:
    for row in ip("fdb", "show", tool="bridge"):
        device = devices.get(row.get("ifname", ""))
        if device and device.master and row.get("master") == device.master and "vlan" not in row:
            yield (device.master, row["mac"]), device.name


def _sysctls(devices: Iterable[str]) -> Iterator[tuple[str, str]]:
    keys = [*_SYSCTLS]
    for name in devices:
        keys += [f"net/ipv4/conf/{name}/{word}" for word in ("forwarding", "rp_filter")]
    for key in keys:
        try:
            yield key, (_PROC_SYS / key).read_text().strip()
        except OSError:
            continue
