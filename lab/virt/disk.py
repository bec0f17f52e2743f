"""A disk image with Debian, cloud-init and Slurm's execution daemon: what a hypervisor's machines
boot from in the lab.

There are no cloud images to be had from Debian's mirror, so one is made of the same packages. It
has no systemd: its init does what matters of it for cloud-init, and cloud-init itself is real.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

from lab.farm.trees import Tree
from lab.process import LabError

TREE = Tree(
    "bookworm",
    (
        *("slurmd", "munge", "curl", "iproute2", "kmod", "procps", "iputils-ping"),
        *("python3", "cloud-init", "busybox-static"),
    ),
)
_SIZE = "1200M"
_BUILD_LIMIT_S = 300.0

_INIT = r"""#!/bin/bash
# The machine's first process: what systemd would have mounted, then cloud-init's four stages.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/root
mount -o remount,rw /
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup && mkdir -p /sys/fs/cgroup/system.slice
ip link set lo up
cloud-init init --local
cloud-init init
cloud-init modules --mode=config
cloud-init modules --mode=final
echo "dvn-guest: cloud-init is done"
while :; do wait -n 2>/dev/null || sleep 1; done
"""

# Only NoCloud, so that no time is spent on looking for others; no ssh keys, no package work.
_CLOUD = """\
datasource_list: [NoCloud]
disable_root: false
cloud_init_modules: [seed_random, write-files, set_hostname, update_hostname]
cloud_config_modules: []
cloud_final_modules: [scripts-per-boot, scripts-user]
"""


def debian_disk(say: Callable[[str], None] = lambda _: None) -> Path:
    """The image (raw, ext4, no partitions), made when it is not in the cache yet: some minutes
    the first time. LabError says which step failed."""
    told = hashlib.sha256("\0".join((_INIT, _CLOUD, *TREE.packages)).encode()).hexdigest()[:12]
    image = TREE.path.parent / f"guest-{told}.img"
    if image.exists():
        return image
    tree = TREE.build(say)
    say("making a disk image of it")
    init, cloud = tree / "usr/sbin/init", tree / "etc/cloud/cloud.cfg.d/99-dvn.cfg"
    init.unlink(missing_ok=True)
    init.write_text(_INIT)
    init.chmod(0o755)
    cloud.write_text(_CLOUD)
    partial = image.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    done = subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-d", str(tree), "-L", "root", str(partial), _SIZE],
        capture_output=True,
        text=True,
        timeout=_BUILD_LIMIT_S,
        check=False,
    )
    if done.returncode != 0:
        raise LabError(f"mke2fs: {done.stderr.strip()[-500:]}")
    partial.replace(image)
    return image
