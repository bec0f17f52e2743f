"""What a borrowed machine is given once it has proved itself: the secrets, and what to do.

A bundle is a value; the machine's `apply.py` carries it out in the order of the fields here.
It travels only in the answer to an enrolment, over TLS with the gateway's pinned key.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any


class BundleError(Exception):
    """The bundle cannot be made now: which file or name, and why. The message is for people."""


@dataclass(frozen=True, slots=True)
class Group:
    name: str
    gid: int
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class User:
    """An account that must have the same numbers here as everywhere in the farm."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str
    full_name: str = ""


@dataclass(frozen=True, slots=True)
class Directory:
    path: str
    mode: int
    owner: str = "root"  # user, or user:group


@dataclass(frozen=True, slots=True)
class File:
    """A file written whole and atomically; with `merge`, lines kept within an existing file."""

    path: str
    content: bytes
    mode: int = 0o644
    owner: str = "root"
    merge: bool = False

    def __repr__(self) -> str:  # contents are secrets: not into logs or tracebacks
        return f"File({self.path!r}, {len(self.content)} bytes, mode={self.mode:o})"


@dataclass(frozen=True, slots=True)
class Program:
    """A program the image must have, and what to install when it has not."""

    name: str
    package: str


@dataclass(frozen=True, slots=True)
class Reach:
    """A TCP service that must answer, through the tunnel, before anything is mounted or started."""

    name: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Version:
    """A program whose version must be within `least` and `most`, each as (major, minor)."""

    name: str
    argv: tuple[str, ...]  # its output holds MAJOR.MINOR
    least: tuple[int, int]
    most: tuple[int, int]
    why: str  # for people: what it must fit


@dataclass(frozen=True, slots=True)
class Mount:
    source: str
    target: str
    type: str
    options: str = ""
    bare_options: str = ""  # for mount -i, on an image without the helper mount.TYPE

    @classmethod
    def parse(cls, text: str) -> Mount:
        """`SOURCE TARGET TYPE [OPTIONS]`, the first four fields of fstab(5)."""
        fields = text.split()
        if len(fields) not in (3, 4) or not fields[1].startswith("/"):
            raise BundleError(
                f"mount {text!r}: write it as in fstab, SOURCE TARGET TYPE [OPTIONS], "
                "for example: 10.9.0.10:/home /home nfs4"
            )
        return cls(*fields)


@dataclass(frozen=True, slots=True)
class Command:
    """One command, run as root or `user`; a status other than 0 ends the joining unless allowed."""

    name: str  # the stage in reports
    argv: tuple[str, ...]
    timeout: timedelta = timedelta(seconds=60)
    user: str = "root"
    may_fail: bool = False
    attempts: int = 1  # tried again after a pause, for services that come up at their own pace


@dataclass(frozen=True, slots=True)
class Bundle:
    """Everything a machine needs to become a node, in the order in which it is done."""

    node: str
    preflight: tuple[Program, ...] = ()
    install: str = ""  # a shell line run once when a program of `preflight` is missing
    groups: tuple[Group, ...] = ()
    users: tuple[User, ...] = ()
    directories: tuple[Directory, ...] = ()
    files: tuple[File, ...] = ()
    versions: tuple[Version, ...] = ()
    names: tuple[tuple[str, str], ...] = ()  # name and address that must agree on the machine
    reach: tuple[Reach, ...] = ()
    reach_timeout: timedelta = timedelta(minutes=10)
    mtu: int = 0  # of the tunnel: packets of this size must pass to `reach`; 0: untried
    mounts: tuple[Mount, ...] = ()
    commands: tuple[Command, ...] = ()
    memory_mb: int = 0  # "{memory_mb}" in an argument: the lesser of this and what the machine has

    def to_json(self) -> dict[str, Any]:
        """As the machine reads it; durations in seconds, contents in base64.

        With it goes the program that carries it out, so that the two are always of one version.
        """
        return {
            "program": Path(__file__).with_name("apply.py").read_text(encoding="utf-8"),
            "node": self.node,
            "preflight": [{"name": p.name, "package": p.package} for p in self.preflight],
            "install": self.install,
            "groups": [
                {"name": g.name, "gid": g.gid, "members": list(g.members)} for g in self.groups
            ],
            "users": [
                {
                    "name": u.name,
                    "uid": u.uid,
                    "gid": u.gid,
                    "home": u.home,
                    "shell": u.shell,
                    "full_name": u.full_name,
                }
                for u in self.users
            ],
            "directories": [
                {"path": d.path, "mode": d.mode, "owner": d.owner} for d in self.directories
            ],
            "files": [
                {
                    "path": f.path,
                    "mode": f.mode,
                    "owner": f.owner,
                    "merge": f.merge,
                    "content_b64": base64.b64encode(f.content).decode(),
                }
                for f in self.files
            ],
            "versions": [
                {
                    "name": v.name,
                    "argv": list(v.argv),
                    "least": list(v.least),
                    "most": list(v.most),
                    "why": v.why,
                }
                for v in self.versions
            ],
            "names": [{"name": name, "address": address} for name, address in self.names],
            "mtu": self.mtu,
            "reach": [{"name": r.name, "address": r.address, "port": r.port} for r in self.reach],
            "reach_timeout": self.reach_timeout.total_seconds(),
            "mounts": [
                {
                    "source": m.source,
                    "target": m.target,
                    "type": m.type,
                    "options": m.options,
                    "bare_options": m.bare_options,
                }
                for m in self.mounts
            ],
            "commands": [
                {
                    "name": c.name,
                    "argv": list(c.argv),
                    "timeout": c.timeout.total_seconds(),
                    "user": c.user,
                    "may_fail": c.may_fail,
                    "attempts": c.attempts,
                }
                for c in self.commands
            ],
            "memory_mb": self.memory_mb,
        }
