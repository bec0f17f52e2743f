"""The files of secrets that a site names: what may be known of them, and what is wrong."""

from __future__ import annotations

import base64
import stat
from collections.abc import Mapping
from pathlib import Path

from dvn.kernel.state import Secret
from dvn.kernel.wireguard import digest, read_key
from dvn.spec import Site

_MAKE = {"wireguard": "umask 077; wg genkey > {0}", "psk": "umask 077; wg genpsk > {0}"}


def read_secrets(site: Site) -> Mapping[str, Secret]:
    """Each file's digest, and of the WireGuard key its public half, by path. Reads files."""
    found: dict[str, Secret] = {}
    own = site.underlay.wireguard if site.underlay else None
    if own:
        found[own.private_key_file] = _private(own.private_key_file)
    for tunnel in site.tunnels():
        path = tunnel.psk_file
        if path and path not in found:
            found[path] = _shared(path, raw_key=tunnel.transport != "ipsec")
    return found


def _private(path: str) -> Secret:
    wrong = _unreadable(path, "wireguard")
    if wrong:
        return Secret(wrong=wrong)
    # Only sites with WireGuard pay for the library.
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    try:
        raw = read_key(path)
    except (OSError, ValueError):
        return Secret(wrong=f"is no WireGuard key; make one: {_MAKE['wireguard'].format(path)}")
    public = X25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()
    return Secret(digest(raw), base64.b64encode(public).decode())


def _shared(path: str, *, raw_key: bool) -> Secret:
    wrong = _unreadable(path, "psk")
    if wrong:
        return Secret(wrong=wrong)
    try:
        raw = read_key(path) if raw_key else Path(path).read_bytes().strip()
    except (OSError, ValueError):
        return Secret(wrong=f"is no preshared key; make one: {_MAKE['psk'].format(path)}")
    if len(raw) < 16:
        return Secret(wrong="is shorter than 16 bytes: it would be guessed")
    return Secret(digest(raw))


def _unreadable(path: str, kind: str) -> str:
    try:
        mode = Path(path).stat().st_mode
        with Path(path).open("rb") as file:
            file.read(1)
    except FileNotFoundError:
        return f"is not there; make it: {_MAKE[kind].format(path)}"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not stat.S_ISREG(mode):
        return "is no file"
    if mode & 0o077:
        return f"can be read by others; chmod 600 {path}"
    return ""
