"""The key by which borrowed machines recognise the gateway.

A self-signed certificate is enough, and better than a public one: the user data of each machine
names the hash of this very public key (RFC 7469's `pin-sha256`, curl's `--pinnedpubkey`), so no
certificate authority is trusted with it. Key and certificate are kept in the state directory:
a restarted daemon must keep the pin that machines now booting were given.
"""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from dvn.hosts.pinning import pin_of
from gateway.tokens import create_private

_FILE = "enrol.pem"
_LIFETIME = timedelta(days=3650)  # nobody looks at it: the pin decides


class TlsError(Exception):
    """The gateway's key cannot be read or made. The message is for people."""


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """Key and certificate in one file, and the pin under which machines know them."""

    path: Path
    pin: str  # "sha256//" and the base64 of the SHA-256 of the public key

    @classmethod
    def load_or_create(cls, state_dir: Path, address: str, now: datetime) -> TlsIdentity:
        """The identity kept in `state_dir` (mode 0600), made on the first call.

        `address` goes into the certificate for people who look at it; it may change later.
        """
        path = state_dir / _FILE
        try:
            if not path.exists():
                create_private(path, _new_identity(address, now))
            text = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise TlsError(
                f"{path}: {error}; the gateway's user needs to own {state_dir}"
            ) from error
        return cls(path, _pin(path, text))

    def context(self) -> ssl.SSLContext:
        """A server context: TLS 1.2 and later, this certificate, no client certificates."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.path)
        except ssl.SSLError as error:
            raise TlsError(_damaged(self.path, str(error))) from error
        return context


def _new_identity(address: str, now: datetime) -> bytes:
    # Imported here: it takes long, and is needed once in a gateway's life.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"dvn gateway {address}"[:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + _LIFETIME)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)


def _pin(path: Path, text: str) -> str:
    """The pin of the certificate, without a certificate parser: the key is always P-256."""
    begin = text.find("-----BEGIN CERTIFICATE-----")
    try:
        der = ssl.PEM_cert_to_DER_cert(text[begin:].strip()) if begin >= 0 else b""
    except ValueError as error:
        raise TlsError(_damaged(path, str(error))) from error
    pin = pin_of(der)
    if pin is None:
        raise TlsError(_damaged(path, "no certificate with a P-256 key in it"))
    return pin


def _damaged(path: Path, why: str) -> str:
    return (
        f"{path}: not a key this program made ({why}); remove it and restart: "
        "machines that are still booting will then not recognise the gateway and be returned"
    )
