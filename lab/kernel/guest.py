"""The agent that is process 1 of the VM, and the frames it speaks with the host over one
virtio-serial port.

Runs as `python3 -I -S guest.py`: standard library only, and few modules of it, since an import is
slow in an emulated machine. The host imports the frame functions from here, so that there is one
definition of them.

A frame: one byte of kind, four bytes of length (big endian), the payload.
"""

# ruff: noqa: PTH100, PTH101, PTH103, PTH112, PTH113, PTH114, PTH115, PTH118, PTH120, PTH208, PTH211
# (importing pathlib takes as long as all the rest of this file)

from __future__ import annotations

import errno
import json
import os
import select
import signal
import struct
import sys
import time
from contextlib import suppress

PORT_NAME = "dvn.control"
HEADER = struct.Struct(">BI")
LARGEST = 1 << 20
WINDOW = 256 * 1024
"""Bytes of stdin that may be on the way; the guest gives them back (TAKEN) as the command reads
them.
"""

# host -> guest
EXEC, STDIN, STDIN_END, SIGNAL, WINSIZE, FETCH, PING, TELL = range(1, 9)
# guest -> host
READY, STDOUT, STDERR, TAKEN, EXIT, ENTRY, DATA, FETCHED, PONG = range(16, 25)

CHUNK = 64 * 1024


