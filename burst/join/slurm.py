"""What a borrowed machine needs to be a Slurm node.

A dynamic node (slurmd -Z, slurmd(8)): slurmctld learns of it when it registers. The image has the
packages slurmd and munge; everything that is the site's own comes in the bundle.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from burst.join.accounts import accounts, file_servers, host_lines, mounted
from burst.join.bundle import (
    Bundle,
    BundleError,
    Command,
    Directory,
    File,
    Mount,
    Program,
    Reach,
    Version,
)
from burst.lrms.slurm_version import oldest_slurmd
from burst.model import Lease
from burst.policy.which import usable_memory_mb

# Kept beside slurm.conf and read by slurmd too, when they exist (slurm.conf(5), "FILES").
_COMPANIONS = ("cgroup.conf", "gres.conf", "job_container.conf", "topology.conf")
_CONF_DIRECTORY = "/etc/slurm"
_KEY_LENGTHS = range(32, 1025)  # bytes; munge(7), "munged(8) --key-file"
_NUMBER = re.compile(r"\d+")

# With systemd the package has started munged already, with a key of its own.
_MUNGED = """\
if [ -d /run/systemd/system ]; then exec systemctl restart munge; fi
munged --stop 2>/dev/null
exec setpriv --reuid munge --regid munge --clear-groups munged"""
_MUNGE_WORKS = "munge -n | unmunge >/dev/null"
# Slurm 22.05 without systemd does not make the cgroup it wants to live in.
_SLICE = "[ -d /run/systemd/system ] || mkdir -p /sys/fs/cgroup/system.slice"


@dataclass(frozen=True, slots=True)
class SlurmJoin:
    """Where the gateway finds what its borrowed nodes need; files are read for each bundle."""

    munge_key: Path
    slurm_conf: Path
    job_users: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)  # more lines for /etc/hosts
    install: str = ""  # a shell line, run when the image lacks a program
    reach_timeout: timedelta = timedelta(minutes=10)
    mtu: int = 0  # of the tunnel; 0: it is not tried out
    version: Callable[[], tuple[int, int] | None] = lambda: None  # of the farm's slurmctld
    resolve: Callable[[str], str] = socket.gethostbyname

    def bundle(self, lease: Lease, features: Sequence[str]) -> Bundle:
        """What the machine of `lease` gets; the partition's NodeSet goes by `features`.

        Raises `BundleError` when a file or a user is missing.
        """
        key = _read(self.munge_key, "munge_key")
        if len(key) not in _KEY_LENGTHS:
            raise BundleError(
                f"{self.munge_key}: {len(key)} bytes are no munge key (32 to 1024): see mungekey(8)"
            )
        conf = _read(self.slurm_conf, "slurm_conf")
        settings = _Settings(self.slurm_conf, conf)
        slurm_user = settings.get("SlurmUser", "root")
        names = (*self.job_users, *(() if slurm_user == "root" else (slurm_user,)))
        users, groups = accounts(names)
        heads = self._heads(settings)
        companions = [
            File(f"{_CONF_DIRECTORY}/{path.name}", _read(path, "slurm_conf"))
            for path in (self.slurm_conf.with_name(name) for name in _COMPANIONS)
            if path.exists()
        ]
        hosts = {**heads, **self.hosts, lease.node: lease.address}
        return Bundle(
            node=lease.node,
            preflight=(Program("munged", "munge"), Program("slurmd", "slurmd")),
            install=self.install,
            users=users,
            groups=groups,
            directories=(
                Directory("/etc/munge", 0o700, "munge:munge"),
                Directory("/var/lib/munge", 0o700, "munge:munge"),
                Directory("/var/log/munge", 0o700, "munge:munge"),
                Directory("/run/munge", 0o755, "munge:munge"),
                *_log_directories(settings, slurm_user),
                Directory(settings.path("SlurmdSpoolDir", "/var/spool/slurmd", lease.node), 0o755),
            ),
            files=(
                File("/etc/munge/munge.key", key, 0o400, "munge:munge"),
                File(f"{_CONF_DIRECTORY}/slurm.conf", conf),
                *companions,
                File("/etc/hosts", host_lines(hosts), merge=True),
            ),
            versions=_versions(self.version()),
            names=tuple(sorted({**heads, lease.node: lease.address}.items())),
            mtu=self.mtu,
            reach=(*self._slurmctld(settings, heads), *file_servers(self.mounts)),
            reach_timeout=self.reach_timeout,
            mounts=mounted(self.mounts, lease.address),
            commands=(
                Command("hostname", ("hostname", lease.node)),
                Command("munged", ("sh", "-c", _MUNGED)),
                Command("munge", ("sh", "-c", _MUNGE_WORKS), attempts=5),
                Command("cgroup", ("sh", "-c", _SLICE), may_fail=True),
                Command("slurmd", _slurmd(lease, features), timedelta(minutes=2)),
            ),
            memory_mb=usable_memory_mb(lease.memory_mb),
        )

    def _heads(self, settings: _Settings) -> dict[str, str]:
        """The controllers' names and addresses: `SlurmctldHost=name(address)`, slurm.conf(5)."""
        heads = {}
        for value in settings.all("SlurmctldHost"):
            name, bracket, address = value.partition("(")
            address = address.rstrip(")") if bracket else name
            try:
                heads[name] = str(ipaddress.ip_address(address))
            except ValueError:
                heads[name] = self._resolved(address, settings)
        if not heads:
            raise BundleError(
                f"{self.slurm_conf}: no SlurmctldHost: a borrowed node could not find its farm"
            )
        return heads

    def _resolved(self, name: str, settings: _Settings) -> str:
        try:
            return self.resolve(name)
        except OSError as error:
            raise BundleError(
                f"{self.slurm_conf}: the address of SlurmctldHost {name} is not known here; "
                f"write SlurmctldHost={name}(ADDRESS), with its address in the tenant network"
            ) from error

    def _slurmctld(self, settings: _Settings, heads: Mapping[str, str]) -> list[Reach]:
        port = _NUMBER.match(settings.get("SlurmctldPort", "6817"))  # may be a range
        number = int(port.group()) if port else 6817
        return [Reach("slurmctld", address, number) for address in list(heads.values())[:1]]


