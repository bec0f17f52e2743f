"""The privileged half: holds CAP_NET_ADMIN, knows nothing of clouds, trusts nobody.

`python -m dvn.agent --socket PATH` answers JSON lines on a unix socket (protocol.py), one thread a
connection; what changes the kernel goes one at a time. It checks every spec itself. When the
descriptor `--parent-fd` reads end-of-file, its parent is dead and it exits, leaving the kernel as
it is: traffic goes on, and the next start finds everything by its stamps.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import grp
import json
import logging
import os
import pwd
import selectors
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TextIO

from dvn.change.changes import Changes
from dvn.change.files import ChangeError, state_directory
from dvn.change.guard import finish_left
from dvn.change.keeper import Keeper
from dvn.change.memory import SwitchMemory
from dvn.change.names import AGENT, call_thread
from dvn.change.wanted import DAEMON, Standing, WantedSites
from dvn.engine import ApplyError, Engine
from dvn.kernel.driver import KernelError
from dvn.kernel.state import KernelState
from dvn.present import state_to_json
from dvn.problems import SpecError
from dvn.protocol import MAX_LINE, problems_to_json
from dvn.spec import Site, site_from_json
from dvn.status import Applied
from dvn.values import site_name

Answer = dict[str, Any]

_MAX_PROBES, _MAX_TIMEOUT_S = 100, 60.0
_FINISH_S = 30.0
_TAKEOVER_POLL_S = 0.05


class RequestError(ValueError):
    """The request is none we know."""


class Agent:
    """Answers requests with an engine; `answer` is all of it that is not sockets.

    `changes`: history and trials of this host. With them the agent keeps what was applied last
    (change/keeper.py) and heeds what an operator does by hand.
    """

    def __init__(self, engine: Engine, changes: Changes | None = None) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._changes = changes
        self._wanted = WantedSites(changes) if changes else None
        self.keeper = Keeper(self) if changes else None
        self._operations: dict[str, Callable[[Answer], Answer]] = {
            "ping": lambda _request: {"pid": os.getpid()},
            "plan": self._plan,
            "apply": self._apply,
            "destroy": self._destroy,
            "show": self._show,
            "tunnels": self._tunnels,
            "probe": self._probe,
            "drift": self._drift,
        }

    def finish(self) -> None:
        """Wait until no change is under way, and begin none any more."""
        self._lock.acquire(timeout=_FINISH_S)

    def answer(self, line: bytes) -> Answer:
        """The answer to one line; never raises for what a client can send."""
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise RequestError("a request is an object")
            operation = self._operations.get(str(request.get("op")))
            if operation is None:
                raise RequestError(f"op {request.get('op')!r} is not known")
            return {"ok": True, **operation(request)}
        except SpecError as error:
            return {
                "ok": False,
                "kind": "spec",
                "error": str(error),
                "problems": problems_to_json(error),
            }
        except (ApplyError, KernelError, ChangeError) as error:
            return {"ok": False, "kind": "kernel", "error": str(error)}
        except (RequestError, ValueError, TypeError, RecursionError) as error:
            return {"ok": False, "kind": "request", "error": f"bad request: {error}"}

    def _plan(self, request: Answer) -> Answer:
        site = site_from_json(request.get("site"))
        with self._lock:
            return {"steps": list(self._engine.plan(site).lines())}

    def _apply(self, request: Answer) -> Answer:
        site = site_from_json(request.get("site"))
        with self._lock, self._undecided(site.site):
            standing = self._wanted.asked(site) if self._wanted else Standing(site)
            applied = self._engine.apply(standing.site)
            if self._wanted and not standing.note:
                self._wanted.done(site)
        if self.keeper and applied.steps:
            self.keeper.wake()
        notes = (*applied.notes, standing.note) if standing.note else applied.notes
        return {"applied": dataclasses.asdict(dataclasses.replace(applied, notes=notes))}

    def _destroy(self, request: Answer) -> Answer:
        name = site_name(request.get("site"))
        with self._lock:
            if self._changes and self._wanted:
                applied = self._changes.destroy(name, DAEMON)
                self._wanted.forget(name)
            else:
                applied = self._engine.destroy(name)
        return {"applied": dataclasses.asdict(applied)}

    def _drift(self, _request: Answer) -> Answer:
        """What the keeper repaired and what it found; see Keeper.status."""
        return {"drift": self.keeper.status() if self.keeper else {"watching": False}}

    # -- for the keeper, from its thread

    def wanted(self) -> Mapping[str, Site]:
        with self._lock:
            return self._wanted.sites() if self._wanted else {}

    def waiting(self) -> frozenset[str]:
        return frozenset(self._changes.pending.sites() if self._changes else ())

    def planned(self, name: str) -> tuple[str, ...]:
        with self._lock:
            site = self._wanted.sites().get(name) if self._wanted else None
            if site is None or self._wanted is None:
                return ()
            return self._engine.plan(site, keep_dynamic=not self._wanted.speaks_for(name)).lines()

    def repair(self, name: str) -> Applied | None:
        with self._lock:
            if self._wanted is None or self._changes is None:
                return None
            finish_left(self._changes, self._changes.root, restart=False)
            with self._undecided(name):
                site = self._wanted.sites().get(name)
                if site is None:
                    return None
                return self._engine.apply(site, keep_dynamic=not self._wanted.speaks_for(name))

    def _undecided(self, site: str) -> AbstractContextManager[None]:
        """While it is held nobody begins to change the site by hand, or decides about a trial."""
        return self._changes.pending.deciding(site) if self._changes else nullcontext()

    def state(self) -> KernelState:
        with self._lock:
            return self._engine.show()

    def _show(self, request: Answer) -> Answer:
        name = request.get("site")
        with self._lock:
            return {"state": state_to_json(self._engine.show(site_name(name) if name else None))}

    def _tunnels(self, request: Answer) -> Answer:
        name = request.get("site")
        with self._lock:
            found = self._engine.tunnels(site_name(name) if name else None)
        return {"tunnels": {key: dataclasses.asdict(value) for key, value in found.items()}}

    def _probe(self, request: Answer) -> Answer:
        # Without the lock: a probe waits for the network, and a change must not wait for it.
        count = max(1, min(int(request.get("count", 1)), _MAX_PROBES))
        timeout = max(0.01, min(float(request.get("timeout", 1.0)), _MAX_TIMEOUT_S))
        found = self._engine.probe(
            str(request.get("address")), str(request.get("network")), count, timeout
        )
        return {"probe": dataclasses.asdict(found)}


def serve(
    path: Path,
    engine: Engine,
    *,
    mode: int = 0o600,
    owner: tuple[int, int] | None = None,
    parent_fd: int | None = None,
    stop: socket.socket | None = None,
    changes: Changes | None = None,
    beside: Callable[[Agent], AbstractContextManager[object]] | None = None,
) -> None:
    """Answer on `path` until the parent is gone or `stop` becomes readable.

    `owner` is (uid, gid) of the socket. `beside`: what else uses the agent, as long as it answers.
    Raises OSError if the socket cannot be made.
    """
    agent = Agent(engine, changes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with selectors.DefaultSelector() as selector, _lock_file(path).open("a") as lock:
        if parent_fd is not None:
            selector.register(parent_fd, selectors.EVENT_READ, "parent")
        if stop is not None:
            selector.register(stop, selectors.EVENT_READ, "stop")

        def ended(events: list[tuple[selectors.SelectorKey, int]]) -> bool:
            names = {key.data for key, _mask in events}
            return "stop" in names or ("parent" in names and not _alive(parent_fd))

        # An agent whose parent died may still finish a change: the path is its own till then.
        while not _locked(lock):
            if ended(selector.select(_TAKEOVER_POLL_S)):
                return
        with _listen(path, mode, owner) as listener:
            selector.register(listener, selectors.EVENT_READ, "client")
            clients: weakref.WeakSet[socket.socket] = weakref.WeakSet()
            if agent.keeper:
                agent.keeper.start()
            try:
                with beside(agent) if beside else nullcontext():
                    while not ended(events := selector.select()):
                        if any(key.data == "client" for key, _mask in events):
                            client, _address = listener.accept()
                            clients.add(client)
                            talk = threading.Thread(
                                target=_converse, args=(agent, client), daemon=True
                            )
                            talk.start()
            finally:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                if agent.keeper:
                    agent.keeper.stop(_FINISH_S)
                agent.finish()
                for client in tuple(clients):
                    with contextlib.suppress(OSError):
                        client.shutdown(socket.SHUT_RDWR)


def _lock_file(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _alive(parent_fd: int | None) -> bool:
    try:
        return parent_fd is None or os.read(parent_fd, 4096) != b""
    except OSError:
        return False


def _listen(path: Path, mode: int, owner: tuple[int, int] | None) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()  # left by one that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old_mask = os.umask(0o177)  # nobody gets in before mode and owner are as told
    try:
        listener.bind(str(path))
        if owner:
            os.chown(path, *owner)
        path.chmod(mode)
        listener.listen(16)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(old_mask)
    return listener


def _converse(agent: Agent, client: socket.socket) -> None:
    """One connection, request after request; a client that goes away is no error."""
    call_thread(AGENT)
    with client, client.makefile("rb") as lines, contextlib.suppress(ConnectionError):
        while line := lines.readline(MAX_LINE):
            client.sendall(json.dumps(agent.answer(line)).encode() + b"\n")


def _owner(text: str) -> tuple[int, int]:
    user, _, group = text.partition(":")
    entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    if not group:
        return entry.pw_uid, entry.pw_gid
    return entry.pw_uid, int(group) if group.isdigit() else grp.getgrnam(group).gr_gid


def log_to_stderr() -> None:
    """One line an event, in UTC, as the daemon's log."""
    handler = logging.StreamHandler(sys.stderr)
    form = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    form.converter = time.gmtime
    form.default_time_format, form.default_msec_format = "%Y-%m-%dT%H:%M:%S", "%s.%03dZ"
    handler.setFormatter(form)
    room = logging.getLogger("dvn")
    room.handlers[:] = [handler]
    room.setLevel(logging.INFO)


def stopped_by_signals() -> tuple[socket.socket, socket.socket]:
    """The first becomes readable at SIGTERM or SIGINT; keep both."""
    stop, stopper = socket.socketpair()
    stopper.setblocking(False)
    signal.set_wakeup_fd(stopper.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    return stop, stopper


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dvn-agent", description="DVN's privileged agent")
    parser.add_argument("--socket", type=Path, required=True, help="unix socket to answer on")
    parser.add_argument("--mode", type=lambda text: int(text, 8), default=0o600)
    parser.add_argument("--owner", help="USER[:GROUP] of the socket")
    parser.add_argument("--parent-fd", type=int, help="exit when this descriptor reads EOF")
    options = parser.parse_args(arguments)
    log_to_stderr()
    stop, _stopper = stopped_by_signals()
    try:
        owner = _owner(options.owner) if options.owner else None
        engine = Engine(lenient=True, memory=SwitchMemory())
        serve(
            options.socket,
            engine,
            mode=options.mode,
            owner=owner,
            parent_fd=options.parent_fd,
            stop=stop,
            changes=Changes(engine, state_directory()),
        )
    except KeyError:
        sys.stderr.write(f"dvn-agent: there is no user or group {options.owner!r}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"dvn-agent: {options.socket}: {error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
