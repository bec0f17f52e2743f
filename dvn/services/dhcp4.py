"""DHCPv4 for one network: a message in, an answer out (RFC 2131, RFC 2132). No sockets, no clock.

The server speaks for the network with authority: there is no other (the ports' filters see to it),
so what a client asks for in vain is refused and not ignored. Relays are not answered: a tenant's
network has none.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import cast

from dvn.ipam import AddressBook, Lease
from dvn.services.config import Family, Service

DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)

PAD, SUBNET_MASK, ROUTER, DNS, HOST_NAME, DOMAIN, MTU, BROADCAST_ADDRESS = (
    0,
    1,
    3,
    6,
    12,
    15,
    26,
    28,
)
REQUESTED, LEASE_TIME, MESSAGE_TYPE, SERVER, T1, T2, CLIENT_ID, END = (
    50,
    51,
    53,
    54,
    58,
    59,
    61,
    255,
)

_HEADER = struct.Struct("!BBBBIHH4s4s4s4s16s")
_NAMES = 64 + 128  # sname and file of BOOTP, unused
_MAGIC = bytes((99, 130, 83, 99))
_LEAST = 300  # bytes of a reply that every client takes (RFC 1542, 2.1)
_BROADCAST_FLAG = 0x8000
BROADCAST = IPv4Address("255.255.255.255")
BROADCAST_MAC = "ff:ff:ff:ff:ff:ff"
ZERO = IPv4Address(0)
OFFERED_S = 60.0  # how long an offer is kept for the client that got it
DECLINED_S = 600.0  # how long an address that a client found in use is given to nobody


@dataclass(frozen=True)
class Message:
    """A request, as far as it is looked at."""

    kind: int
    xid: int
    flags: int
    ciaddr: IPv4Address
    mac: str
    options: dict[int, bytes]

    @property
    def client(self) -> str:
        """Who asks: the client identifier (RFC 2131, 4.2), else the MAC address."""
        given = self.options.get(CLIENT_ID)
        return f"4:{given.hex()}" if given and len(given) >= 2 else f"4:{self.mac}"

    @property
    def name(self) -> str:
        return self.options.get(HOST_NAME, b"").decode("ascii", "ignore").lower()

    def address(self, option: int) -> IPv4Address | None:
        raw = self.options.get(option)
        return IPv4Address(raw) if raw and len(raw) == 4 else None


@dataclass(frozen=True)
class Answer:
    """`data` for UDP port 68 at `address` and `mac`. `lease`: to be written down before it is sent.
    `probe`: send it only if nobody has this address now."""

    data: bytes
    mac: str
    address: IPv4Address
    lease: Lease | None = None
    probe: IPv4Address | None = None


def parse(data: bytes) -> Message | None:
    """None for what is no request of a client on Ethernet, or comes through a relay."""
    start = _HEADER.size + _NAMES
    if len(data) < start + 4 or data[start : start + 4] != _MAGIC:
        return None
    op, hardware, length, _hops, xid, _secs, flags, ciaddr, _yi, _si, giaddr, chaddr = (
        _HEADER.unpack_from(data)
    )
    if (op, hardware, length) != (1, 1, 6) or giaddr != bytes(4) or chaddr[0] & 1:
        return None
    options = _options(data[start + 4 :])
    kind = options.get(MESSAGE_TYPE, b"")
    if len(kind) != 1 or chaddr[:6] == bytes(6):
        return None
    return Message(kind[0], xid, flags, IPv4Address(ciaddr), chaddr[:6].hex(":"), options)


def _options(data: bytes) -> dict[int, bytes]:
    """Options by number; the parts of a long one are joined (RFC 3396)."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != END:
        if data[at] == PAD:
            at += 1
            continue
        if at + 1 >= len(data) or at + 2 + data[at + 1] > len(data):
            break
        length = data[at + 1]
        found[data[at]] = found.get(data[at], b"") + data[at + 2 : at + 2 + length]
        at += 2 + length
    return found


