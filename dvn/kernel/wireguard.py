"""WireGuard devices: their keys, and their peers, as things (linux/wireguard.h, wg(8)).

Private and preshared keys are in files; a thing names the file, and knows the key by its public
half or its digest. So no plan, log or answer ever shows a secret, and a new key in the same file is
a change in place.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import ipaddress
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, Literal, TypeAlias

from dvn.kernel import netlink as nl
from dvn.kernel.genl import Genl
from dvn.kernel.netlink import attribute, nested, text, u8, u16, u32
from dvn.kernel.things import Sight, Thing

_FAMILY, _GET, _SET = "wireguard", 0, 1
_IFNAME, _PRIVATE, _PUBLIC, _PORT, _PEERS = 2, 3, 4, 6, 8
_P_PUBLIC, _P_PSK, _P_FLAGS, _P_ENDPOINT, _P_KEEPALIVE, _P_HANDSHAKE, _P_ALLOWED = (
    1, 2, 3, 4, 5, 6, 9,
)  # fmt: skip
_F_REMOVE, _F_REPLACE_ALLOWED = 1, 2
_A_FAMILY, _A_ADDRESS, _A_MASK = 1, 2, 3
_NO_PSK = bytes(32)
_NOTES = int(IPv6Address("fd64:766e:6e6f:7465::"))  # a unique local prefix (RFC 4193)
SESSION_S = 180  # REJECT_AFTER_TIME: a session is no older than this (WireGuard's paper, 6.1)


class Anywhere:
    """Where a peer is that was heard a moment ago: it is where it was heard from, whatever a file
    says (a peer may roam, and a NAT may give it other ports). Equal to any endpoint."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __str__(self) -> str:
        return "where it was heard"


Endpoint: TypeAlias = tuple[str, int]  # address, UDP port


@dataclass(frozen=True)
class WireguardKey:
    """The private key and the UDP port of a device."""

    device: str
    public_key: str
    port: int
    private_key_file: str = field(default="", compare=False)
    kind: Literal["wireguard"] = "wireguard"
    rank: int = -1  # before the device goes up, when it takes the port

    @property
    def key(self) -> tuple[object, ...]:
        return (self.device,)

    @property
    def link(self) -> str:
        return self.device

    def __str__(self) -> str:
        return f"{self.device}: key {self.public_key[:8]}..., UDP port {self.port}"


@dataclass(frozen=True)
class WireguardPeer:
    """Another host, known by its public key. `keepalive` in seconds, 0 for none; `psk` is the
    digest of the preshared key ("" without one)."""

    device: str
    public_key: str
    allowed: tuple[str, ...]
    endpoint: Endpoint | Anywhere | None = None
    keepalive: int = 0
    psk: str = ""
    psk_file: str = field(default="", compare=False)
    kind: Literal["peer"] = "peer"
    rank: int = 1

    @staticmethod
    def of(
        device: str, public_key: str, inner: str, endpoint: Endpoint | None, **more: Any
    ) -> WireguardPeer:
        """With its address inside, and the note of the declared endpoint that the kernel keeps."""
        noted = () if endpoint is None else (f"{_note(*endpoint)}/128",)
        return WireguardPeer(device, public_key, (f"{inner}/32", *noted), endpoint, **more)

    @property
    def key(self) -> tuple[object, ...]:
        return (self.device, self.public_key)

    @property
    def link(self) -> str:
        return self.device

    def __str__(self) -> str:
        at = self.endpoint
        where = f" at {at[0]} port {at[1]}" if isinstance(at, tuple) else ""
        secret = f", psk {self.psk[:8]}" if self.psk else ""
        return f"{self.public_key[:8]}... of {self.device}{where}{secret}"


def _note(address: str, port: int) -> IPv6Address:
    """The declared endpoint as one more address that the peer may send from. The kernel remembers
    it, and nobody uses it: where the peer was heard tells nothing of what the file said last."""
    told = hashlib.sha256(f"{address} {port}".encode()).digest()
    return IPv6Address(_NOTES + int.from_bytes(told[:8], "big"))


def digest(secret: bytes) -> str:
    """What stands for a secret in a thing: enough to see that it changed, too little to guess."""
    return hashlib.sha256(b"dvn secret " + secret).hexdigest()[:16]


def read_key(path: str) -> bytes:
    """The 32 bytes of a key file as `wg genkey` writes it. Raises OSError, ValueError."""
    raw = base64.b64decode(Path(path).read_text().strip(), validate=True)
    if len(raw) != 32:
        raise ValueError(f"{path} has a key of {len(raw)} bytes; a WireGuard key has 32")
    return raw


