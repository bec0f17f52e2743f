"""A small VM with Debian's kernel and the host's files, emulated by QEMU (TCG: works wherever a
process can run).

The host's root is exported read-only over 9p (files that change here while the VM runs may be seen
there or not); an overlay in the VM's memory takes the writes.
Commands go over one virtio-serial port whose other end is a socket pair: no name on disk, and the
guest powers off when it closes.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from lab.kernel import guest, image
from lab.kernel.errors import KernelError
from lab.kernel.session import Session, window, write_all

MARK = "DVN_LAB_KERNEL"
SHARE = "security_model=none,readonly=on,multidevs=remap"
SERIAL_KEPT = 64 * 1024
MONITOR_S = 5.0
"""How long the monitor, and after it the console, may talk about a machine that has stopped."""


def _qemu() -> str:
    if os.uname().machine != "x86_64":
        raise KernelError(f"the VM needs an x86-64 host, this is {os.uname().machine}")
    found = shutil.which("qemu-system-x86_64")
    if found is None:
        raise KernelError(
            "qemu-system-x86_64 is missing: apt-get install qemu-system-x86"
            " (or run ./run test, which does)"
        )
    return found


def _affordable_mb() -> int:
    """Three quarters of this machine's memory: QEMU asks for all of it, but uses what is
    written.
    """
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4 // (1 << 20)


def guest_python() -> str:
    """The interpreter for the helpers: the system's, which starts fastest and is the same inside
    and outside.
    """
    for candidate in ("/usr/bin/python3", "/usr/local/bin/python3", sys.executable):
        if os.access(candidate, os.X_OK):
            return candidate
    raise KernelError("no system python3 for the guest: apt-get install python3")


class Vm:
    """A booted VM, for several commands one after another.

    Use as a context manager. QEMU gets a kill from the kernel when the thread that started it
    ends, so start it from a thread that stays.
    """

    def __init__(self, *, cpus: int = 4, memory_mb: int = 6144, boot_timeout: float = 300) -> None:
        self._cpus = max(1, min(cpus, len(os.sched_getaffinity(0))))
        self._memory_mb = min(memory_mb, _affordable_mb())
        self._boot_timeout = boot_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._monitor: socket.socket | None = None
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
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
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
        for end in (self._control, self._monitor):
            if end is not None:
                end.close()
        self._control = self._monitor = None

    def _start(self) -> None:
        began = time.monotonic()
        qemu = _qemu()
        kernel = image.find_kernel()
        ramdisk = image.initramfs(kernel)
        self._control, control_child = socket.socketpair()
        serial, serial_child = socket.socketpair()
        self._monitor, monitor_child = socket.socketpair()
        append = (
            # A panic by NMI, with the traces of all processors (64), is how a machine that has
            # stopped tells where.
            "console=ttyS0 quiet loglevel=4 panic=-1 unknown_nmi_panic panic_print=64"
            " mitigations=off nokaslr audit=0 no_timer_check"
            " random.trust_cpu=on rcupdate.rcu_expedited=1"
            f" dvn.agent={Path(guest.__file__).resolve()} dvn.python={guest_python()}"
        )
        if kernel.modules.parent != Path("/lib/modules"):
            append += f" dvn.modules={kernel.modules.resolve()}"
        argv = [
            # The VM may not outlive us, even after kill -9: PR_SET_PDEATHSIG survives the exec. The
            # shell looks whether we died before it was set.
            *("setpriv", "--pdeathsig", "KILL", "sh", "-c", 'test $PPID = "$0" && exec "$@"'),
            *(str(os.getpid()), qemu, "-name", "dvn-lab"),
            *("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"),
            *("-nodefaults", "-no-user-config"),
            *f"-smp {self._cpus} -m {self._memory_mb}M -display none -no-reboot".split(),
            *("-kernel", str(image.boot_image(kernel)), "-initrd", str(ramdisk), "-append", append),
            *f"-chardev socket,id=serial,fd={serial_child.fileno()} -serial chardev:serial".split(),
            *("-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=control,fd={control_child.fileno()}"),
            *("-chardev", f"socket,id=monitor,fd={monitor_child.fileno()}"),
            *("-mon", "chardev=monitor,mode=readline"),
            *("-device", f"virtserialport,chardev=control,name={guest.PORT_NAME}"),
            *("-virtfs", f"local,path=/,mount_tag=root,{SHARE}"),
        ]
        with control_child, serial_child, monitor_child:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=serial_child.fileno(),
                stderr=serial_child.fileno(),
                pass_fds=(control_child.fileno(), serial_child.fileno(), monitor_child.fileno()),
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
        raise KernelError(
            f"the VM did not boot in {self._boot_timeout:.0f} s: {self._last_words()}"
        )

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
        """Runs `argv` and returns its exit status: 128+n when signal n ended it, 124 when
        `timeout` seconds did.

        `outputs` are files or directories the command makes in the VM; they are copied to the same
        paths here. stdin, stdout, stderr are descriptors of this process (stdin None: no input).
        `tty` None: a terminal in the VM when stdin and stdout are terminals here. Raises
        KernelError when the VM is lost.
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
            "size": window(stdout),
            "umask": _umask(),
            "clock": None if self._clock_set else time.time(),
        }
        self._clock_set = True
        session = Session(
            self._control,
            self._frames.feed,
            self._lost,
            self._stopped,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            tty=tty,
        )
        self._send(guest.EXEC, json.dumps(order).encode())
        status = session.serve(timeout)
        for path in outputs:
            self.fetch(Path(path))
        return status

    def fetch(self, path: Path) -> bool:
        """Copies a file or directory of the VM to the same path here; False (and a word on stderr)
        if it is not there.
        """
        # Not resolve(): a link of the VM may not exist here.
        path = Path(os.path.abspath(path))  # noqa: PTH100
        self._send(guest.FETCH, json.dumps(str(path)).encode())
        writing: int | None = None
        try:
            for kind, payload in self._incoming():
                if kind == guest.FETCHED:
                    if payload:
                        sys.stderr.write(f"lab.kernel: {path} was not made\n")
                    return not payload
                if kind == guest.DATA and writing is not None:
                    write_all(writing, payload)
                if kind == guest.ENTRY:
                    if writing is not None:
                        os.close(writing)
                    writing = _make_entry(path, json.loads(payload))
        finally:
            if writing is not None:
                os.close(writing)
        raise KernelError(f"the VM ended while {path} was copied: {self._last_words()}")

    def _incoming(self) -> Iterator[tuple[int, bytes]]:
        """Frames as they come, until the VM ends."""
        assert self._control is not None
        self._control.settimeout(None)
        while data := self._control.recv(guest.CHUNK):
            yield from self._frames.feed(data)

    def _lost(self) -> KernelError:
        return KernelError(f"the VM ended before its command did: {self._last_words()}")

    def _stopped(self, how: str) -> KernelError:
        """The machine runs on, but not its programs: writes to stderr where its processors are."""
        assert self._monitor is not None
        self._serial.clear()
        words = [f"lab.kernel: the VM has stopped: {how}", *self._asked("info registers -a")]
        words += self._asked("nmi")
        end = time.monotonic() + MONITOR_S
        while time.monotonic() < end and b"end Kernel panic" not in self._serial:
            time.sleep(0.1)
        words += self._serial.decode(errors="replace").replace("\r", "").splitlines()
        sys.stderr.write("\n".join(words) + "\n")
        return KernelError(f"the VM has stopped: {how}")

    def _asked(self, command: str) -> list[str]:
        """What QEMU's monitor answers, of registers those that say where a processor is."""
        assert self._monitor is not None
        self._monitor.settimeout(MONITOR_S)
        answer = b""
        try:
            self._monitor.sendall(command.encode() + b"\n")
            # A prompt, the command as it is typed, the answer, and the next prompt.
            while answer.count(b"(qemu) ") < 2:
                answer += self._monitor.recv(guest.CHUNK) or b"(qemu) " * 2
        except OSError as error:
            return [f"monitor, {command}: {error}"]
        lines = answer.decode(errors="replace").replace("\r", "").splitlines()
        return [line for line in lines if line.startswith(("CPU#", "RIP", "RSP", "CR0"))]

    def _send(self, kind: int, payload: bytes = b"") -> None:
        assert self._control is not None
        self._control.settimeout(60)
        try:
            self._control.sendall(guest.frame(kind, payload))
        except OSError as error:
            raise self._lost() from error


def _umask() -> int:
    """This process's; asking umask(2) would change it for a moment, under other threads."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


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
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    os.fchmod(descriptor, mode)  # whatever this process's umask is
    return descriptor
