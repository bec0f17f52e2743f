"""The shared /home: the kernel's NFSv4 server on the head, mounts on everybody else.

nfsd(7), mountd and the client tracking daemon run inside the head's network namespace; the export
is a file system in memory (a tmpfs can be exported when it has an fsid), because the overlays that
lab hosts stand on cannot. Without nfsdcld the server would refuse to open files for a grace period
of ten seconds and more (no client to reclaim: it skips the period).
"""

from __future__ import annotations

import os
from pathlib import Path

from lab import linux
from lab.farm.config import User
from lab.host import Host, LabError

NFS_PORT = 2049
EXPORT = "/run/dvn-lab-export"

_SERVE = """
exportfs -ra
nfsdcld -p /run/rpc_pipefs -s /run/nfsdcld
rpc.mountd -N 3 -u
echo '-2 -3 +4' > /proc/fs/nfsd/versions
echo 'tcp 2049' > /proc/fs/nfsd/portlist
echo 4 > /proc/fs/nfsd/threads
"""


def serve(head: Host, *, network: str, users: tuple[User, ...], size: str = "1g") -> None:
    """Start the server on the head, with a home directory for each user.

    network: who may mount, "10.9.0.0/24". Root of a client is nobody here (root_squash).
    """
    options = "rw,fsid=0,async,no_subtree_check,root_squash,sec=sys"

    def furnish() -> None:
        home = Path(EXPORT, "home")
        for path in (EXPORT, "/run/rpc_pipefs", "/run/nfsdcld", "/var/lib/nfs"):
            Path(path).mkdir(parents=True, exist_ok=True)
        linux.mount("dvn-lab-export", EXPORT, "tmpfs", 0, f"size={size},mode=0755")
        home.mkdir()
        linux.mount(str(home), "/home", "", linux.MS_BIND)
        linux.mount("nfsd", "/proc/fs/nfsd", "nfsd")  # loads the module
        linux.mount("rpc_pipefs", "/run/rpc_pipefs", "rpc_pipefs")
        Path("/etc/exports").write_text(f"{EXPORT} {network}({options})\n")
        for table in ("etab", "rmtab"):
            Path("/var/lib/nfs", table).write_text("")
        for user in users:
            place = home / user.name
            place.mkdir()
            os.chown(place, user.uid, user.uid)
            place.chmod(0o755)

    try:
        head.inside(furnish)
    except OSError as error:
        raise LabError(
            f"{head.name}: cannot prepare the NFS server: {error}: the kernel needs nfsd"
        ) from error
    head.script(_SERVE)


def stop(head: Host) -> None:
    """End the server; its memory is freed with the host."""
    head.script("echo 0 > /proc/fs/nfsd/threads; exportfs -ua; umount -l /proc/fs/nfsd")


def mount_command(server: str, own_address: str) -> tuple[str, ...]:
    """The command that mounts /home; needs no mount helper on the machine (-i).

    soft, on purpose: with a hard mount over a dead tunnel nothing could be unmounted or killed.
    """
    options = f"vers=4.2,soft,timeo=100,retrans=2,actimeo=1,addr={server},clientaddr={own_address}"
    return ("mount", "-i", "-t", "nfs4", "-o", options, f"{server}:/home", "/home")
