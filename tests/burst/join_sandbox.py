"""Runs real user data in a directory: stand-ins for what would change this machine, real bash, curl
and TLS for the rest."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from burst.join.bundle import Bundle
from burst.join.userdata import JoinGateway, user_data
from burst.model import Lease, LeaseState
from gateway.enrol import EnrolServer
from gateway.limits import Limits
from gateway.tls import TlsIdentity
from gateway.tokens import SiteSecret, token_hash
from tests.gateway.store_stand_in import Tokens

LEASE = Lease(
    id="5f" * 16,
    pool="cms-aws",
    tenant="cms",
    network="farm",
    provider="aws",
    type="c5.large",
    zone="eu-south-1a",
    cores=2,
    memory_mb=4096,
    price_per_hour=Decimal("0.1"),
    state=LeaseState.BOOTING,
    node="cms-aws-5f5f5f5f",
    address="10.9.0.101",
    gre_key=7,
    wanted=datetime(2026, 3, 1, 12, 0, tzinfo=UTC),
)
PRIVATE = "172.31.5.7"


class Metadata(ThreadingHTTPServer):
    """IMDSv2: a session token by PUT, then the data with it; nothing without."""

    daemon_threads = True

    def __init__(self, listener: socket.socket | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _MetadataHandler)
        if listener is not None:
            self.socket.close()
            self.socket = listener
        self.silent_for = 0  # requests that get no answer, as soon after boot
        self.items = {"local-ipv4": PRIVATE, "instance-life-cycle": "on-demand"}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _MetadataHandler(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        assert isinstance(self.server, Metadata)
        self.server.silent_for -= 1
        allowed = self.path == "/latest/api/token" and self.server.silent_for < 0
        ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        self._answer(200 if allowed and ttl else 503, "session")

    def do_GET(self) -> None:
        assert isinstance(self.server, Metadata)
        genuine = self.headers.get("X-aws-ec2-metadata-token") == "session"
        found = self.server.items.get(self.path.removeprefix("/latest/meta-data/"))
        self._answer(401 if not genuine else 404 if found is None else 200, found or "")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        pass


@dataclass
class Sandbox:
    """One machine-to-be: `root` is its file system, `calls` what its commands were called with."""

    base: Path
    bundle: Bundle = field(default_factory=lambda: Bundle(node=LEASE.node))
    heartbeat: timedelta = timedelta(seconds=1)
    watchdog: timedelta = timedelta(minutes=5)
    tokens: Tokens = field(default_factory=Tokens)
    metadata: Metadata = field(default_factory=Metadata)
    pin: str = ""
    clock_error: timedelta = timedelta(0)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root = self.base / "root"
        self.path = self.base / "bin"
        self.calls_file = self.base / "calls"
        state = self.base / "gateway"
        for directory in (self.root / "etc", self.path, state):
            directory.mkdir(parents=True)
        me = f"{os.getuid()}:{os.getgid()}"
        (self.root / "etc/passwd").write_text(
            f"root:x:{me}:root:/root:/bin/bash\nadmin:x:1000:1000:image's own:/home/admin:/bin/sh\n"
        )
        (self.root / "etc/group").write_text(f"root:x:{os.getgid()}:\nadmin:x:1000:\n")
        (self.root / "etc/hosts").write_text("127.0.0.1 localhost")
        for name in ("ip", "shutdown", "modprobe", "mount"):
            self.stand_in(name)
        self.stand_in("sleep", "exec /bin/sleep 0.05")
        self.secret = SiteSecret.load_or_create(state)
        self.token = self.secret.token(LEASE.id)
        self.tokens.states[LEASE.id] = LeaseState.BOOTING
        self.tokens.mint(
            LEASE.id, token_hash(self.token), datetime.now(UTC) + timedelta(minutes=20)
        )
        self.server = EnrolServer(
            address="127.0.0.1",
            port=0,
            identity=TlsIdentity.load_or_create(state, "127.0.0.1", datetime.now(UTC)),
            secret=self.secret,
            store=self.tokens,
            bundle=lambda _lease: self.bundle,
            clock=lambda: datetime.now(UTC) + self.clock_error,
            limits=Limits(requests_burst=1000, failures_burst=1000),
        )
        self.server.start()
        threading.Thread(target=self.metadata.serve_forever, args=(0.05,), daemon=True).start()

    def stand_in(self, name: str, text: str = "") -> None:
        """A command early in PATH that notes how it was called."""
        path = self.path / name
        path.write_text(
            f'#!/bin/sh\necho "{name} $*" >>{self.calls_file}\n{text}\n', encoding="utf-8"
        )
        path.chmod(0o755)

    def script(self) -> str:
        gateway = JoinGateway(
            address="198.51.100.1",
            enrol_url=self.server.url,
            pin=self.pin or self.server.pin,
            prefix_length=24,
            heartbeat=self.heartbeat,
            watchdog=self.watchdog,
            metadata_url=self.metadata.url,
            root=str(self.root),
        )
        return user_data(replace(LEASE), gateway, self.token)

    def start(self, path: str = "") -> subprocess.Popen[bytes]:
        """Run the user data as cloud-init does: as a file, its output into a log."""
        script = self.base / "user-data"
        script.write_text(self.script(), encoding="utf-8")
        script.chmod(0o700)
        with (self.base / "console").open("ab") as console:
            process = subprocess.Popen(
                ["/bin/bash", str(script)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={"PATH": path or f"{self.path}:{os.environ['PATH']}"},
            )
        self.processes.append(process)
        return process

    def run(self, path: str = "") -> int:
        """Run the user data to its end; its watchdog goes on."""
        return self.start(path).wait(timeout=60)

    def calls(self, name: str) -> list[str]:
        """What followed the command's name at each call."""
        text = self.calls_file.read_text() if self.calls_file.exists() else ""
        words = [line.partition(" ") for line in text.splitlines()]
        return [rest for first, _, rest in words if first == name]

    @property
    def console(self) -> str:
        return (self.base / "console").read_text()

    def report(self) -> dict[str, Any]:
        """What the machine itself noted of its joining."""
        found = json.loads((self.root / "run/dvn-join/report.json").read_text())
        assert isinstance(found, dict)
        return found

    def wait_for(self, condition: Callable[[], bool], limit: float = 20) -> None:
        deadline = time.monotonic() + limit
        while not condition():
            assert time.monotonic() < deadline, self.console
            time.sleep(0.02)

    def close(self) -> None:
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)  # its own session: only its watchdog
            except ProcessLookupError:
                continue
            process.wait()
        self.server.stop()
        self.metadata.shutdown()
        self.metadata.server_close()
