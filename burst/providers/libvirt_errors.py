"""libvirt's error codes in the few classes a decision tells apart.

Source: libvirt/virterror.h (the numbers are ABI and never change). What the code leaves open, as
with everything that went wrong in ssh or in QEMU itself, is told apart by the words.
"""

from __future__ import annotations

from burst.providers.base import (
    Misconfigured,
    NoCapacity,
    ProviderError,
    QuotaExceeded,
    Unreachable,
)

NO_DOMAIN = 42
NO_STORAGE_POOL = 49
NO_STORAGE_VOL = 50
OPERATION_INVALID = 55
NO_DOMAIN_METADATA = 80
STORAGE_VOL_EXISTS = 90  # VIR_ERR_STORAGE_VOL_EXIST

_SYSTEM = 38  # VIR_ERR_SYSTEM_ERROR: errno; of the hypervisor's files, too
_FROM_RPC = 7  # VIR_FROM_RPC: the connection itself
_UNREACHABLE = frozenset(
    {
        _SYSTEM,  # of the connection: a socket that is not there, a connection that broke
        39,  # RPC
        68,  # OPERATION_TIMEOUT
        6,  # INVALID_CONN: it was closed meanwhile
    }
)
_NO_CAPACITY_WORDS = (
    "cannot allocate memory",
    "no space left",
    "cannot set up guest memory",
    "insufficient free",
    "not enough free",
)
_QUOTA_WORDS = ("disk quota exceeded", "maximum number of domains")
_PERMISSION_WORDS = ("permission denied", "access denied", "authentication failed", "polkit")
_FOR_GOOD_WORDS = {  # of connections: repeating cannot help
    "host key verification failed": "add the hypervisor's host key to known_hosts of the "
    "gateway's user",
    "no connection driver available": "see `uri` in the site file: it names no hypervisor libvirt "
    "knows",
    "could not resolve hostname": "see `uri` in the site file: nobody knows this host",
    "cannot find suitable emulator": "install QEMU on the hypervisor",
}
_HINTS = {
    NO_STORAGE_POOL: "see `storage` in the site file; `virsh pool-list --all` shows what there is",
    NO_STORAGE_VOL: "see `images` in the site file; `virsh vol-list POOL` shows what there is",
    29: "the URI asks for read-only access",  # OPERATION_DENIED
    45: "the gateway's user may not use this hypervisor: add it to group libvirt there",
    79: "the gateway's user may not use this hypervisor: add it to group libvirt there",
    88: "the hypervisor's access rules refuse this to the gateway's user",
}
_PERMISSION = (
    "the gateway's user may not use this hypervisor: add it to group libvirt there, and for "
    "qemu+ssh let its key log in without a password"
)


def provider_error(code: int, message: str, domain: int = _FROM_RPC) -> ProviderError:
    """The domain error for a libvirt error: its class, and what to look at. `domain` is the part
    of libvirt that it came from."""
    text, words = message.strip(), message.lower()
    if any(word in words for word in _PERMISSION_WORDS):
        return Misconfigured(f"{text} ({_PERMISSION})")
    for word, hint in _FOR_GOOD_WORDS.items():
        if word in words:
            return Misconfigured(f"{text} ({hint})")
    if any(word in words for word in _NO_CAPACITY_WORDS):
        return NoCapacity(text)
    if any(word in words for word in _QUOTA_WORDS):
        return QuotaExceeded(text)
    if code in _UNREACHABLE and not (code == _SYSTEM and domain != _FROM_RPC):
        return Unreachable(text)
    hint = f" ({_HINTS[code]})" if code in _HINTS else ""
    return Misconfigured(f"{text}{hint}")
