"""The host's side of one command in the VM: input, output, signals, window size and time limit.

To its user the command looks local: a terminal here becomes a pseudo-terminal there, Ctrl-C
reaches the command.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
import termios
import threading
import time
import tty as terminal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from lab.kernel import guest
from lab.kernel.errors import KernelError
from lab.kernel.pulse import Pulse

TIMED_OUT = 124
"""Exit status of a command that used up its time (as timeout(1) has it)."""
GRACE = 10.0
"""Seconds between the polite and the deadly signal at a time limit."""

DEADLY = (signal.SIGTERM, signal.SIGKILL)
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def write_all(fd: int, data: bytes) -> None:
    """All of it, however little the descriptor takes at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def window(fd: int) -> list[int]:
    """Lines and columns of a terminal, 24 by 80 for what is none."""
    try:
        size = os.get_terminal_size(fd)
    except OSError:
        return [24, 80]
    return [size.lines, size.columns]


class Session:
    """One command: passes bytes, signals and window sizes both ways until it ends."""

    def __init__(
        self,
        control: socket.socket,
        feed: Callable[[bytes], list[tuple[int, bytes]]],
        lost: Callable[[], KernelError],
        stopped: Callable[[str], KernelError],
        *,
        stdin: int | None,
        stdout: int,
        stderr: int,
        tty: bool,
    ) -> None:
        self._control = control
        self._feed = feed
        self._lost = lost
        self._stopped = stopped
        self._stdin = stdin
        self._sinks = {guest.STDOUT: stdout, guest.STDERR: stderr}
        self._stdout = stdout
        self._tty = tty
        self._outgoing = bytearray()
        self._window = guest.WINDOW
        self._status: int | None = None
        self._expired = 0
        self._pulse = Pulse(time.monotonic())

    def serve(self, timeout: float | None) -> int:
        """Until the command ends, or `timeout` seconds after now; its exit status.

        Raises KernelError when the machine is lost, has stopped, or cannot end the command.
        """
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        end = None if timeout is None else time.monotonic() + timeout
        with ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            stack.enter_context(self._raw_terminal())
            wake = stack.enter_context(self._signals())
            self._control.setblocking(False)
            if wake is not None:
                selector.register(wake, selectors.EVENT_READ, self._wake)
            reading = False
            while self._status is None:
                want = self._stdin is not None and self._window >= guest.CHUNK
                if want != reading:
                    reading = self._watch_stdin(selector, want)
                now = time.monotonic()
                if self._pulse.ask(now):
                    self._queue(guest.PING)
                if end is not None and end <= now:
                    end = self._expire()
                mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0)
                _watch(selector, self._control, mask)
                left = self._pulse.wait(now)
                ready = selector.select(left if end is None else min(left, end - now))
                # Only where nothing is left to read: we may have slept ourselves, stopped by a
                # signal or by who reads our output, and the answer lies here.
                if not ready and self._pulse.stopped(time.monotonic()):
                    raise self._stopped("it does not answer")
                for key, event in ready:
                    if key.fileobj is self._control:
                        self._exchange(event)
                    elif key.fileobj is wake:
                        self._wake(wake)
                    else:
                        self._read_stdin()
        return TIMED_OUT if self._expired else self._status

    def _watch_stdin(self, selector: selectors.BaseSelector, want: bool) -> bool:
        assert self._stdin is not None or not want
        if not want:
            for key in list(selector.get_map().values()):
                if key.data == "stdin":
                    selector.unregister(key.fileobj)
            return False
        assert self._stdin is not None
        try:
            selector.register(self._stdin, selectors.EVENT_READ, "stdin")
        except PermissionError:  # epoll takes no regular files; they are always readable
            while self._stdin is not None and self._window >= guest.CHUNK:
                self._read_stdin()
            return False
        return True

    def _read_stdin(self) -> None:
        assert self._stdin is not None
        try:
            data = os.read(self._stdin, guest.CHUNK)
        except OSError:  # a terminal that is not ours to read (background): no input
            data = b""
        if data:
            self._window -= len(data)
            self._queue(guest.STDIN, data)
        else:
            self._queue(guest.STDIN_END)
            self._stdin = None

    def _queue(self, kind: int, payload: bytes = b"") -> None:
        self._outgoing += guest.frame(kind, payload)

    def _exchange(self, event: int) -> None:
        if event & selectors.EVENT_WRITE and self._outgoing:
            try:
                del self._outgoing[: self._control.send(self._outgoing)]
            except BlockingIOError:
                pass
            except OSError as error:
                raise self._lost() from error
        if not event & selectors.EVENT_READ:
            return
        try:
            data = self._control.recv(guest.CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lost() from error
        if not data:
            raise self._lost()
        for kind, payload in self._feed(data):
            if kind in self._sinks:
                self._deliver(kind, payload)
            elif kind == guest.PONG:
                self._pulse.answered(time.monotonic())
            elif kind == guest.TAKEN:
                self._window += int(payload)
            elif kind == guest.EXIT:
                code = int(payload)
                self._status = code if code >= 0 else 128 - code

    def _deliver(self, kind: int, payload: bytes) -> None:
        fd = self._sinks[kind]
        if fd < 0:
            return
        try:
            write_all(fd, payload)
        except BrokenPipeError:  # our reader is gone; a local command would get SIGPIPE
            self._sinks[kind] = -1
            self._queue(guest.SIGNAL, str(int(signal.SIGPIPE)).encode())

    def _expire(self) -> float:
        """At the time limit: have told what runs, ask, then kill, then give the machine up."""
        if self._expired == len(DEADLY):
            raise self._stopped("its command does not end, killed as it is")
        self._queue(guest.TELL)
        self._queue(guest.SIGNAL, str(int(DEADLY[self._expired])).encode())
        self._expired += 1
        return time.monotonic() + GRACE

    def _wake(self, wake: socket.socket) -> None:
        for number in wake.recv(256):
            if number == signal.SIGWINCH:
                self._queue(guest.WINSIZE, json.dumps(window(self._stdout)).encode())
            elif number in FORWARDED:
                self._queue(guest.SIGNAL, str(number).encode())

    @contextmanager
    def _raw_terminal(self) -> Iterator[None]:
        if not self._tty or self._stdin is None or not os.isatty(self._stdin):
            yield
            return
        fd = self._stdin
        before = termios.tcgetattr(fd)
        terminal.setraw(fd)
        try:
            yield
        finally:
            termios.tcsetattr(fd, termios.TCSAFLUSH, before)

    @contextmanager
    def _signals(self) -> Iterator[socket.socket | None]:
        """Signals as bytes on a socket; only the main thread can have them."""
        if threading.current_thread() is not threading.main_thread():
            yield None
            return
        reader, writer = socket.socketpair()
        with reader, writer:
            writer.setblocking(False)
            old_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            numbers = (*FORWARDED, signal.SIGWINCH)
            kept: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
            for number in numbers:
                if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGWINCH:
                    kept[number] = signal.signal(number, lambda *_: None)
            try:
                yield reader
            finally:
                for kept_number, handler in kept.items():
                    signal.signal(kept_number, handler)
                signal.set_wakeup_fd(old_fd)


def _watch(selector: selectors.BaseSelector, item: socket.socket, mask: int) -> None:
    try:
        if selector.get_key(item).events != mask:
            selector.modify(item, mask)
    except KeyError:
        selector.register(item, mask)
