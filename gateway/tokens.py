"""The one-time tokens of borrowed machines, and the session keys they turn into.

Both are computed from one secret of the site and the lease's id, never drawn at random. EC2's
RunInstances is idempotent only when the repeated call has the *same parameters*, user data included
(`IdempotentParameterMismatch` otherwise, see "Ensuring idempotency" in the EC2 API reference); a
daemon that was killed between storing a lease and hearing of its machine must therefore render
the same token again. That a token works once is the store's doing (`gateway.enrol.TokenStore`):
it is bound to the first nonce it is used with, and expires.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

SECRET_BYTES = 32
_SECRET_FILE = "site.secret"
_LEASE_ID_LENGTH = 64  # an EC2 ClientToken is no longer
_MAC_HEX = 64


class SecretError(Exception):
    """The site's secret cannot be read or made. The message is for people."""


class SiteSecret:
    """What tokens and sessions are derived from. Never leaves the gateway."""

    def __init__(self, key: bytes) -> None:
        if len(key) != SECRET_BYTES:
            raise SecretError(f"a site secret has {SECRET_BYTES} bytes, not {len(key)}")
        self._key = key

    @classmethod
    def load_or_create(cls, state_dir: Path) -> SiteSecret:
        """The secret kept in `state_dir` (mode 0600), made on the first call."""
        path = state_dir / _SECRET_FILE
        try:
            create_private(path, secrets.token_bytes(SECRET_BYTES))
            key = path.read_bytes()
        except OSError as error:
            raise SecretError(
                f"{path}: {error.strerror}; the gateway's user needs to own {state_dir}"
            ) from error
        if len(key) != SECRET_BYTES:
            raise SecretError(
                f"{path}: has {len(key)} bytes instead of {SECRET_BYTES}; remove it and restart: "
                "machines that are still booting will then be refused and returned"
            )
        return cls(key)

    def token(self, lease_id: str) -> str:
        """What goes into the user data of the lease's machine."""
        return self._sign("token", lease_id)

    def batch_token(self, batch: str) -> str:
        """What goes into the user data of all machines of a batch."""
        return self._sign("batch", batch)

    def batch_of_token(self, text: str) -> str | None:
        """The batch a genuine token is for; None for anything else. Constant time."""
        return self._verify("batch", text)

    def session(self, lease_id: str) -> str:
        """What an enrolled machine shows with every later request."""
        return self._sign("session", lease_id)

    def lease_of_token(self, text: str) -> str | None:
        """The lease a genuine token is for; None for anything else. Constant time."""
        return self._verify("token", text)

    def lease_of_session(self, text: str) -> str | None:
        """The lease a genuine session key is for; None for anything else. Constant time."""
        return self._verify("session", text)

    def host_token(self, host: str, invitation: int) -> str:
        """What a hypervisor shows with every request (gateway/hosts)."""
        return self._sign("host", f"{host}.{invitation}")

    def host_of_token(self, text: str) -> tuple[str, int] | None:
        """(host, invitation) of a genuine token of a host; None for anything else."""
        name, _, number = (self._verify("host", text) or "").rpartition(".")
        return (name, int(number)) if name else None

    def _sign(self, purpose: str, lease_id: str) -> str:
        mac = hmac.new(self._key, f"{purpose}\0{lease_id}".encode(), hashlib.sha256)
        return f"{lease_id}.{mac.hexdigest()}"

    def _verify(self, purpose: str, text: str) -> str | None:
        if not text.isascii() or len(text) > _LEASE_ID_LENGTH + 1 + _MAC_HEX:
            return None
        lease_id, dot, _mac = text.rpartition(".")
        if not dot or not lease_id:
            return None
        genuine = hmac.compare_digest(self._sign(purpose, lease_id).encode(), text.encode())
        return lease_id if genuine else None


def token_hash(token: str) -> str:
    """What a store keeps in place of the token: 64 hex digits."""
    return hashlib.sha256(token.encode()).hexdigest()


def create_private(path: Path, content: bytes) -> bool:
    """Make the file with mode 0600, whole or not at all; False when it was there already.

    The content is linked into place only when it is on the disk, so that two daemons starting
    together, or one killed half way, never leave or use a partial file.
    """
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
        return True
    finally:
        draft.unlink()
