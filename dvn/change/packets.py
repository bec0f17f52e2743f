"""Questions to the wire: echo requests, ARP and neighbour solicitations, many at a time.

RFC 792, RFC 4443 (echo), RFC 826 (ARP), RFC 4861 (neighbour discovery). The questions to neighbours
leave through a packet socket on the bridge, so that they pass the bridge's filters and its ports,
and depend neither on routes nor on what the host already believes.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeAlias

Clock: TypeAlias = Callable[[], float]

ETH_P_ARP, ETH_P_IPV6 = 0x0806, 0x86DD
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ECHO = struct.Struct("!BBHHH")
_IPV6 = struct.Struct("!IHBB16s16s")
_ICMPV6, _SOLICIT, _ADVERT = 58, 135, 136
_BROADCAST = b"\xff" * 6
_ROUNDS = 3


@dataclass(frozen=True)
class Question:
    """Who has `target`? Asked on a link of ours, by an address of ours on it."""

    link: str
    source: str
    target: str


def neighbours(
    questions: Iterable[Question], timeout: float, *, clock: Clock = time.monotonic
) -> frozenset[Question]:
    """Those that were answered within `timeout` seconds; each is asked up to three times.

    Raises OSError without CAP_NET_RAW. A link that is not there answers nothing.
    """
    waiting = {(index, q.target): q for q in questions if (index := _index(q.link))}
    found: set[Question] = set()
    if not waiting:
        return frozenset()
    with _packet(ETH_P_ARP) as arp, _packet(ETH_P_IPV6) as solicit:
        macs = {q.link: _mac(q.link) for q in waiting.values()}
        for until in _rounds(timeout, clock):
            for (index, _target), question in waiting.items():
                frame = _question(question, macs[question.link])
                four = frame[12:14] == ETH_P_ARP.to_bytes(2, "big")
                _send(arp if four else solicit, frame, (_name(index), 0))
            while waiting and (ready := _readable([arp, solicit], until, clock)):
                data, address = ready.recvfrom(2048)
                key = (socket.if_nametoindex(address[0]), _answer(data))
                if key in waiting:
                    found.add(waiting.pop(key))
            if not waiting:
                break
    return frozenset(found)


def echo(
    addresses: Iterable[str], timeout: float, *, clock: Clock = time.monotonic
) -> frozenset[str]:
    """Those that answered an echo request of this host within `timeout` seconds."""
    waiting = {ip_address(address.partition("%")[0]): address for address in addresses}
    found: set[str] = set()
    if not waiting:
        return frozenset()
    identity = os.urandom(2)
    with _icmp(4) as four, _icmp(6) as six:
        for number, until in enumerate(_rounds(timeout, clock)):
            for target, text in waiting.items():
                sock = four if target.version == 4 else six
                _send(sock, _request(target.version, identity, number), _socket_address(text))
            while waiting and (ready := _readable([four, six], until, clock)):
                data, sender = ready.recvfrom(2048)
                source = ip_address(str(sender[0]).partition("%")[0])
                if ready is four:
                    data = data[(data[0] & 15) * 4 :]
                reply = 0 if ready is four else 129
                if data[:1] == bytes([reply]) and data[4:6] == identity and source in waiting:
                    found.add(waiting.pop(source))
            if not waiting:
                break
    return frozenset(found)


def _rounds(timeout: float, clock: Clock) -> Iterator[float]:
    """The ends of the rounds: what is not answered is asked again."""
    start = clock()
    for number in range(1, _ROUNDS + 1):
        yield start + timeout * number / _ROUNDS


def _readable(sockets: Sequence[socket.socket], until: float, clock: Clock) -> socket.socket | None:
    ready = select.select(sockets, [], [], max(0.0, until - clock()))[0]
    return ready[0] if ready else None


def _send(sock: socket.socket, data: bytes, address: tuple[str, int] | tuple[object, ...]) -> None:
    try:
        sock.sendto(data, address)
    except OSError:
        return  # no route, link down, buffer full: it is asked again, or does not answer


def _packet(protocol: int) -> socket.socket:
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))


def _icmp(version: int) -> socket.socket:
    if version == 4:
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    return socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)


def _index(link: str) -> int:
    try:
        return socket.if_nametoindex(link)
    except OSError:
        return 0


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""  # gone meanwhile: sending there fails


def _mac(link: str) -> bytes:
    with _packet(0) as sock:
        try:
            sock.bind((link, 0))
            address = sock.getsockname()[4]
        except OSError:
            return bytes(6)
        return bytes(address)


def _socket_address(text: str) -> tuple[object, ...]:
    """With its zone, where a link-local address has one."""
    row = socket.getaddrinfo(text, 0, flags=socket.AI_NUMERICHOST)[0]
    return tuple(row[4])


def _question(question: Question, mac: bytes) -> bytes:
    source, target = ip_address(question.source), ip_address(question.target)
    if isinstance(target, IPv4Address):
        body = _ARP.pack(1, 0x0800, 6, 4, 1, mac, source.packed, bytes(6), target.packed)
        return _BROADCAST + mac + ETH_P_ARP.to_bytes(2, "big") + body
    return _solicitation(mac, source.packed, target)


def _solicitation(mac: bytes, source: bytes, target: IPv6Address) -> bytes:
    """To the solicited-node group of the target (RFC 4291, 2.7.1)."""
    group = bytes.fromhex("ff0200000000000000000001ff") + target.packed[-3:]
    body = bytes([_SOLICIT, 0, 0, 0]) + bytes(4) + target.packed + b"\x01\x01" + mac
    pseudo = source + group + struct.pack("!II", len(body), _ICMPV6)
    checked = body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]
    header = _IPV6.pack(6 << 28, len(body), _ICMPV6, 255, source, group)
    return b"\x33\x33" + group[-4:] + mac + ETH_P_IPV6.to_bytes(2, "big") + header + checked


def _answer(frame: bytes) -> str:
    """Whose answer a frame is; "" if it is none."""
    kind = int.from_bytes(frame[12:14], "big")
    if kind == ETH_P_ARP and len(frame) >= 42 and frame[20:22] == b"\0\2":
        return str(IPv4Address(frame[28:32]))
    if kind == ETH_P_IPV6 and len(frame) >= 78 and frame[20] == _ICMPV6 and frame[54] == _ADVERT:
        return str(IPv6Address(frame[62:78]))
    return ""


def _request(version: int, identity: bytes, sequence: int) -> bytes:
    number = int.from_bytes(identity, "big")
    if version == 6:  # its checksum is the kernel's
        return _ECHO.pack(128, 0, 0, number, sequence)
    return _ECHO.pack(8, 0, checksum(_ECHO.pack(8, 0, 0, number, sequence)), number, sequence)


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
