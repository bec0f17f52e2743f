"""Small JSON files that survive a kill and a power cut, in directories that only root writes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STATE_VARIABLE = "DVN_STATE"
_DEFAULT = Path("/var/lib/dvn")
_LOCK_POLL_S = 0.02


class ChangeError(RuntimeError):
    """A change cannot be kept, found or decided; the text says why and what to do."""


def state_directory() -> Path:
    """Where history and changes under way are kept: $DVN_STATE, /var/lib/dvn unless given."""
    return Path(os.environ.get(STATE_VARIABLE) or _DEFAULT)


def own_directory(path: Path) -> Path:
    """`path`, made if need be, for us alone.

    The directory above may belong to the daemon's user: what is not ours, or a link to somewhere
    else, is refused with ChangeError instead of being written to as root.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
    except OSError as error:
        raise ChangeError(f"cannot make {path}: {error.strerror}; run as root") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise ChangeError(f"{path} is not a directory of ours: move it away")
    return path


def write_json(path: Path, value: Any) -> None:
    """Replace the file as a whole: who reads it sees the old text or the new one."""
    unfinished = _unfinished(path)
    _write(unfinished, value)
    unfinished.replace(path)
    _sync(path.parent)


def create_json(path: Path, value: Any) -> None:
    """Write a new file as a whole. FileExistsError if there is one of this name."""
    unfinished = _unfinished(path)
    _write(unfinished, value)
    try:
        os.link(unfinished, path)
    finally:
        unfinished.unlink()
    _sync(path.parent)


def read_json(path: Path) -> dict[str, Any] | None:
    """What the file holds; None if there is none. ChangeError if it is no JSON object."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise ChangeError(f"cannot read {path}: run as root") from error
    except (OSError, ValueError) as error:
        raise ChangeError(f"{path} cannot be read ({error}): move it away") from error
    if not isinstance(value, dict):
        raise ChangeError(f"{path} holds no JSON object: move it away")
    return value


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _sync(path.parent)


@contextmanager
def locked(path: Path, *, patience_s: float) -> Iterator[None]:
    """Hold the lock file `path`; the kernel lets it go with the process. ChangeError if another
    holds it for longer than `patience_s`."""
    with path.open("a") as file:
        end = time.monotonic() + patience_s
        while not try_lock(file.fileno()):
            if time.monotonic() > end:
                raise ChangeError(f"another dvn process has held {path} for {patience_s:.0f} s")
            time.sleep(_LOCK_POLL_S)
        yield


def try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _write(path: Path, value: Any) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    """That the name is on the disk too."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
