"""Values below /proc/sys, and which of them are a link's."""

from __future__ import annotations

import os
from functools import lru_cache

NO_LINKS = frozenset({"", "all", "default"})  # in a sysctl's place for a link


@lru_cache(1 << 16)
def parts_of(key: str) -> tuple[str, str, str]:
    """(version, link, name) of a sysctl of a link; of another, nobody's link."""
    parts = key.split("/")
    if len(parts) == 5 and parts[2] == "conf":
        return parts[1], parts[3], parts[4]
    return "", "", ""


def read(path: str) -> str:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, 4096).decode().strip()
    finally:
        os.close(file)


def write(path: str, value: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, value.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(file)