class WireguardDriver:
    """`clock`: seconds since the epoch, as the kernel tells handshakes."""

    kinds = frozenset({"wireguard", "peer"})

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock

    def observe(self, _socket: nl.Socket, sight: Sight) -> Iterable[Thing]:
        devices = [name for name in sorted(sight.own) if name.startswith("w-")]
        if not devices:
            return
        with Genl() as genl:
            for device in devices:
                rows = genl.dump(_FAMILY, _GET, text(_IFNAME, device), f"read {device}")
                yield from self._device(device, rows)

    def _device(self, device: str, rows: list[nl.Attributes]) -> Iterator[Thing]:
        if not rows:
            return
        public = rows[0].get(_PUBLIC)
        if public:
            port = int.from_bytes(rows[0].get(_PORT, b""), sys.byteorder)
            yield WireguardKey(device, _text(public), port)
        for row in rows:
            for raw in children(row.get(_PEERS, b"")):
                peer = nl.attributes(raw)
                if _P_HANDSHAKE in peer:  # else more allowed addresses of the one before
                    yield self._peer(device, peer)

    def _peer(self, device: str, peer: nl.Attributes) -> WireguardPeer:
        psk = peer.get(_P_PSK, _NO_PSK)
        heard, _nanoseconds = struct.unpack("=qq", peer[_P_HANDSHAKE])
        live = self._clock() - heard < SESSION_S
        return WireguardPeer(
            device,
            _text(peer[_P_PUBLIC]),
            tuple(sorted(map(_allowed, children(peer.get(_P_ALLOWED, b""))))),
            Anywhere() if live else _endpoint(peer.get(_P_ENDPOINT)),
            int.from_bytes(peer.get(_P_KEEPALIVE, b""), sys.byteorder),
            "" if psk == _NO_PSK else digest(psk),
        )

    def put(self, _socket: nl.Socket, thing: Thing, before: Thing | None) -> int:
        with Genl() as genl:
            genl.send(_FAMILY, _SET, _message(thing, before), f"{thing.kind} {thing}")
        return 1

    def remove(self, _socket: nl.Socket, thing: Thing) -> int:
        if not isinstance(thing, WireguardPeer):
            return 0  # a device keeps its key as long as it lives
        gone = nested(
            _PEERS,
            nested(0, attribute(_P_PUBLIC, _raw(thing.public_key)), u32(_P_FLAGS, _F_REMOVE)),
        )
        with Genl() as genl:
            genl.send(_FAMILY, _SET, text(_IFNAME, thing.device) + gone, f"remove peer {thing}")
        return 1


def _message(thing: Thing, before: Thing | None) -> bytes:
    """What makes a thing, or changes it: only what differs, so that a session goes on."""
    if isinstance(thing, WireguardKey):
        body = text(_IFNAME, thing.device)
        if not isinstance(before, WireguardKey) or before.public_key != thing.public_key:
            body += attribute(_PRIVATE, _secret(thing.private_key_file))
        if not isinstance(before, WireguardKey) or before.port != thing.port:
            body += u16(_PORT, thing.port)
        return body
    if not isinstance(thing, WireguardPeer):
        raise TypeError(f"{thing!r} is not WireGuard's")
    old = before if isinstance(before, WireguardPeer) else None
    parts = [attribute(_P_PUBLIC, _raw(thing.public_key))]
    if old is None or old.psk != thing.psk:
        secret = _secret(thing.psk_file) if thing.psk else _NO_PSK
        parts.append(attribute(_P_PSK, secret))
    moved = old is None or old.endpoint != thing.endpoint or old.allowed != thing.allowed
    if isinstance(thing.endpoint, tuple) and moved:
        parts.append(attribute(_P_ENDPOINT, _sockaddr(*thing.endpoint)))
    parts.append(u16(_P_KEEPALIVE, thing.keepalive))
    if old is None or old.allowed != thing.allowed:
        parts.append(u32(_P_FLAGS, _F_REPLACE_ALLOWED))
        parts.append(nested(_P_ALLOWED, *(_packed(prefix) for prefix in thing.allowed)))
    return text(_IFNAME, thing.device) + nested(_PEERS, nested(0, *parts))


def children(data: bytes) -> Iterator[bytes]:
    """The values of a list of nested attributes, whose types say nothing."""
    offset = 0
    while offset + 4 <= len(data):
        length, _kind = struct.unpack_from("=HH", data, offset)
        if length < 4 or offset + length > len(data):
            return
        yield data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _secret(path: str) -> bytes:
    if not path:  # of a thing that was only seen, and is to come back
        raise OSError(errno.ENOENT, "where its key is, only the site file knows: apply it again")
    try:
        return read_key(path)
    except ValueError as error:
        raise OSError(errno.EINVAL, f"{error}", path) from None


def _packed(prefix: str) -> bytes:
    network = ipaddress.ip_network(prefix)
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    return nested(
        0,
        u16(_A_FAMILY, family),
        attribute(_A_ADDRESS, network.network_address.packed),
        u8(_A_MASK, network.prefixlen),
    )


def _allowed(raw: bytes) -> str:
    found = nl.attributes(raw)
    return f"{ipaddress.ip_address(found[_A_ADDRESS])}/{found[_A_MASK][0]}"


def _sockaddr(address: str, port: int) -> bytes:
    """sockaddr_in or sockaddr_in6 (ip(7), ipv6(7))."""
    parsed = ipaddress.ip_address(address)
    if parsed.version == 4:
        return (
            struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + parsed.packed + bytes(8)
        )
    start = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0)
    return start + parsed.packed + bytes(4)


def _endpoint(raw: bytes | None) -> Endpoint | None:
    if not raw:
        return None
    (family,) = struct.unpack_from("=H", raw)
    (port,) = struct.unpack_from("!H", raw, 2)
    address = raw[4:8] if family == socket.AF_INET else raw[8:24]
    return str(ipaddress.ip_address(address)), port


def _text(key: bytes) -> str:
    return base64.b64encode(key).decode()


def _raw(key: str) -> bytes:
    return base64.b64decode(key)
