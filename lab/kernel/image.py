"""Finds a Debian kernel and its modules, and makes the small initramfs that mounts the host's
files.

The kernel is either installed (/boot, /lib/modules) or was unpacked by `./run` into the cache
directory, which spares the installation's initramfs generation and leaves /boot alone. The
initramfs is written here (cpio "newc" format, kernel
Documentation/driver-api/early-userspace/buffer-format.rst), cached by its content.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.kernel.errors import KernelError

# What the VM needs to reach its root (9p over virtio, overlay) and its control channel
# (virtio_console).
BOOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console")

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

INIT = r"""#!/bin/busybox sh
# Mounts the host's files read-only, a writable overlay on top, and hands over to the guest agent.
/bin/busybox --install -s /bin
fail() { echo "dvn-init: $*" > /dev/console; echo b > /proc/sysrq-trigger; }
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in $(cat /modules.list); do insmod "/modules/$m" || fail "cannot load $m"; done
options=trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro
mount -t 9p -o $options root /lower || fail "no root"
mount -t tmpfs -o mode=755,size=75% upper /up && mkdir /up/u /up/w
options=lowerdir=/lower,upperdir=/up/u,workdir=/up/w
mount -t overlay -o $options overlay /newroot || fail "no overlay"
for word in $(cat /proc/cmdline); do case "$word" in
  dvn.agent=*) agent=${word#*=} ;;
  dvn.python=*) python=${word#*=} ;;
  dvn.modules=*) modules=${word#*=} ;;
esac; done
want=/newroot/lib/modules/$(uname -r)
[ -n "$modules" ] && mkdir -p "$want" && mount --bind "/newroot$modules" "$want"
mkdir -p /newroot/proc /newroot/sys /newroot/dev /newroot/run
mount --move /dev /newroot/dev; mount --move /proc /newroot/proc; mount --move /sys /newroot/sys
exec switch_root /newroot "$python" -I -S "$agent"
"""


@dataclass(frozen=True)
class Kernel:
    """A kernel image and the directory of its modules (one that holds modules.dep)."""

    version: str
    image: Path
    modules: Path


def cache_dir() -> Path:
    """Where unpacked kernels and initramfs images are kept: $DVN_CACHE, else $XDG_CACHE_HOME/dvn,
    else /var/cache/dvn for root and ~/.cache/dvn for others.
    """
    if chosen := os.environ.get("DVN_CACHE"):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "dvn"
    return Path("/var/cache/dvn") if os.geteuid() == 0 else Path.home() / ".cache" / "dvn"


def _version_key(version: str) -> list[tuple[int, str]]:
    return [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[.\-+~]", version)
    ]


def find_kernel(roots: tuple[Path, ...] | None = None) -> Kernel:
    """The newest kernel that can mount the host's files (has 9p) among the cache and the system.

    Raises KernelError when there is none.
    """
    found: list[Kernel] = []
    for root in roots if roots is not None else (cache_dir() / "kernel", Path("/")):
        for image in (root / "boot").glob("vmlinuz-*"):
            version = image.name.removeprefix("vmlinuz-")
            modules = root / "lib/modules" / version
            if not os.access(image, os.R_OK) or not (modules / "kernel/fs/9p").is_dir():
                continue
            found.append(Kernel(version, image, modules))
    if not found:
        raise KernelError(
            "no kernel image with 9p was found: apt-get install linux-image-amd64"
            " (or run ./run test, which fetches one)"
        )
    return max(found, key=lambda kernel: _version_key(kernel.version))


def _dependencies(kernel: Kernel) -> dict[str, tuple[str, list[str]]]:
    """Module name -> (path below the modules directory, paths it needs in load order)."""
    table = kernel.modules / "modules.dep"
    if not table.exists():
        depmod = shutil.which("depmod", path=os.environ.get("PATH", "") + ":" + SYSTEM_PATH)
        if depmod is None:
            raise KernelError(f"{table} is missing and there is no depmod: apt-get install kmod")
        base = kernel.modules.parent.parent.parent
        subprocess.run([depmod, "-b", str(base), kernel.version], check=True, timeout=120)
    modules: dict[str, tuple[str, list[str]]] = {}
    for line in table.read_text().splitlines():
        path, _, needs = line.partition(":")
        name = Path(path).name.split(".ko")[0].replace("-", "_")
        # modules.dep lists the nearest dependency first; loading needs the farthest first.
        modules[name] = (path, needs.split()[::-1])
    return modules


def _module_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        raise KernelError(f"{path}: zstd-compressed modules are not supported; use Debian's kernel")
    return data


def boot_modules(kernel: Kernel, names: Sequence[str] = BOOT_MODULES) -> dict[str, bytes]:
    """The modules the initramfs loads, name -> content, in load order. Raises KernelError."""
    known = _dependencies(kernel)
    builtin = {
        Path(line).stem.replace("-", "_")
        for line in (kernel.modules / "modules.builtin").read_text().splitlines()
    }
    files: dict[str, bytes] = {}
    for name in names:
        if name in builtin:
            continue
        if name not in known:
            raise KernelError(
                f"kernel {kernel.version} has no module {name}: use linux-image-amd64"
            )
        path, needs = known[name]
        for each in (*needs, path):
            bare = Path(each).name.split(".ko")[0] + ".ko"
            if bare not in files:
                files[bare] = _module_bytes(kernel.modules / each)
    return files


class Cpio:
    """Writes a cpio archive in "newc" format (the one the kernel unpacks), owned by root, without
    times.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def _entry(
        self, name: str, mode: int, data: bytes = b"", *, rdev: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        for part in (header + encoded, data):
            self._parts.append(part + b"\0" * (-len(part) % 4))

    def directory(self, name: str) -> None:
        self._entry(name, stat.S_IFDIR | 0o755)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self._entry(name, stat.S_IFREG | mode, data)

    def device(self, name: str, major: int, minor: int) -> None:
        self._entry(name, stat.S_IFCHR | 0o600, rdev=(major, minor))

    def bytes(self) -> bytes:
        self._entry("TRAILER!!!", 0)
        return b"".join(self._parts)


# ELF note PHYS32_ENTRY (type 18) of owner "Xen": the kernel can be entered by the PVH protocol
# (Xen's docs/misc/pvh.pandoc), which is how QEMU starts an uncompressed one.
# Name size, value size, type.
PVH_NOTES = tuple(struct.pack("<III", 4, size, 18) + b"Xen\0" for size in (4, 8))
XZ_MAGIC = b"\xfd7zXZ\0"


def boot_image(kernel: Kernel, directory: Path | None = None) -> Path:
    """What QEMU boots: the kernel, uncompressed here if it can be (an emulated CPU takes 3 s to).

    The result is cached; a kernel of unknown form is returned as it is.
    """
    info = kernel.image.stat()
    directory = (directory or cache_dir()) / "vmlinux"
    path = directory / f"{kernel.version}-{info.st_size:x}-{info.st_mtime_ns:x}"
    if path.exists():
        return path
    data = kernel.image.read_bytes()
    start = data.find(XZ_MAGIC)
    if start < 0:
        return kernel.image
    try:
        plain = lzma.LZMADecompressor().decompress(data[start:])
    except lzma.LZMAError:
        return kernel.image
    if not plain.startswith(b"\x7fELF") or not any(note in plain for note in PVH_NOTES):
        return kernel.image
    _keep(path, plain)
    return path


def _keep(path: Path, data: bytes) -> None:
    """Into the cache, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    partial.replace(path)


def busybox() -> bytes:
    """A statically linked busybox; the dynamic one of the `busybox` package could not run in an
    initramfs.
    """
    for candidate in (Path("/bin/busybox"), Path("/usr/bin/busybox")):
        if candidate.exists():
            data = candidate.read_bytes()
            if b"ld-linux" in data[:4096]:
                raise KernelError("busybox is dynamically linked: apt-get install busybox-static")
            return data
    raise KernelError("busybox is missing: apt-get install busybox-static (or run ./run test)")


def initramfs(kernel: Kernel, directory: Path | None = None) -> Path:
    """The initramfs for `kernel`, made when it is not in the cache yet."""
    directory = (directory or cache_dir()) / "initramfs"
    modules = boot_modules(kernel)
    static = busybox()
    archive = Cpio()
    for name in ("bin", "dev", "proc", "sys", "lower", "up", "newroot", "modules"):
        archive.directory(name)
    archive.device("dev/console", 5, 1)
    archive.file("init", INIT.encode(), 0o755)
    archive.file("bin/busybox", static, 0o755)
    archive.file("modules.list", "\n".join(modules).encode() + b"\n")
    for name, data in modules.items():
        archive.file(f"modules/{name}", data)
    content = archive.bytes()
    path = directory / f"{kernel.version}-{hashlib.sha256(content).hexdigest()[:16]}.gz"
    if path.exists():
        return path
    _keep(path, gzip.compress(content, compresslevel=1, mtime=0))
    return path
