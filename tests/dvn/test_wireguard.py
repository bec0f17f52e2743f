"""WireGuard's messages, what is compared of a peer, and its key files. No kernel."""

from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvn import addresses
from dvn.kernel import netlink as nl
from dvn.kernel import wireguard as wg
from dvn.kernel.wireguard import Anywhere, WireguardDriver, WireguardKey, WireguardPeer
from dvn.spec import Site, site_from_json
from dvn.tunnels.secrets import read_secrets

PUBLIC = base64.b64encode(b"p" * 32).decode()
NOW = 1_000_000.0


def read_back(message: bytes) -> nl.Attributes:
    """The one peer of a message."""
    (peer,) = wg.children(nl.attributes(message)[8])
    return nl.attributes(peer)


def observed(message: bytes, heard: int) -> WireguardPeer:
    """The peer as the kernel would tell it: what was written, and when it was heard."""
    peer = read_back(message)
    peer[6] = struct.pack("=qq", heard, 0)
    return WireguardDriver(lambda: NOW)._peer("w-51820", peer)


def a_peer(**values: Any) -> WireguardPeer:
    fields: dict[str, Any] = {
        "device": "w-51820",
        "public_key": PUBLIC,
        "allowed": ("240.1.2.3/32",),
        "endpoint": ("203.0.113.7", 51820),
        "keepalive": 25,
    }
    return WireguardPeer(**{**fields, **values})


@given(
    endpoint=st.none() | st.tuples(st.ip_addresses().map(str), st.integers(1, 65535)),
    allowed=st.lists(st.ip_addresses(v=4).map(lambda a: f"{a}/32"), unique=True, max_size=3),
    keepalive=st.integers(0, 65535),
)
def test_what_is_written_is_what_is_read(
    endpoint: tuple[str, int] | None, allowed: list[str], keepalive: int
) -> None:
    peer = a_peer(endpoint=endpoint, allowed=tuple(sorted(allowed)), keepalive=keepalive)
    assert observed(wg._message(peer, None), heard=0) == peer


def test_a_peer_that_is_heard_is_where_it_is_heard() -> None:
    """It has roamed: no reason to send it back. One that is silent is looked for as declared."""
    elsewhere = wg._message(a_peer(endpoint=("192.0.2.9", 1027)), None)
    assert observed(elsewhere, heard=int(NOW) - 10) == a_peer()
    assert observed(elsewhere, heard=int(NOW) - 10).endpoint == Anywhere()
    assert observed(elsewhere, heard=int(NOW) - 500) != a_peer()


def test_another_address_in_the_file_counts_at_once() -> None:
    """Also for a peer that is heard: what the file said before is in the kernel's note."""
    before = WireguardPeer.of("w-51820", PUBLIC, "240.1.2.3", ("203.0.113.7", 51820))
    after = WireguardPeer.of("w-51820", PUBLIC, "240.1.2.3", ("203.0.113.8", 51820))
    there = observed(wg._message(before, None), heard=int(NOW) - 10)
    assert there == before
    assert there != after
    assert 4 in read_back(wg._message(after, there))  # its endpoint is set


def test_a_change_names_only_what_differs() -> None:
    same = read_back(wg._message(a_peer(keepalive=20), a_peer()))
    assert set(same) == {1, 5}  # the peer's key, and the keepalive
    moved = read_back(wg._message(a_peer(endpoint=("192.0.2.9", 1)), a_peer()))
    assert 4 in moved
    assert 2 not in moved  # its preshared key
    port = nl.attributes(
        wg._message(WireguardKey("w-1", PUBLIC, 2), WireguardKey("w-1", PUBLIC, 1))
    )
    assert set(port) == {2, 6}  # a private key set anew would end every session


def test_no_secret_is_shown() -> None:
    peer = a_peer(psk=wg.digest(b"secret"), psk_file="/etc/dvn/psk")
    for thing in (peer, WireguardKey("w-1", PUBLIC, 1, "/k")):
        assert "secret" not in f"{thing} {thing!r}"


def a_site(key_file: Path, psk: Path | None = None) -> Site:
    tunnel = {"network": "farm", "key": 1, "transport": "wireguard", "peer_key": PUBLIC}
    if psk:
        tunnel["psk_file"] = str(psk)
    return site_from_json(
        {
            "site": "cnaf",
            "underlay": {
                "interface": "wan0",
                "address": "198.51.100.1",
                "wireguard": {"private_key_file": str(key_file)},
            },
            "tenants": {
                "cms": {"networks": {"farm": {"prefix": "10.9.0.0/24"}}, "tunnels": {"a": tunnel}}
            },
        }
    )


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_public_half_is_what_wg_would_say(tmp_path: Path) -> None:
    """wg pubkey of 32 zero bytes; X25519 clamps the private key (RFC 7748, 5)."""
    key = write(tmp_path / "key", base64.b64encode(bytes(32)).decode() + "\n")
    secret = read_secrets(a_site(key))[str(key)]
    assert secret.public == "L+V9o0fNYkMVKNqsX7spBzD/9oSvxM/C7ZCZX1jLO3Q="
    assert secret.wrong == ""
    assert addresses.wireguard_inner(secret.public) in addresses.WIREGUARD_INNER


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (None, 0, "is not there; make it: umask 077; wg genkey >"),
        ("abc", 0o600, "is no WireGuard key"),
        (base64.b64encode(bytes(16)).decode(), 0o600, "is no WireGuard key"),
        (base64.b64encode(bytes(32)).decode(), 0o640, "can be read by others; chmod 600"),
    ],
)
def test_a_key_file_that_cannot_be_used(
    tmp_path: Path, text: str | None, mode: int, words: str
) -> None:
    key = tmp_path / "key"
    if text is not None:
        write(key, text, mode)
    assert words in read_secrets(a_site(key))[str(key)].wrong


def test_a_new_preshared_key_is_a_change(tmp_path: Path) -> None:
    key = write(tmp_path / "key", base64.b64encode(bytes(32)).decode())
    psk = write(tmp_path / "psk", base64.b64encode(b"1" * 32).decode())
    first = read_secrets(a_site(key, psk))[str(psk)].digest
    write(psk, base64.b64encode(b"2" * 32).decode())
    assert read_secrets(a_site(key, psk))[str(psk)].digest not in ("", first)
