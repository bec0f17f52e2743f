"""What a machine needs of the site whatever its batch system: accounts, names, file systems."""

from __future__ import annotations

import grp
import ipaddress
import pwd
from collections.abc import Mapping, Sequence
from dataclasses import replace

from burst.join.bundle import BundleError, Group, Mount, Reach, User

NFS_PORT = 2049
_NFS_OPTIONS = "vers=4.2,hard,nosuid,nodev"


def accounts(names: Sequence[str]) -> tuple[tuple[User, ...], tuple[Group, ...]]:
    """The accounts as this host knows them: the farm's numbers."""
    users: dict[str, User] = {}
    groups: dict[str, Group] = {}
    for name in names:
        try:
            entry = pwd.getpwnam(name)
            group = grp.getgrgid(entry.pw_gid)
        except KeyError as error:
            raise BundleError(
                f"user {name} or its group is not known on the gateway; borrowed nodes need its "
                "numbers (burst.lrms.job_users in the site file)"
            ) from error
        users[name] = User(
            name, entry.pw_uid, entry.pw_gid, entry.pw_dir, entry.pw_shell, entry.pw_gecos
        )
        groups[group.gr_name] = Group(group.gr_name, group.gr_gid, tuple(group.gr_mem))
    return tuple(users.values()), tuple(groups.values())


def host_lines(hosts: Mapping[str, str]) -> bytes:
    return "".join(f"{address} {name}\n" for name, address in sorted(hosts.items())).encode()


def _nfs_server(mount: Mount) -> str:
    """The literal address of an NFS mount's server; empty for others."""
    server = mount.source.partition(":")[0]
    try:
        return str(ipaddress.IPv4Address(server)) if mount.type in ("nfs", "nfs4") else ""
    except ValueError:
        return ""


def file_servers(mounts: Sequence[Mount]) -> list[Reach]:
    servers = dict.fromkeys(server for mount in mounts if (server := _nfs_server(mount)))
    return [Reach("NFS server", server, NFS_PORT) for server in servers]


def _complete(mount: Mount, own_address: str) -> Mount:
    """With options for nfs(5), and those mount(8) needs where the image lacks mount.nfs4."""
    if mount.type != "nfs4":
        return mount
    options = mount.options or _NFS_OPTIONS
    server = _nfs_server(mount)
    bare = f"{options},addr={server},clientaddr={own_address}" if server else ""
    return replace(mount, options=options, bare_options=bare)


def mounted(mounts: Sequence[Mount], own_address: str) -> tuple[Mount, ...]:
    """The mounts with the options they need on a machine of that address."""
    return tuple(_complete(mount, own_address) for mount in mounts)
