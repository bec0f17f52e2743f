"""A small VM with Debian's kernel and the host's files, emulated by QEMU (TCG: works wherever a process can run).

The host's root is exported read-only over 9p; an overlay in the VM's memory takes the writes. Commands go over one
virtio-serial port whose other end is a socket pair: no name on disk, and the guest powers off when it closes.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import tty as terminal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType

from lab.kernel import guest, image
from lab.kernel.errors import KernelError

MARK = "DVN_LAB_KERNEL"
TIMED_OUT = 124
"""Exit status of a command that used up its time (as timeout(1) has it)."""
GRACE = 10.0
"""Seconds between the polite and the deadly signal at a time limit."""

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
SERIAL_KEPT = 64 * 1024


def _qemu() -> str:
    if os.uname().machine != "x86_64":
        raise KernelError(f"the VM needs an x86-64 host, this is {os.uname().machine}")
    found = shutil.which("qemu-system-x86_64")
    if found is None:
        raise KernelError(
            "qemu-system-x86_64 is missing: apt-get install qemu-system-x86 (or run ./run test, which does)"
        )
    return found


def _guest_python() -> str:
    for candidate in ("/usr/bin/python3", sys._base_executable):
        if os.access(candidate, os.X_OK):
            return candidate
    raise KernelError("no system python3 for the guest: apt-get install python3")


class Vm:
    """A booted VM, for several commands one after another.

    Use as a context manager. QEMU gets a kill from the kernel when the thread that started it ends, so start it from
    a thread that stays.
    """

    def __init__(self, *, cpus: int = 4, memory_mb: int = 6144, boot_timeout: float = 120) -> None:
        self._cpus = max(1, min(cpus, len(os.sched_getaffinity(0))))
        self._memory_mb = memory_mb
        self._boot_timeout = boot_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._frames = guest.Frames()
        self._serial = bytearray()
        self._clock_set = False
        self.boot_s = 0.0

    def __enter__(self) -> Vm:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        assert self._process is not None
        return self._process.pid

    def close(self) -> None:
        """Ends the VM at once; its files are memory, so there is nothing to save."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._control is not None:
            self._control.close()
            self._control = None

    def _start(self) -> None:
        began = time.monotonic()
        qemu = _qemu()
        kernel = image.find_kernel()
        ramdisk = image.initramfs(kernel)
        self._control, control_child = socket.socketpair()
        serial, serial_child = socket.socketpair()
        append = (
            "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off nokaslr audit=0 no_timer_check"
            " random.trust_cpu=on rcupdate.rcu_expedited=1"
            f" dvn.agent={Path(guest.__file__).resolve()} dvn.python={_guest_python()}"
        )
        if kernel.modules.parent != Path("/lib/modules"):
            append += f" dvn.modules={kernel.modules.resolve()}"
        argv = [
            # The VM may not outlive us, even after kill -9: PR_SET_PDEATHSIG survives the exec.
            *("setpriv", "--pdeathsig", "KILL", qemu, "-name", "dvn-lab"),
            *("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", str(self._cpus)),
            *("-m", f"{self._memory_mb}M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-kernel", str(kernel.image), "-initrd", str(ramdisk), "-append", append),
            *("-chardev", f"socket,id=serial,fd={serial_child.fileno()}", "-serial", "chardev:serial"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=control,fd={control_child.fileno()}"),
            *("-device", f"virtserialport,chardev=control,name={guest.PORT_NAME}"),
            *("-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"),
        ]
        with control_child, serial_child:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=serial_child,
                stderr=serial_child,
                pass_fds=(control_child.fileno(), serial_child.fileno()),
                process_group=0,  # a Ctrl-C at the terminal is for the command inside, not for QEMU
            )
        threading.Thread(target=self._keep_serial, args=(serial,), daemon=True).start()
        self._await_ready(began + self._boot_timeout)
        self.boot_s = time.monotonic() - began

    def _keep_serial(self, serial: socket.socket) -> None:
        """The console's last words, for the message when something goes wrong."""
        with serial:
            while data := serial.recv(4096):
                self._serial += data
                del self._serial[:-SERIAL_KEPT]

    def _last_words(self) -> str:
        text = self._serial.decode(errors="replace").replace("\r", "").strip()
        return "; ".join(text.splitlines()[-5:]) or "it said nothing"

    def _await_ready(self, deadline: float) -> None:
        assert self._control is not None
        while (left := deadline - time.monotonic()) > 0:
            self._control.settimeout(left)
            try:
                data = self._control.recv(guest.CHUNK)
            except TimeoutError:
                break
            if not data:
                assert self._process is not None
                self._process.wait()
                raise KernelError(f"the VM ended while it booted: {self._last_words()}")
            if any(kind == guest.READY for kind, _ in self._frames.feed(data)):
                return
        raise KernelError(f"the VM did not boot in {self._boot_timeout:.0f} s: {self._last_words()}")

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        outputs: Sequence[Path] = (),
        timeout: float | None = None,
        tty: bool | None = None,
        stdin: int | None = 0,
        stdout: int = 1,
        stderr: int = 2,
    ) -> int:
        """Runs `argv` and returns its exit status: 128+n when signal n ended it, 124 when `timeout` seconds did.

        `outputs` are files or directories the command makes in the VM; they are copied to the same paths here.
        stdin, stdout, stderr are descriptors of this process (stdin None: no input). `tty` None: a terminal in the
        VM when stdin and stdout are terminals here. Raises KernelError when the VM is lost.
        """
        if self._control is None:
            raise KernelError("the VM is not running")
        environment = dict(os.environ if env is None else env) | {MARK: "vm"}
        if tty is None:
            tty = stdin is not None and os.isatty(stdin) and os.isatty(stdout)
        order = {
            "argv": [str(part) for part in argv],
            "env": environment,
            "cwd": str(cwd or Path.cwd()),
            "tty": tty,
            "split_stderr": not (tty and os.isatty(stderr)),
            "size": _window(stdout),
            "clock": None if self._clock_set else time.time(),
        }
        self._clock_set = True
        session = _Session(self, self._control, stdin, stdout, stderr, tty)
        self._send(guest.EXEC, json.dumps(order).encode())
        status = session.serve(timeout)
        for path in outputs:
            self.fetch(Path(path))
        return status

    def fetch(self, path: Path) -> bool:
        """Copies a file or directory of the VM to the same path here; False (and a word on stderr) if it is not there."""
        path = Path(os.path.abspath(path))  # noqa: PTH100  (not resolve(): a link in the VM may not exist here)
        self._send(guest.FETCH, json.dumps(str(path)).encode())
        writing: int | None = None
        try:
            for kind, payload in self.frames():
                if kind == guest.FETCHED:
                    if payload:
                        sys.stderr.write(f"lab.kernel: {path} was not made\n")
                    return not payload
                if kind == guest.DATA and writing is not None:
                    _write_all(writing, payload)
                if kind == guest.ENTRY:
                    if writing is not None:
                        os.close(writing)
                    writing = _make_entry(path, json.loads(payload))
        finally:
            if writing is not None:
                os.close(writing)
        raise KernelError(f"the VM ended while {path} was copied: {self._last_words()}")

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Frames as they come, until the VM ends."""
        assert self._control is not None
        self._control.settimeout(None)
        while data := self._control.recv(guest.CHUNK):
            yield from self._frames.feed(data)

    def lost(self) -> KernelError:
        return KernelError(f"the VM ended before its command did: {self._last_words()}")

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        return self._frames.feed(data)

    def _send(self, kind: int, payload: bytes = b"") -> None:
        assert self._control is not None
        self._control.settimeout(60)
        try:
            self._control.sendall(guest.frame(kind, payload))
        except OSError as error:
            raise self.lost() from error


def _make_entry(root: Path, head: dict[str, object]) -> int | None:
    """Makes what an ENTRY frame describes; a descriptor to write to if it is a file."""
    below = Path(str(head["path"]))
    if below.is_absolute() or ".." in below.parts:
        raise KernelError(f"the VM sent a path outside {root}: {below}")
    target = root / below
    target.parent.mkdir(parents=True, exist_ok=True)
    if head.get("directory"):
        target.mkdir(exist_ok=True)
        return None
    if target.is_symlink() or "link" in head:
        target.unlink(missing_ok=True)
    if "link" in head:
        target.symlink_to(str(head["link"]))
        return None
    mode = int(str(head["mode"])) & 0o777
    return os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _window(fd: int) -> list[int]:
    try:
        size = os.get_terminal_size(fd)
    except OSError:
        return [24, 80]
    return [size.lines, size.columns]


class _Session:
    """One command: passes bytes, signals and window sizes both ways until it ends."""

    def __init__(
        self, vm: Vm, control: socket.socket, stdin: int | None, stdout: int, stderr: int, tty: bool
    ) -> None:
        self._vm = vm
        self._control = control
        self._stdin = stdin
        self._sinks = {guest.STDOUT: stdout, guest.STDERR: stderr}
        self._stdout = stdout
        self._tty = tty
        self._outgoing = bytearray()
        self._window = guest.WINDOW
        self._status: int | None = None
        self._expired = False

    def serve(self, timeout: float | None) -> int:
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
                mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0)
                _watch(selector, self._control, mask)
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    end = self._expire()
                    continue
                for key, event in selector.select(left):
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
                raise self._vm.lost() from error
        if not event & selectors.EVENT_READ:
            return
        try:
            data = self._control.recv(guest.CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._vm.lost() from error
        if not data:
            raise self._vm.lost()
        for kind, payload in self._vm.feed(data):
            if kind in self._sinks:
                self._deliver(kind, payload)
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
            _write_all(fd, payload)
        except BrokenPipeError:  # our reader is gone; a local command would get SIGPIPE
            self._sinks[kind] = -1
            self._queue(guest.SIGNAL, str(int(signal.SIGPIPE)).encode())

    def _expire(self) -> float:
        """At the time limit: ask, then kill."""
        number = signal.SIGKILL if self._expired else signal.SIGTERM
        self._expired = True
        self._queue(guest.SIGNAL, str(int(number)).encode())
        return time.monotonic() + GRACE

    def _wake(self, wake: socket.socket) -> None:
        for number in wake.recv(256):
            if number == signal.SIGWINCH:
                self._queue(guest.WINSIZE, json.dumps(_window(self._stdout)).encode())
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
                for number, handler in kept.items():
                    signal.signal(number, handler)
                signal.set_wakeup_fd(old_fd)


def _watch(selector: selectors.BaseSelector, item: socket.socket, mask: int) -> None:
    try:
        if selector.get_key(item).events != mask:
            selector.modify(item, mask)
    except KeyError:
        selector.register(item, mask)
