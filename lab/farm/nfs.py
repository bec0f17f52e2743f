"""The shared /home: the kernel's NFSv4 server on the head, mounts on everybody else.

nfsd(7), mountd and the client tracking daemon run inside the head's network namespace; the export
is a file system in memory (a tmpfs can be exported when it has an fsid), because the overlays that
lab hosts stand on cannot. Without nfsdcld the server would refuse to open files for a grace period
of ten seconds and more (no client to reclaim: it skips the period).
"""

from __future__ import annotations

from lab.farm.config import User
from lab.host import Host

NFS_PORT = 2049
EXPORT = "/run/dvn-lab-export"

_SERVE = (
    r"""
size=$1 network=$2; shift 2
modprobe -a nfsd 2>/dev/null || true
mkdir -p {export} /run/rpc_pipefs /run/nfsdcld /var/lib/nfs
mount -t tmpfs -o "size=$size,mode=0755" dvn-lab-export {export}
mkdir {export}/home
mount --bind {export}/home /home
mount -t nfsd nfsd /proc/fs/nfsd
mount -t rpc_pipefs rpc_pipefs /run/rpc_pipefs
printf '%s %s(rw,fsid=0,async,no_subtree_check,root_squash,sec=sys)\n' {export} "$network" \
    > /etc/exports
: > /var/lib/nfs/etab
: > /var/lib/nfs/rmtab
exportfs -ra
nfsdcld -p /run/rpc_pipefs -s /run/nfsdcld
rpc.mountd -N 3 -u
echo '-2 -3 +4' > /proc/fs/nfsd/versions
echo 'tcp 2049' > /proc/fs/nfsd/portlist
echo 4 > /proc/fs/nfsd/threads
for user in "$@"; do
    mkdir -m 0755 "/home/${{user%%:*}}"
    chown "${{user##*:}}:${{user##*:}}" "/home/${{user%%:*}}"
done
""".replace("{export}", EXPORT)
    .replace("{{", "{")
    .replace("}}", "}")
)


def serve(head: Host, *, network: str, users: tuple[User, ...], size: str = "1g") -> None:
    """Start the server on the head, with a home directory for each user.

    network: who may mount, "10.9.0.0/24". Root of a client is nobody here (root_squash).
    """
    head.script(_SERVE, size, network, *(f"{user.name}:{user.uid}" for user in users))


def stop(head: Host) -> None:
    """End the server; its memory is freed with the host."""
    head.script("echo 0 > /proc/fs/nfsd/threads; exportfs -ua; umount -l /proc/fs/nfsd")


def mount_command(server: str, own_address: str) -> tuple[str, ...]:
    """The command that mounts /home; needs no mount helper on the machine (-i).

    soft, on purpose: with a hard mount over a dead tunnel nothing could be unmounted or killed.
    """
    options = (
        "vers=4.2,soft,timeo=100,retrans=2,actimeo=1"
        f",addr={server},clientaddr={own_address}"
    )
    return ("mount", "-i", "-t", "nfs4", "-o", options, f"{server}:/home", "/home")
