"""What the lab's guests boot: Debian's kernel and an initramfs of ours, directly, without a boot
loader.

With a root file system on its disk the guest becomes a Debian machine and cloud-init does the rest;
with `PLAIN` on its command line it stays that machine but runs the seed's user data by itself:
cloud-init's minutes on a CPU that is emulated by an emulated one are seconds then. Without a disk
(`tiny`) busybox does the same.
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

from lab.kernel.image import Cpio, Kernel, boot_image, boot_modules, cache_dir, find_kernel
from lab.kernel.image import busybox as static_busybox

MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "isofs", "virtio_rng")
DISK_MODULES = ("ext4", "crc32c_generic")  # ext4 asks for crc32c by its generic name
PLAIN = "dvn.plain"  # no cloud-init
SPOOF = "dvn.spoof="  # and ADDRESS,TARGET; with PLAIN: what a machine that was broken into would do
CMDLINE = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off no_timer_check nokaslr audit=0"

_INIT = r"""#!/bin/busybox sh
# Loads drivers; then the disk's own init, or the user data of the seed.
/bin/busybox --install -s /bin
export PATH=/bin:/usr/local/sbin:/usr/sbin:/sbin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in $(cat /modules.list); do insmod "/modules/$m" || echo "dvn-guest: no module $m"; done
for word in $(cat /proc/cmdline); do
  case "$word" in root=*) root=${word#*=} ;; dvn.plain) init=/run/init ;; esac
done
if [ -n "$root" ]; then
  mount -t ext4 "$root" /newroot || { echo "dvn-guest: no root $root"; poweroff -f; }
  mount --move /dev /newroot/dev; mount --move /proc /newroot/proc; mount --move /sys /newroot/sys
  mount -t tmpfs -o mode=755 run /newroot/run
  cp /init.plain /newroot/run/init
  exec switch_root /newroot "${init:-/sbin/init}"
fi
mkdir -p /seed /tmp /run /var
for seed in /dev/vd?; do # busybox has no blkid: the file system itself says what it is
  mount -t iso9660 -o ro "$seed" /seed 2>/dev/null && [ -f /seed/meta-data ] && break
done
[ -f /seed/user-data ] || { echo "dvn-guest: no seed"; poweroff -f; }
hostname "$(sed -n 's/.*"local-hostname": "\([^"]*\)".*/\1/p' /seed/meta-data)"
cp /seed/user-data /tmp/user-data && chmod 700 /tmp/user-data
echo "dvn-guest: $(hostname) runs its user data"
/tmp/user-data
echo "dvn-guest: user data ended with $?"
while :; do sleep 60; done
"""

# The first process of the disk's Debian, without cloud-init.
_PLAIN_INIT = r"""#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/root
mount -o remount,rw /
mkdir -p /run/lock /run/seed /dev/pts /dev/shm
ln -s /proc/self/fd /dev/fd; ln -s fd/0 /dev/stdin; ln -s fd/1 /dev/stdout; ln -s fd/2 /dev/stderr
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup && mkdir -p /sys/fs/cgroup/system.slice
ip link set lo up
printf '#!/bin/sh\nexec busybox poweroff -f\n' > /usr/local/sbin/shutdown
chmod 755 /usr/local/sbin/shutdown
for seed in /dev/vd[b-z]; do
  mount -t iso9660 -o ro "$seed" /run/seed 2>/dev/null && [ -f /run/seed/user-data ] && break
done
[ -f /run/seed/user-data ] || { echo "dvn-guest: no seed"; busybox poweroff -f; }
name=$(sed -n 's/.*"local-hostname": "\([^"]*\)".*/\1/p' /run/seed/meta-data)
hostname "$name"
spoof() { # ADDRESS,TARGET: send from an address that is not the machine's, and from its own in turn
  local address=${1%,*} target=${1#*,}
  while sleep 10; do
    ping -n -q -c 1 -W 1 "$target" > /dev/null 2>&1 || continue
    ip address replace "$address/32" dev eth0
    ping -n -q -c 1 -W 1 -I "$address" "$target" > /dev/null 2>&1
  done
}
for word in $(< /proc/cmdline); do
  case "$word" in dvn.spoof=*) spoof "${word#*=}" & ;; esac
done
install -m 700 /run/seed/user-data /run/user-data
echo "dvn-guest: $name runs its user data"
/run/user-data
echo "dvn-guest: user data ended with $?"
while :; do wait -n 2>/dev/null || sleep 1; done
"""


def kernel_files(*, disk: bool = False, directory: Path | None = None) -> tuple[Path, Path]:
    """The kernel and the initramfs to give to libvirt, made when they are not in the cache yet.

    disk: with the drivers for a root file system. Raises KernelError when there is no kernel here.
    """
    kernel = find_kernel()
    return boot_image(kernel, directory), _initramfs(kernel, disk, directory)


def _initramfs(kernel: Kernel, disk: bool, directory: Path | None) -> Path:
    modules = boot_modules(kernel, (*MODULES, *(DISK_MODULES if disk else ())))
    archive = Cpio()
    for name in ("bin", "dev", "proc", "sys", "newroot", "modules", "etc"):
        archive.directory(name)
    archive.device("dev/console", 5, 1)
    archive.file("init", _INIT.encode(), 0o755)
    archive.file("init.plain", _PLAIN_INIT.encode(), 0o755)
    archive.file("bin/busybox", static_busybox(), 0o755)
    archive.file("modules.list", "\n".join(modules).encode() + b"\n")
    for name, data in modules.items():
        archive.file(f"modules/{name}", data)
    content = archive.bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    path = (directory or cache_dir()) / "initramfs" / f"guest-{kernel.version}-{digest}.gz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_bytes(gzip.compress(content, compresslevel=1, mtime=0))
        partial.replace(path)
    return path
