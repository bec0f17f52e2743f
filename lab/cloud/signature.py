"""AWS Signature Version 4, the verifier's side (AWS: "Create a signed AWS API request")."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote


@dataclass(frozen=True, slots=True)
class Credential:
    """The parts of the Authorization header."""

    key: str
    date: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str


def parse_authorization(header: str) -> Credential | None:
    """The header's parts; None when it is no AWS4-HMAC-SHA256 one."""
    scheme, _, rest = header.partition(" ")
    if scheme != "AWS4-HMAC-SHA256":
        return None
    pairs = (part.strip().partition("=") for part in rest.split(","))
    parts = {name: value for name, _, value in pairs}
    scope = parts.get("Credential", "").split("/")
    if len(scope) != 5 or not {"SignedHeaders", "Signature"} <= set(parts):
        return None
    key, date, region, service, _ = scope
    headers = tuple(parts["SignedHeaders"].split(";"))
    return Credential(key, date, region, service, headers, parts["Signature"])


def verify(
    credential: Credential,
    secret: str,
    *,
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    body: bytes,
) -> bool:
    """True when the signature is the one that `secret` makes; header names in lower case."""
    canonical_query = "&".join(
        f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}"
        for k, v in sorted(parse_qsl(query, keep_blank_values=True))
    )
    lines = [
        f"{name}:{' '.join(headers.get(name, '').split())}" for name in credential.signed_headers
    ]
    request = "\n".join(
        [
            method,
            quote(path, safe="/-_.~"),
            canonical_query,
            *lines,
            "",
            ";".join(credential.signed_headers),
            hashlib.sha256(body).hexdigest(),
        ]
    )
    scope = f"{credential.date}/{credential.region}/{credential.service}/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", headers.get("x-amz-date", ""), scope, digest])
    key = f"AWS4{secret}".encode()
    for part in (credential.date, credential.region, credential.service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    expected = hmac.digest(key, text.encode(), "sha256").hex()
    return hmac.compare_digest(expected, credential.signature)