class _Settings:
    """The `Name=Value` lines of a slurm.conf that concern a joining node; names in any case."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._values: list[tuple[str, str]] = []
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise BundleError(f"{path}: not a text file") from error
        for line in text.replace("\\\n", " ").splitlines():
            name, equals, value = line.partition("#")[0].strip().partition("=")
            if equals:
                self._values.append((name.strip().lower(), value.strip()))

    def all(self, name: str) -> list[str]:
        return [value for known, value in self._values if known == name.lower()]

    def get(self, name: str, default: str) -> str:
        return next(iter(self.all(name)), default)

    def path(self, name: str, default: str, node: str) -> str:
        """A path with %h and %n (host and node name) filled in."""
        return self.get(name, default).replace("%h", node).replace("%n", node)


def _versions(farm: tuple[int, int] | None) -> tuple[Version, ...]:
    least = oldest_slurmd(farm) if farm is not None else None
    if farm is None or least is None:
        return ()  # not known here: slurmctld itself will say
    why = f"slurmctld {farm[0]}.{farm[1]:02d} of the farm takes"
    return (Version("slurmd", ("slurmd", "-V"), least, farm, why),)


def _slurmd(lease: Lease, features: Sequence[str]) -> tuple[str, ...]:
    conf = f"NodeAddr={lease.address} CPUs={lease.cores} RealMemory={{memory_mb}}"
    if features:
        conf += f" Feature={','.join(features)}"
    return ("slurmd", "-Z", "-N", lease.node, "--conf", conf)


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path}: {error.strerror}; the gateway's user must be able to read it "
            f"(burst.lrms.{setting} in the site file)"
        ) from error


def _log_directories(settings: _Settings, slurm_user: str) -> list[Directory]:
    log = settings.path("SlurmdLogFile", "", "")
    parent = str(Path(log).parent)
    # A directory of the image's own stays as it is.
    shared = parent in ("/", "/var/log", "/tmp", ".")
    return [] if shared else [Directory(parent, 0o755, slurm_user)]