class Dhcp4:
    """Answers for one network, out of its book."""

    def __init__(self, service: Service, family: Family, book: AddressBook) -> None:
        self._service, self._family, self._book = service, family, book
        self._gateway = cast(IPv4Address, family.gateway)
        self._offers: dict[str, tuple[IPv4Address, float]] = {}

    def answer(self, message: Message, now: float) -> Answer | None:
        """What to send, if anything. An offer is noted here; a lease is the caller's to bind."""
        server = message.address(SERVER)
        if server is not None and server != self._gateway:
            self._offers.pop(message.client, None)  # it chose another server
            return None
        match message.kind:
            case value if value == DISCOVER:
                return self._offer(message, now)
            case value if value == REQUEST:
                return self._request(message, now)
            case value if value == INFORM and message.ciaddr != ZERO:
                data = self._reply(message, ACK, ZERO, told=True)
                return Answer(data, message.mac, message.ciaddr)
            case _:
                return None

    def given_back(self, message: Message, now: float) -> Lease | None:
        """What a DECLINE or RELEASE changes, to be written down."""
        if message.kind == RELEASE:
            return self._book.release(message.client, message.ciaddr, now)
        wanted = message.address(REQUESTED)
        lease = self._book.living(wanted, now) if message.kind == DECLINE and wanted else None
        if lease is None or lease.client != message.client:
            return None
        return self._book.quarantine(lease.address, now + DECLINED_S)

    def in_use(self, message: Message, address: IPv4Address, now: float) -> Lease:
        """Somebody answered for an address that was to be offered. To be written down."""
        self._offers.pop(message.client, None)
        return self._book.quarantine(address, now + DECLINED_S)

    def _offer(self, message: Message, now: float) -> Answer | None:
        self._offers = {c: offer for c, offer in self._offers.items() if offer[1] > now}
        wanted = self._offers.get(message.client, (message.address(REQUESTED), 0.0))[0]
        address = self._free(message, now, wanted)
        if address is None:
            return None
        self._offers[message.client] = (address, now + OFFERED_S)
        lease = self._book.living(address, now)
        known = lease is not None or self._book.fixed(message.mac, 4) == address
        data = self._reply(message, OFFER, address)
        return self._to(message, data, address, probe=None if known else address)

    def _free(self, message: Message, now: float, wanted: IPv4Address | None) -> IPv4Address | None:
        """An address for the client that is not offered to another."""
        promised = {
            address for client, (address, _until) in self._offers.items()
            if client != message.client
        }  # fmt: skip
        found = self._book.offer(
            message.client, message.mac, 4, now,
            wanted=wanted if wanted not in promised else None, avoid=promised,
        )  # fmt: skip
        return cast("IPv4Address | None", found)

    def _request(self, message: Message, now: float) -> Answer | None:
        chosen = message.address(REQUESTED)
        address = message.ciaddr if message.ciaddr != ZERO else chosen
        if address is None:
            return None
        offered = self._offers.get(message.client)
        promised = any(
            address == other and client != message.client and until > now
            for client, (other, until) in self._offers.items()
        )
        if promised or not self._book.may_have(message.client, message.mac, address, now):
            self._book.release(message.client, address, now)
            return Answer(self._reply(message, NAK, ZERO), BROADCAST_MAC, BROADCAST)
        if offered:
            del self._offers[message.client]
        until = now + self._service.lease_s
        lease = Lease(address, message.client, until, message.mac, message.name)
        answer = self._to(message, self._reply(message, ACK, address), address)
        return Answer(answer.data, answer.mac, answer.address, lease)

    def _to(
        self,
        message: Message,
        data: bytes,
        address: IPv4Address,
        probe: IPv4Address | None = None,
    ) -> Answer:
        """Where a reply goes (RFC 2131, 4.1): the client may not know its address yet."""
        if message.ciaddr == ZERO and message.flags & _BROADCAST_FLAG:
            return Answer(data, BROADCAST_MAC, BROADCAST, probe=probe)
        return Answer(data, message.mac, address, probe=probe)

    def _reply(
        self, message: Message, kind: int, address: IPv4Address, *, told: bool = False
    ) -> bytes:
        header = _HEADER.pack(
            2, 1, 6, 0, message.xid, 0, message.flags,
            message.ciaddr.packed if kind == ACK else bytes(4), address.packed, bytes(4), bytes(4),
            bytes.fromhex(message.mac.replace(":", "")).ljust(16, b"\0"),
        )  # fmt: skip
        options = [_option(MESSAGE_TYPE, bytes([kind])), _option(SERVER, self._gateway.packed)]
        if kind != NAK:
            if not told:
                options += self._times()
            options += self._facts()
        if CLIENT_ID in message.options:  # RFC 6842
            options.append(_option(CLIENT_ID, message.options[CLIENT_ID]))
        options.append(bytes([END]))
        return (header + bytes(_NAMES) + _MAGIC + b"".join(options)).ljust(_LEAST, b"\0")

    def _times(self) -> list[bytes]:
        lease = self._service.lease_s
        return [
            _option(LEASE_TIME, struct.pack("!I", lease)),
            _option(T1, struct.pack("!I", lease // 2)),
            _option(T2, struct.pack("!I", lease * 7 // 8)),
        ]

    def _facts(self) -> Iterable[bytes]:
        length = self._family.length
        mask = (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF
        yield _option(SUBNET_MASK, struct.pack("!I", mask))
        last = int(self._gateway) | ~mask & 0xFFFFFFFF
        yield _option(BROADCAST_ADDRESS, struct.pack("!I", last))
        yield _option(ROUTER, self._gateway.packed)
        yield _option(MTU, struct.pack("!H", self._service.mtu))
        if self._family.resolvers:
            yield _option(DNS, b"".join(a.packed for a in self._family.resolvers))
        if self._service.domain:
            yield _option(DOMAIN, self._service.domain.encode())


def _option(number: int, value: bytes) -> bytes:
    return bytes([number, len(value)]) + value


def frame(answer: Answer, source_mac: str, source: IPv4Address) -> bytes:
    """The reply as an Ethernet frame: a client without an address cannot be asked for its MAC."""
    udp = struct.pack("!HHHH", 67, 68, 8 + len(answer.data), 0)
    total = 20 + len(udp) + len(answer.data)
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0xC0, total, 0, 0, 64, socket.IPPROTO_UDP, 0,
        source.packed, answer.address.packed,
    )  # fmt: skip
    pseudo = source.packed + answer.address.packed + struct.pack("!HH", 17, 8 + len(answer.data))
    udp_sum = checksum(pseudo + udp + answer.data) or 0xFFFF
    udp = udp[:6] + struct.pack("!H", udp_sum)
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    macs = bytes.fromhex((answer.mac + source_mac).replace(":", ""))
    return macs + struct.pack("!H", 0x0800) + ip + udp + answer.data


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
