"""The cases with their frames, made once: scapy takes ten seconds for them, a VM ten times that."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from lab.attacks.case import Case, dump, load

_KEPT = 7
_ROOM = Path(__file__).parent


def digest() -> str:
    """Of everything that decides what the frames are."""
    digest_ = hashlib.sha256()
    sources = [*sorted(_ROOM.rglob("*.py")), _ROOM.parents[1] / "dvn" / "addresses.py"]
    for source in sources:
        digest_.update(source.read_bytes())
    return digest_.hexdigest()[:16]


def directory() -> Path:
    """As ./run has it: DVN_CACHE, XDG_CACHE_HOME, else the system's or the user's own."""
    if given := os.environ.get("DVN_CACHE"):
        return Path(given)
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "dvn"
    return Path("/var/cache/dvn") if os.geteuid() == 0 else Path.home() / ".cache" / "dvn"


def kept() -> tuple[Case, ...] | None:
    """The cases, if somebody has made them of these very sources."""
    file = _file()
    return load(file.read_text()) if file.exists() else None


def cases() -> tuple[Case, ...]:
    """The cases, made now unless they are kept."""
    found = kept()
    if found is not None:
        return found
    from lab.attacks import catalogue

    made = tuple(catalogue.cases())
    file = _file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _forget_old(file.parent)
        new = file.with_suffix(f".{os.getpid()}")
        new.write_text(dump(made))
        new.replace(file)
    except OSError:
        return made  # not kept: a read-only file system, as in the lab's VM
    return made


def _forget_old(directory_: Path) -> None:
    """Several checkouts may share a cache; what nobody has made lately goes."""
    files = sorted(directory_.glob("attacks-*.json"), key=lambda each: each.stat().st_mtime)
    for old in files[:-_KEPT]:
        old.unlink(missing_ok=True)


def _file() -> Path:
    return directory() / f"attacks-{digest()}.json"