def frame(kind: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(kind, len(payload)) + payload


class Frames:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The frames completed by `data`. Raises ValueError on a length no frame has (a broken
        stream).
        """
        self._buffer += data
        frames = []
        while len(self._buffer) >= HEADER.size:
            kind, length = HEADER.unpack_from(self._buffer)
            if length > LARGEST:
                raise ValueError(f"a frame of {length} bytes")
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append((kind, bytes(self._buffer[HEADER.size : end])))
            del self._buffer[:end]
        return frames


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _power_off() -> None:
    """At once: the root is read-only and the rest is memory, so there is nothing to sync."""
    with open("/proc/sysrq-trigger", "w") as trigger:
        trigger.write("b")  # QEMU runs with -no-reboot: a reboot ends it, faster than ACPI does
    time.sleep(60)


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read().strip()
    except OSError:  # it has ended since
        return ""


def processes() -> str:
    """A line for each program: its number, its parent's, its state, where in the kernel it waits,
    what it is; below those that nothing can wake, the kernel's stack (proc(5))."""
    lines = ["  PID  PPID S WAITS IN             COMMAND"]
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        words = _read(f"/proc/{pid}/cmdline").replace("\0", " ")
        state = _read(f"/proc/{pid}/stat").rpartition(") ")[2].split()
        if words and state:
            waits = _read(f"/proc/{pid}/wchan")
            lines.append(f"{pid:5} {state[1]:>5} {state[0]} {waits:20} {words[:160]}")
            if state[0] == "D":
                lines += ["      " + line for line in _read(f"/proc/{pid}/stack").splitlines()]
    return "\n".join(lines) + "\n"


class Command:
    """A command in a session of its own, on a pseudo-terminal or on pipes."""

    def __init__(self, order: dict[str, object]) -> None:
        self.stdin = -1
        self.outputs: dict[int, int] = {}  # descriptor -> kind of frame
        self.master = -1
        self.pending = bytearray()
        self.ending = False
        self._order = order
        tty = bool(order["tty"])
        child_ends: list[int] = []
        if tty:
            self.master, slave = os.openpty()
            self.set_size(order["size"])
            child = [slave, slave, slave]
            child_ends.append(slave)
            self.stdin = self.master
            self.outputs[self.master] = STDOUT
        else:
            read_end, self.stdin = os.pipe()
            out, out_child = os.pipe()
            self.outputs[out] = STDOUT
            child = [read_end, out_child, -1]
            child_ends += [read_end, out_child]
        if not tty or order["split_stderr"]:
            err, err_child = os.pipe()
            self.outputs[err] = STDERR
            child[2] = err_child
            child_ends.append(err_child)
        os.set_blocking(self.stdin, False)
        self.pid = os.fork()
        if self.pid == 0:
            self._become(child, tty)
        for fd in child_ends:
            os.close(fd)

    def _become(self, child: list[int], tty: bool) -> None:
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            os.umask(int(str(self._order["umask"])))
            os.setsid()
            if tty:
                import fcntl
                import termios

                fcntl.ioctl(child[0], termios.TIOCSCTTY, 0)
            for target, fd in enumerate(child):
                os.dup2(fd, target)
            os.closerange(3, 256)
            argv, env = self._order["argv"], self._order["env"]
            assert isinstance(argv, list)
            assert isinstance(env, dict)
            try:
                os.chdir(str(self._order["cwd"]))
                os.execvpe(argv[0], argv, env)
            except OSError as error:
                what = argv[0] if os.path.isdir(str(self._order["cwd"])) else self._order["cwd"]
                os.write(2, f"{what}: {error.strerror}\n".encode())
                os._exit(127 if error.errno == errno.ENOENT else 126)
        finally:
            os._exit(126)

    def set_size(self, size: object) -> None:
        if self.master < 0 or not isinstance(size, list):
            return
        import fcntl
        import termios

        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", size[0], size[1], 0, 0))

    def signal(self, number: int) -> None:
        """To the whole foreground group, as a terminal does it."""
        group = self.pid
        if self.master >= 0:
            try:
                group = os.tcgetpgrp(self.master)
            except OSError:
                group = self.pid
        try:
            os.killpg(group or self.pid, number)
        except ProcessLookupError:
            return

    def feed(self) -> int:
        """Writes pending input; how many bytes the command's side took."""
        if self.stdin < 0:
            self.pending.clear()
            return 0
        taken = 0
        try:
            while self.pending:
                count = os.write(self.stdin, self.pending[:CHUNK])
                del self.pending[:count]
                taken += count
        except BlockingIOError:
            return taken
        except OSError:  # the command closed its input: what is left has no reader
            taken += len(self.pending)
            self.pending.clear()
            self.ending = self.master < 0
        if self.ending and not self.pending:
            self.end_input()
        return taken

    def end_input(self) -> None:
        if self.master >= 0:
            os.write(self.master, b"\x04")
            self.ending = False
        elif self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1


class Agent:
    """The loop: frames from the host, output and end of the one command that runs."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._frames = Frames()
        self._command: Command | None = None
        self._wake, self._wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    def send(self, kind: int, payload: bytes = b"") -> None:
        _write_all(self._port, frame(kind, payload))

    def serve(self) -> None:
        """Until the host is gone."""
        self.send(READY, os.uname().release.encode())
        while True:
            poll = select.poll()
            poll.register(self._port, select.POLLIN)
            poll.register(self._wake, select.POLLIN)
            command = self._command
            if command is not None:
                for fd in command.outputs:
                    poll.register(fd, select.POLLIN)
                if command.pending and command.stdin >= 0:
                    mask = select.POLLOUT
                    if command.stdin in command.outputs:
                        mask |= select.POLLIN
                    poll.register(command.stdin, mask)
            for fd, event in poll.poll():
                if fd == self._port:
                    data = os.read(self._port, CHUNK) if event & select.POLLIN else b""
                    if not data:
                        return
                    for kind, payload in self._frames.feed(data):
                        self._handle(kind, payload)
                elif fd == self._wake:
                    os.read(fd, 4096)
                    self._reap()
                elif command is not None and command is self._command:
                    if fd in command.outputs and event & (select.POLLIN | select.POLLHUP):
                        self._forward(command, fd)
                    if fd == command.stdin and event & (select.POLLOUT | select.POLLERR):
                        self._feed(command)

    def _handle(self, kind: int, payload: bytes) -> None:
        command = self._command
        if kind == EXEC:
            order = json.loads(payload)
            if order["clock"] is not None:
                time.clock_settime(time.CLOCK_REALTIME, order["clock"])
            self._command = Command(order)
        elif kind == FETCH:
            self._fetch(json.loads(payload))
        elif kind == PING:
            self.send(PONG)
        elif kind == TELL:
            self.send(STDERR, processes().encode()[:LARGEST])
        elif command is None:
            return
        elif kind == STDIN:
            command.pending += payload
            self._feed(command)
        elif kind == STDIN_END:
            command.ending = True
            self._feed(command)
        elif kind == SIGNAL:
            command.signal(int(payload))
        elif kind == WINSIZE:
            command.set_size(json.loads(payload))

    def _feed(self, command: Command) -> None:
        if taken := command.feed():
            self.send(TAKEN, str(taken).encode())

    def _forward(self, command: Command, fd: int) -> bool:
        """One read of the command's output to the host; False at its end."""
        try:
            data = os.read(fd, CHUNK)
        except OSError as error:
            if (
                error.errno != errno.EIO
            ):  # what a pseudo-terminal says when nobody holds its other end
                raise
            data = b""
        if data:
            self.send(command.outputs[fd], data)
            return True
        del command.outputs[fd]
        if fd != command.stdin:
            os.close(fd)
        return False

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._command is not None and pid == self._command.pid:
                self._finish(self._command, os.waitstatus_to_exitcode(status))

    def _finish(self, command: Command, code: int) -> None:
        """Nothing outlives its command, as in the namespaces of the in-place mode."""
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        poll = select.poll()
        for fd in command.outputs:
            poll.register(fd, select.POLLIN)
        end = time.monotonic() + 5
        while command.outputs and (left := end - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                if not self._forward(command, fd):
                    poll.unregister(fd)
        for fd in {command.stdin, command.master, *command.outputs} - {-1}:
            os.close(fd)
        self._command = None
        self.send(EXIT, str(code).encode())

    def _fetch(self, root: str) -> None:
        """Sends a file or a tree: ENTRY (path below root, kind, mode) and DATA frames, then
        FETCHED.
        """
        if os.path.isdir(root) and not os.path.islink(root):
            for directory, names, files in os.walk(root):
                self._entry(root, directory)
                for name in [
                    *files,
                    *(n for n in names if os.path.islink(os.path.join(directory, n))),
                ]:
                    self._entry(root, os.path.join(directory, name))
        elif os.path.lexists(root):
            self._entry(root, root)
        else:
            self.send(FETCHED, b"missing")
            return
        self.send(FETCHED)

    def _entry(self, root: str, path: str) -> None:
        info = os.lstat(path)
        below = os.path.relpath(path, root)
        head: dict[str, object] = {"path": below, "mode": info.st_mode}
        if os.path.islink(path):
            self.send(ENTRY, json.dumps(head | {"link": os.readlink(path)}).encode())
        elif os.path.isdir(path):
            self.send(ENTRY, json.dumps(head | {"directory": True}).encode())
        elif os.path.isfile(path):
            self.send(ENTRY, json.dumps(head).encode())
            with open(path, "rb") as source:
                while data := source.read(CHUNK):
                    self.send(DATA, data)


def _mount(*argv: str) -> None:
    pid = os.posix_spawn("/bin/mount", ["mount", *argv], {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    if os.waitpid(pid, 0)[1] != 0:
        raise OSError(f"mount {' '.join(argv)} failed")


def _set_up() -> None:
    """What an init does: file systems, loopback, names."""
    import fcntl
    import socket

    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    os.makedirs("/dev/pts", exist_ok=True)
    os.makedirs("/dev/shm", exist_ok=True)
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        if not os.path.lexists(f"/dev/{name}"):
            os.symlink(f"/proc/self/fd{target}", f"/dev/{name}")
    _mount("-t", "tmpfs", "-o", "mode=755,nosuid,nodev", "run", "/run")
    _mount("-t", "devpts", "-o", "gid=5,mode=620,ptmxmode=666", "devpts", "/dev/pts")
    _mount("-t", "tmpfs", "-o", "mode=1777", "shm", "/dev/shm")
    _mount("-t", "cgroup2", "cgroup2", "/sys/fs/cgroup")
    os.makedirs("/run/lock", exist_ok=True)
    os.chmod("/run/lock", 0o1777)
    with open("/sys/fs/cgroup/cgroup.controllers") as known:
        wanted = " ".join(f"+{name}" for name in known.read().split())
    with open("/sys/fs/cgroup/cgroup.subtree_control", "w") as enabled:
        enabled.write(wanted)
    # No gre0, sit0 and their like in every new namespace; it can be said here only, in the first.
    with open("/proc/sys/net/core/fb_tunnels_only_for_init_net", "w") as only:
        only.write("2")
    socket.sethostname("lab")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        # SIOCSIFFLAGS with IFF_UP | IFF_RUNNING (netdevice(7))
        fcntl.ioctl(handle, 0x8914, struct.pack("16sH14x", b"lo", 0x41))


def _hold() -> None:
    """Start what keeps the kernel from patching itself all the time; see held.sh. Best effort."""
    import socket

    # Time stamps of packets are such a switch, too, on while any socket asks for them (socket(7)).
    stamped = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stamped.setsockopt(socket.SOL_SOCKET, 29, 1)  # SO_TIMESTAMP
    stamped.detach()
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "held.sh")
    words = ["unshare", "--net", "/bin/sh", script]
    with suppress(OSError):
        os.posix_spawn("/usr/bin/unshare", words, {"PATH": os.environ["PATH"]})


def _open_port() -> int:
    base = "/sys/class/virtio-ports"
    for port in os.listdir(base):
        with open(f"{base}/{port}/name") as name:
            if name.read().strip() == PORT_NAME:
                return os.open(f"/dev/{port}", os.O_RDWR)
    raise FileNotFoundError(f"no virtio-serial port named {PORT_NAME}")


def _await_host(port: int) -> None:
    """Until the driver knows that the host's side is open; before that a read looks like the
    host's end.
    """
    poll = select.poll()
    poll.register(port, select.POLLIN)
    end = time.monotonic() + 10
    while any(event & select.POLLHUP for _, event in poll.poll(0)):
        if time.monotonic() > end:
            raise TimeoutError("the host did not open the control port")
        time.sleep(0.01)


def main() -> None:
    """Process 1: never returns; whatever happens, the machine goes off."""
    try:
        _set_up()
        _hold()
        port = _open_port()
        _await_host(port)
        Agent(port).serve()
    except BaseException as error:  # the last word of process 1: to the console, then off
        sys.stderr.write(f"dvn-agent: {type(error).__name__}: {error}\n")
        sys.stderr.flush()
        raise
    finally:
        _power_off()


if __name__ == "__main__":
    main()
