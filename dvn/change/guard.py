"""The guard: a process of its own that undoes a trial when its time is over, or the operator's way
is lost, whatever becomes of the command that began it.

It is forked before anything is changed, into a session of its own, so that neither the end of the
terminal nor a kill of the command reaches it. While it lives it holds `SITE.guard`. If it is killed
too, the next dvn command or agent finds the file of the trial and finishes what is to be done.
"""

from __future__ import annotations

import os
import signal
import syslog
import time
from pathlib import Path
from typing import TextIO

from dvn.change.changes import Changes
from dvn.change.files import ChangeError, try_lock
from dvn.change.history import Revision
from dvn.change.memory import SwitchMemory
from dvn.change.names import GUARD, call_thread
from dvn.change.operator import OperatorWatch
from dvn.change.pending import PendingStore
from dvn.engine import ApplyError, Engine
from dvn.kernel.driver import KernelError

_LOOK_S = 0.25
_AGAIN_S = 1.0
_ALL_DESCRIPTORS = 1 << 16


def alive(root: Path, site: str) -> bool:
    """Whether a guard watches over the site's trial."""
    with PendingStore(root).guard_file(site).open("a") as file:
        return not try_lock(file.fileno())


def start(root: Path, site: str) -> None:
    """Fork a guard and wait until it watches. ChangeError if it cannot.

    Fork without exec: it needs no file and no memory that the change could take away.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            _become(root, site, writer)
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as said:
        signal_ = said.read(1)
    if signal_ != "1":
        raise ChangeError("the guard that would undo the change could not start: nothing was tried")


def _become(root: Path, site: str, ready: int) -> None:
    """The child: leave the caller's session, and let the caller be no parent."""
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    kept = os.dup(ready)
    high = os.dup2(kept, 3) if kept != 3 else 3
    os.closerange(4, _ALL_DESCRIPTORS)
    watch(root, site, ready=high)


def watch(root: Path, site: str, *, ready: int | None = None) -> None:
    """Until the trial is decided. `ready`: a descriptor told (and closed) once it watches."""
    # A look of its own, not the lock of a fork's parent: with the process it goes.
    call_thread(GUARD)
    changes = Changes(Engine(memory=SwitchMemory()), root)
    syslog.openlog("dvn-guard", syslog.LOG_PID, syslog.LOG_DAEMON)
    with changes.pending.guard_file(site).open("a") as file:
        if not _held(file):
            return
        pending = changes.pending.get(site)
        operator = OperatorWatch(pending.watch) if pending and pending.watch else None
        if ready is not None:
            os.write(ready, b"1")
            os.close(ready)
        while (pending := changes.pending.get(site)) is not None:
            reason = changes.verdict(pending) or (operator.lost() if operator else "")
            if reason:
                _undo(changes, site, reason)
            time.sleep(_LOOK_S)


def _held(file: TextIO) -> bool:
    end = time.monotonic() + _LOOK_S * 4
    while not try_lock(file.fileno()):
        if time.monotonic() > end:
            return False
        time.sleep(_LOOK_S / 10)
    return True


def _undo(changes: Changes, site: str, reason: str) -> None:
    """Again and again until the kernel lets us: nobody else is there to."""
    while True:
        try:
            kept = changes.undo(site, reason)
        except (ApplyError, KernelError, ChangeError) as error:
            syslog.syslog(syslog.LOG_ERR, f"site={site} event=cannot-undo error={error}")
            time.sleep(_AGAIN_S)
            continue
        if kept is not None:
            syslog.syslog(syslog.LOG_WARNING, f"site={site} event=undone reason={reason}")
        return


def finish_left(changes: Changes, root: Path, *, restart: bool) -> tuple[Revision, ...]:
    """Finish what killed processes left of any site. `restart`: where a trial has time left and
    its guard is gone, start another. Raises ApplyError, KernelError, ChangeError."""
    ended = []
    for site in changes.pending.sites():
        guarded = alive(root, site)
        kept = changes.recover(site, guarded=guarded)
        if kept is not None:
            ended.append(kept)
        elif restart and not guarded and changes.pending.get(site) is not None:
            start(root, site)
    return tuple(ended)
