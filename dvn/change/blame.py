"""Who changed what is ours: what the kernel says of an nft transaction, and who else is about.

nftables names the process of each transaction (NFTA_GEN_PROC_NAME, NFTA_GEN_PROC_PID). Route
netlink names nobody: there we can only say which daemons run here that are known to do such things.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from dvn.change.watch import Event, is_echo

# The name of a process in /proc (15 characters at most) -> what people call it.
NETWORK_DAEMONS = {
    "systemd-network": "systemd-networkd",
    "NetworkManager": "NetworkManager",
    "dhcpcd": "dhcpcd",
    "connmand": "connman",
    "libvirtd": "libvirtd",
    "netplan": "netplan",
}
FIREWALLS = {
    "firewalld": "firewalld",
    "dockerd": "docker",
    "ufw": "ufw",
    "kube-proxy": "kube-proxy",
    "libvirtd": "libvirtd",
    "podman": "podman",
}
_TOOLS = frozenset(
    {"nft", "iptables", "ip6tables", "iptables-restor", "ip6tables-resto", "xtables"}
)


def running(proc: Path = Path("/proc")) -> frozenset[str]:
    """The names of the processes of this host."""
    found = set()
    for entry in proc.iterdir():
        if entry.name.isdigit():
            try:
                found.add((entry / "comm").read_text().strip())
            except OSError:
                continue  # it ended
    return frozenset(found)


def parent_of(pid: int, proc: Path = Path("/proc")) -> str:
    """The name of the process that started `pid`; "" if both are gone."""
    try:
        parent = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[1]
        return (proc / parent / "comm").read_text().strip()
    except (OSError, IndexError):
        return ""


def culprit(
    events: Iterable[Event], processes: frozenset[str], parents: Mapping[int, str] | None = None
) -> str:
    """Who it was, in words; "" if nothing is known. Pure."""
    events = [event for event in events if not is_echo(event)]
    acts = [e for e in events if e.kind == "nft" and e.process and _touched_ours(e)]
    if acts:
        return ", ".join(dict.fromkeys(_actor(event, parents or {}) for event in acts))
    known = NETWORK_DAEMONS if any(e.kind != "nft" for e in events) else FIREWALLS
    suspects = sorted({known[name] for name in processes if name in known})
    return f"perhaps {' or '.join(suspects)}, which run{'s' * (len(suspects) == 1)} here" * bool(
        suspects
    )


def _touched_ours(event: Event) -> bool:
    return any(name.startswith("dvn-") for _family, name in event.tables)


def _actor(event: Event, parents: Mapping[int, str]) -> str:
    name = FIREWALLS.get(event.process, event.process)
    by = parents.get(event.pid, "") if event.process in _TOOLS else ""
    started = f", started by {FIREWALLS.get(by, by)}" if by else ""
    verb = " (flushed or deleted tables)" if len(event.removed) > 1 else ""
    return f"{name} (process {event.pid}{started}){verb}"
