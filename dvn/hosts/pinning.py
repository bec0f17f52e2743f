"""How a host recognises its gateway: by the hash of its public key (RFC 7469, `pin-sha256`)."""

from __future__ import annotations

import base64
import hashlib

# How a P-256 SubjectPublicKeyInfo begins in DER (RFC 5480, section 2.1.1.1); the point follows.
_SPKI_HEAD = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
_SPKI_LENGTH = 91


def pin_of(certificate: bytes) -> str | None:
    """`sha256//...` of a certificate in DER, as curl's --pinnedpubkey writes it; None unless its
    key is on P-256, as every gateway's is."""
    start = certificate.find(_SPKI_HEAD)
    if start < 0:
        return None
    spki = certificate[start : start + _SPKI_LENGTH]
    return "sha256//" + base64.b64encode(hashlib.sha256(spki).digest()).decode()
