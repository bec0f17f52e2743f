"""What the lab needs of a kernel, found out by trying each in namespaces of their own.

Names in /proc or configuration files say little (a module may be there and not load, a container
may forbid it), so each feature is made and thrown away. Needs root; nothing of it touches the
host's own network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from lab.kernel.errors import KernelError
from lab.kernel.image import SYSTEM_PATH


def _nft(table: str, chain: str, rule: str) -> str:
    made = f"add table {table}; add chain {table} c {{ type {chain}; }}"
    return f"nft '{made}; add rule {table} c {rule}'"


# Feature -> shell text that works only where the kernel has it. All run as root in one throw-away
# network and mount namespace; each makes devices of its own name, so that one failure spoils no
# other.
TRIALS: dict[str, str] = {
    "gretap": "ip link add fgre type gretap local 192.0.2.1 remote 192.0.2.2 key 1",
    "veth": "ip link add fve1 type veth peer name fve2",
    "vlan": "ip link add fb type veth peer name fb2 && ip link add fvlan link fb type vlan id 5",
    "vlan_filtering": "ip link add fbr type bridge vlan_filtering 1",
    "vrf": "ip link add fvrf type vrf table 10",
    "wireguard": "ip link add fwg type wireguard",
    "nft_nat": _nft("ip f1", "nat hook postrouting priority 100", "oifname x masquerade"),
    "nft_ct_zone": _nft("ip f2", "filter hook prerouting priority -300", "iifname x ct zone set 5"),
    "nft_bridge": _nft(
        "bridge f3", "filter hook forward priority 0", "ct state established accept"
    ),
    "nft_gre": _nft("ip f4", "filter hook input priority 0", "meta l4proto gre counter accept"),
    "overlay": "mount -t tmpfs f /mnt && mkdir /mnt/l /mnt/u /mnt/w /mnt/m"
    " && mount -t overlay -o lowerdir=/mnt/l,upperdir=/mnt/u,workdir=/mnt/w f /mnt/m",
    # The controllers must be free in the v2 tree: a v1 mount of cpu or memory takes them away.
    "cgroup2": "mount -t cgroup2 f /mnt && grep -qw cpu /mnt/cgroup.controllers"
    " && grep -qw memory /mnt/cgroup.controllers"
    " && mkdir /mnt/dvn-trial.$$ && rmdir /mnt/dvn-trial.$$",
    "nfsd": "modprobe nfsd 2>/dev/null; mount -t nfsd f /mnt",
}

FEATURES: frozenset[str] = frozenset(TRIALS)

_PROBE = """
mount --make-rprivate /
ip link set lo up || exit 3
try() { name=$1; shift; (eval "$1") >/dev/null 2>&1 && echo "$name"; }
"""


def missing_features() -> tuple[str, ...]:
    """Names of FEATURES the running kernel does not give to this process (all, without root).

    Raises KernelError when the tools to find out are missing.
    """
    if os.geteuid() != 0:
        return tuple(sorted(FEATURES))
    path = os.environ.get("PATH", "") + ":" + SYSTEM_PATH
    for tool, package in (("unshare", "util-linux"), ("ip", "iproute2"), ("nft", "nftables")):
        if shutil.which(tool, path=path) is None:
            raise KernelError(
                f"{tool} is missing: apt-get install {package} (or run ./run test, which does)"
            )
    script = _PROBE + "".join(f"try {name} {_quoted(text)}\n" for name, text in TRIALS.items())
    try:
        done = subprocess.run(
            ["unshare", "--net", "--mount", "sh", "-c", script],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={"PATH": path, "LC_ALL": "C.UTF-8"},
            cwd=Path("/"),
        )
    except subprocess.TimeoutExpired:
        sys.stderr.write(
            "lab.kernel: finding out what this kernel can took over 120 s; taking the VM\n"
        )
        return tuple(sorted(FEATURES))
    return tuple(sorted(FEATURES - set(done.stdout.split())))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
