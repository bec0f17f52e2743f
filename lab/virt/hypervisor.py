"""A lab host with libvirtd and QEMU: a hypervisor of its own. The machine's is never touched.

Everything of libvirt's lives in the host's own /etc, /var and /run; its guests are processes of
the host, and end with it. They are emulated (TCG), so this works wherever a process can run.
"""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from burst.providers.base import ProviderError
from burst.providers.libvirt_host import LibvirtHost
from lab.host import Host, LabError, stop, wait_for

IMAGES = "/var/lib/libvirt/images"
_DIRECTORIES = (
    IMAGES,
    "/var/lib/libvirt/qemu",
    "/var/cache/libvirt",
    "/var/log/libvirt/qemu",
    "/run/libvirt",
    "/etc/libvirt/qemu",
)
_LIBVIRTD = 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n'
# Guests run as the host's root in the host's own namespaces; there is no AppArmor and no cgroup
# that libvirt might manage.
_QEMU = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
remember_owner = 0
stdio_handler = "file"
"""
_POOL = f"<pool type='dir'><name>default</name><target><path>{IMAGES}</path></target></pool>\n"
_ACCOUNT = "libvirt-qemu"  # libvirtd looks its default user up even when it is told another
_UP_LIMIT_S = 60.0


def available() -> str:
    """What is missing to run guests here, for a message; empty when nothing is."""
    needed = {
        "libvirtd": "libvirt-daemon",
        "virsh": "libvirt-clients",
        "qemu-system-x86_64": "qemu-system-x86",
        "qemu-img": "qemu-utils",
    }
    lacking = [
        package
        for name, package in needed.items()
        if not shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    ]
    return f"apt-get install {' '.join(lacking)}" if lacking else ""


class HypervisorHost:
    """libvirtd on a lab host, up when the context is entered, with a storage pool `default`."""

    def __init__(self, host: Host, log: Path) -> None:
        self.host = host
        self.log = log
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> HypervisorHost:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def uri(self) -> str:
        """From outside the host: its socket, seen through its first process."""
        return f"qemu+unix:///system?socket=/proc/{self.host.pid}/root/run/libvirt/libvirt-sock"

    def start(self) -> None:
        """Start libvirtd; returns when it answers. A second call after `stop` starts another."""
        if lacking := available():
            raise LabError(f"{self.host.name}: guests need more packages: {lacking}")
        self.host.inside(_prepare)
        self._daemon = self.host.spawn("libvirtd", log=self.log)
        wait_for(self._answers, _UP_LIMIT_S, what="an answer of libvirtd", interval=0.05)
        pools = self.host.run("virsh", "pool-list", "--all", "--name").stdout.split()
        if "default" not in pools:
            self.host.run("virsh", "pool-define", "/dev/stdin", input=_POOL)
        self.host.run("virsh", "pool-autostart", "default")
        self.host.run("virsh", "pool-start", "default", check=False)  # it may be started already

    def stop(self) -> None:
        """End libvirtd; guests run on, as they do when it is restarted at a real site."""
        if self._daemon is not None and self.host.alive:
            stop(self._daemon, patience=10.0)
        self._daemon = None

    def virsh(self, *arguments: str, check: bool = True) -> str:
        return self.host.run("virsh", *arguments, check=check).stdout

    def files(self) -> list[str]:
        """What lies in the storage pool."""
        return sorted(self.host.inside(lambda: [path.name for path in Path(IMAGES).iterdir()]))

    def _answers(self) -> bool:
        with suppress(ProviderError):
            LibvirtHost(self.uri).size()
            return True
        return False


def _prepare() -> None:
    for directory in _DIRECTORIES:
        Path(directory).mkdir(parents=True, exist_ok=True)
    Path("/etc/libvirt/libvirtd.conf").write_text(_LIBVIRTD)
    Path("/etc/libvirt/qemu.conf").write_text(_QEMU)
    lines = (
        ("/etc/passwd", f"{_ACCOUNT}:x:64055:64055::/var/lib/libvirt:/bin/false\n"),
        ("/etc/group", f"{_ACCOUNT}:x:64055:\n"),
    )
    for path, line in lines:
        text = Path(path).read_text()
        if f"\n{_ACCOUNT}:" not in text:
            Path(path).write_text(text.rstrip("\n") + "\n" + line)
