"""sshd on a lab host, for users of another who have a key: how a gateway reaches a hypervisor."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from lab.host import Host, LabError, stop, wait_for

SSHD = "/usr/sbin/sshd"
_DIRECTORY = "/etc/ssh"
_CONFIG = f"""\
HostKey {_DIRECTORY}/lab_host_key
AuthorizedKeysFile {_DIRECTORY}/lab_authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PidFile none
LogLevel VERBOSE
"""
_UP_LIMIT_S = 60.0


def available() -> str:
    """What is missing to run one, for a message; empty when nothing is."""
    return "" if shutil.which(SSHD) else "apt-get install openssh-server"


class SshHost:
    """sshd, up while the context lasts. Nobody may log in before `admit`."""

    def __init__(self, host: Host, log: Path) -> None:
        self.host = host
        self.log = log
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SshHost:
        if lacking := available():
            raise LabError(f"{self.host.name}: {lacking}")
        self.host.script(
            f"mkdir -p {_DIRECTORY} /run/sshd; rm -f {_DIRECTORY}/lab_host_key*\n"
            f"ssh-keygen -q -t ed25519 -N '' -C {self.host.name} -f {_DIRECTORY}/lab_host_key"
        )
        self.host.write(f"{_DIRECTORY}/lab_sshd_config", _CONFIG.encode())
        self.host.write(f"{_DIRECTORY}/lab_authorized_keys", b"", mode=0o600)
        self._daemon = self.host.spawn(
            SSHD, "-D", "-e", "-f", f"{_DIRECTORY}/lab_sshd_config", log=self.log
        )
        wait_for(self._answers, _UP_LIMIT_S, what=f"sshd on {self.host.name}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._daemon is not None and self.host.alive:
            stop(self._daemon, patience=10.0)

    def admit(self, client: Host, address: str, key_file: str, owner: str = "root") -> None:
        """Make a key in `key_file` of the client for its user `owner`, let it in as root, and have
        the client know this host's key by `address`."""
        client.script(
            f"mkdir -p $(dirname {key_file}) {_DIRECTORY}\n"
            f"ssh-keygen -q -t ed25519 -N '' -C {owner} -f {key_file}; chown {owner} {key_file}"
        )
        known = self.host.read(f"{_DIRECTORY}/lab_host_key.pub").split()[:2]
        client.write(f"{_DIRECTORY}/ssh_known_hosts", f"{address} {' '.join(known)}\n".encode())
        public = client.read(f"{key_file}.pub")
        self.host.write(f"{_DIRECTORY}/lab_authorized_keys", public.encode(), mode=0o600)

    def _answers(self) -> bool:
        try:
            with self.host.connect("127.0.0.1", 22, timeout=2) as sock:
                sock.settimeout(5)
                return sock.recv(4) == b"SSH-"
        except (TimeoutError, OSError):
            return False
