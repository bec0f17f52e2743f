"""DHCPv6 for one network: a message in, an answer out (RFC 8415). No sockets, no clock.

Addresses only (IA_NA); no temporary ones, no prefixes: a tenant's machine has the addresses that
are known here. Relays are not answered.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network

from dvn.ipam import AddressBook, Lease
from dvn.services.config import Family, Service
from dvn.services.names import packed_name

SOLICIT, ADVERTISE, REQUEST, CONFIRM, RENEW, REBIND, REPLY, RELEASE, DECLINE = range(1, 10)
INFORMATION_REQUEST = 11

CLIENT_ID, SERVER_ID, IA_NA, IA_TA, IA_ADDRESS, ORO, PREFERENCE = 1, 2, 3, 4, 5, 6, 7
STATUS, RAPID_COMMIT, DNS_SERVERS, DOMAIN_LIST, IA_PD = 13, 14, 23, 24, 25
CLIENT_NAME = 39  # RFC 4704
NO_ADDRESS, NO_BINDING, NOT_ON_LINK, NO_PREFIX = 2, 3, 4, 6

DUID_LLT, DUID_LL = 1, 3
DECLINED_S = 600.0


@dataclass(frozen=True)
class Message:
    """A request. `options` in order: a client may ask for several associations."""

    kind: int
    transaction: bytes
    options: tuple[tuple[int, bytes], ...]

    def option(self, number: int) -> bytes | None:
        return next((value for kind, value in self.options if kind == number), None)

    @property
    def duid(self) -> bytes:
        return self.option(CLIENT_ID) or b""


@dataclass(frozen=True)
class Answer:
    """`leases`: to be written down before `data` is sent."""

    data: bytes
    leases: tuple[Lease, ...] = ()


@dataclass(frozen=True)
class _Association:
    """An IA_NA: its id, and the addresses the client names."""

    id: bytes
    addresses: tuple[IPv6Address, ...]


def parse(data: bytes) -> Message | None:
    """None for what is malformed, from a relay, or without a client identifier."""
    if len(data) < 4 or data[0] not in (*range(SOLICIT, 10), INFORMATION_REQUEST):
        return None
    options = _options(data[4:])
    if options is None:
        return None
    message = Message(data[0], data[1:4], tuple(options))
    if message.kind != INFORMATION_REQUEST and not 3 <= len(message.duid) <= 130:
        return None
    return message


def _options(data: bytes) -> list[tuple[int, bytes]] | None:
    found = []
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            return None
        kind, length = struct.unpack_from("!HH", data, at)
        if at + 4 + length > len(data):
            return None
        found.append((kind, data[at + 4 : at + 4 + length]))
        at += 4 + length
    return found


def mac_of(message: Message, source: IPv6Address) -> str:
    """The client's MAC address, if its identifier (RFC 8415, 11.2 and 11.4) or its link-local
    address (RFC 4291, appendix A) tells it; else ""."""
    duid = message.duid
    if len(duid) == 14 and duid[:4] == struct.pack("!HH", DUID_LLT, 1):
        return duid[8:].hex(":")
    if len(duid) == 10 and duid[:4] == struct.pack("!HH", DUID_LL, 1):
        return duid[4:].hex(":")
    octets = source.packed[8:]
    if octets[3:5] == b"\xff\xfe":
        return (bytes([octets[0] ^ 2]) + octets[1:3] + octets[5:]).hex(":")
    return ""


class Dhcp6:
    """Answers for one network, out of its book."""

    def __init__(self, service: Service, family: Family, book: AddressBook) -> None:
        self._service, self._family, self._book = service, family, book
        self._prefix = IPv6Network((int(family.gateway), family.length), strict=False)
        mac = bytes.fromhex(service.mac.replace(":", ""))
        self.duid = struct.pack("!HH", DUID_LL, 1) + mac

    def answer(self, message: Message, mac: str, now: float) -> Answer | None:
        """What to send, if anything; `mac`: the client's. Leases are the caller's to bind."""
        server = message.option(SERVER_ID)
        if server is not None and server != self.duid:
            return None
        if server is None and message.kind in (REQUEST, RENEW, RELEASE, DECLINE):
            return None  # RFC 8415, 16: they are for one server, and name it
        match message.kind:
            case value if value == SOLICIT:
                rapid = message.option(RAPID_COMMIT) is not None
                return self._give(message, mac, now, REPLY if rapid else ADVERTISE)
            case value if value in (REQUEST, RENEW, REBIND):
                return self._give(message, mac, now, REPLY)
            case value if value == CONFIRM:
                return self._confirm(message)
            case value if value in (RELEASE, DECLINE):
                return self._take_back(message, now)
            case _:
                return Answer(self._reply(message, REPLY, self._facts()))

    def _give(self, message: Message, mac: str, now: float, kind: int) -> Answer | None:
        leases: list[Lease] = []
        options: list[bytes] = []
        for association in _associations(message):
            lease = self._lease(message, association, mac, now)
            if lease and kind == ADVERTISE and message.kind == SOLICIT:
                options.append(self._association(association, lease))
            elif lease:
                leases.append(lease)
                options.append(self._association(association, lease))
            else:
                options.append(_refused(association, NO_ADDRESS, "no address is free"))
        options += [_no_prefix(value) for kind_, value in message.options if kind_ == IA_PD]
        if not options:
            return None
        if kind == REPLY and message.kind == SOLICIT:
            options.append(_option(RAPID_COMMIT, b""))
        return Answer(self._reply(message, kind, [*options, *self._facts()]), tuple(leases))

    def _lease(
        self, message: Message, association: _Association, mac: str, now: float
    ) -> Lease | None:
        client = _client(message, association)
        wanted = next((a for a in association.addresses if a in self._prefix), None)
        address = self._book.offer(client, mac, 6, now, wanted=wanted)
        if address is None:
            return None
        until = now + self._service.lease_s
        return Lease(address, client, until, mac, _name(message.option(CLIENT_NAME)))

    def _association(self, association: _Association, lease: Lease) -> bytes:
        times = self._service.lease_s
        parts = [_option(IA_ADDRESS, lease.address.packed + struct.pack("!II", times, times))]
        # What the client names and may not have ends now.
        parts += [
            _option(IA_ADDRESS, address.packed + struct.pack("!II", 0, 0))
            for address in association.addresses
            if address != lease.address
        ]
        head = association.id + struct.pack("!II", times // 2, times * 4 // 5)
        return _option(IA_NA, head + b"".join(parts))

    def _confirm(self, message: Message) -> Answer | None:
        named = [address for each in _associations(message) for address in each.addresses]
        if not named:
            return None  # RFC 8415, 18.3.3
        fits = all(address in self._prefix for address in named)
        return Answer(self._reply(message, REPLY, [_status(0 if fits else NOT_ON_LINK, "")]))

    def _take_back(self, message: Message, now: float) -> Answer:
        over: list[Lease] = []
        options = [_status(0, "")]
        for association in _associations(message):
            client = _client(message, association)
            held = [
                address
                for address in association.addresses
                if (lease := self._book.living(address, now)) and lease.client == client
            ]
            for address in held:
                if message.kind == DECLINE:
                    over.append(self._book.quarantine(address, now + DECLINED_S))
                elif lease := self._book.release(client, address, now):
                    over.append(lease)
            if not held:
                options.append(_refused(association, NO_BINDING, "not known here"))
        return Answer(self._reply(message, REPLY, options), tuple(over))

    def _facts(self) -> list[bytes]:
        found = []
        if self._family.resolvers:
            found.append(_option(DNS_SERVERS, b"".join(a.packed for a in self._family.resolvers)))
        if self._service.domain:
            found.append(_option(DOMAIN_LIST, packed_name(self._service.domain)))
        return found

    def _reply(self, message: Message, kind: int, options: Sequence[bytes]) -> bytes:
        head = bytes([kind]) + message.transaction
        if message.duid:
            head += _option(CLIENT_ID, message.duid)
        # Preference 255: the client need not wait for other servers, there are none.
        return (
            head + _option(SERVER_ID, self.duid) + _option(PREFERENCE, b"\xff") + b"".join(options)
        )


def _associations(message: Message) -> Iterator[_Association]:
    for kind, value in message.options:
        if kind == IA_NA and len(value) >= 12:
            inner = _options(value[12:]) or []
            yield _Association(
                value[:4],
                tuple(IPv6Address(v[:16]) for k, v in inner if k == IA_ADDRESS and len(v) >= 24),
            )


def _client(message: Message, association: _Association) -> str:
    return f"6:{message.duid.hex()}/{association.id.hex()}"


def _name(raw: bytes | None) -> str:
    """The first label of the client's name (RFC 4704: flags, then a name)."""
    if not raw or len(raw) < 3 or raw[1] > 63:
        return ""
    return raw[2 : 2 + raw[1]].decode("ascii", "ignore").lower()


def _refused(association: _Association, code: int, why: str) -> bytes:
    return _option(IA_NA, association.id + bytes(8) + _status(code, why))


def _no_prefix(value: bytes) -> bytes:
    return _option(IA_PD, value[:4] + bytes(8) + _status(NO_PREFIX, "no prefix is delegated"))


def _status(code: int, why: str) -> bytes:
    return _option(STATUS, struct.pack("!H", code) + why.encode())


def _option(number: int, value: bytes) -> bytes:
    return struct.pack("!HH", number, len(value)) + value
