"""Another Debian's commands on a host that otherwise is the machine's: the gateway of a farm whose
batch system this Debian has no package for, or another version of.

The tree is laid at `lab.farm.trees.ROOT`; a script in /usr/local/bin for each command enters it.
An ordinary user may do so in a user namespace of its own (user_namespaces(7)), where it keeps its
number, so that munged and others still see who speaks to them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lab import linux
from lab.farm.config import User
from lab.farm.trees import ROOT, Tree, TreeHost
from lab.host import Host, LabError

DIRECTORY = "/usr/local/bin"  # before /usr/bin in PATH; must be private to the host
_ENTER = (
    f"#!/bin/sh\nexec unshare --user --map-current-user --root={ROOT} --wd=/ --"
    ' /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin "${0##*/}" "$@"\n'
)


def account(tree: Tree, name: str) -> User:
    """A system user of the tree, to be known by the same number outside of it."""
    for line in (tree.path / "etc/passwd").read_text().splitlines():
        fields = line.split(":")
        if fields[0] == name:
            return User(name, int(fields[2]), int(fields[3]))
    raise LabError(f"{tree.path} has no user {name}")


def lay(host: Host, tree: Tree, programs: Iterable[str], shared: Iterable[str] = ()) -> TreeHost:
    """Give a host the tree's programs; shared: files and directories that the tree sees as they are
    on the host, which must exist."""
    inner = TreeHost(host, tree)
    paths = tuple(shared)

    def share() -> None:
        for path in paths:
            target = Path(f"{ROOT}{path}")
            if Path(path).is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
            linux.mount(path, target, "", linux.MS_BIND)
        for name in programs:
            script = Path(DIRECTORY, name)
            script.write_text(_ENTER)
            script.chmod(0o755)

    try:
        host.inside(share)
    except OSError as error:
        raise LabError(f"{host.name}: cannot share files with its tree: {error}") from error
    return inner
