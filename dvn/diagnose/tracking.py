"""What conntrack makes of a packet it sees first (net/netfilter/nf_conntrack_proto_*.c)."""

from __future__ import annotations

from dvn.diagnose.frames import ICMP, ICMP6, TCP, UDP, Ip, Packet

_FIN, _SYN, _RST, _ACK, _URG = 1, 2, 4, 16, 32
# nf_conntrack_proto_tcp.c, tcp_valid_flags; PSH, ECE and CWR do not count.
_VALID_FLAGS = frozenset(
    {
        _SYN, _SYN | _URG, _SYN | _ACK, _RST, _RST | _ACK, _FIN | _ACK, _FIN | _ACK | _URG,
        _ACK, _ACK | _URG,
    }
)  # fmt: skip
_ICMP_REQUESTS, _ICMP6_REQUESTS = frozenset({8, 13, 15, 17}), frozenset({128, 139})
# Neighbour discovery and listener reports are not tracked (nf_conntrack_proto_icmpv6.c).
_ICMP6_UNTRACKED = frozenset({130, 131, 132, 133, 134, 135, 136, 143})


def first_state(packet: Packet) -> str:
    """`new`, `invalid` or `untracked`, for a flow nobody has seen."""
    ip, data = packet.ip, packet.transport
    if ip is None or ip.protocol is None or data is None:
        return "invalid"
    good = checksum_holds(ip, data)
    match ip.protocol:
        case 6:
            return "new" if good and _begins_tcp(data) else "invalid"
        case 17:
            whole = len(data) >= 8 and 8 <= int.from_bytes(data[4:6], "big") <= len(data)
            return "new" if good and whole else "invalid"
        case 1 if ip.version == 4:
            return "new" if good and data[:1] and data[0] in _ICMP_REQUESTS else "invalid"
        case 58 if ip.version == 6:
            if not good or not data:
                return "invalid"
            if data[0] in _ICMP6_UNTRACKED:
                return "untracked"
            return "new" if data[0] in _ICMP6_REQUESTS else "invalid"
        case 132 | 33:  # SCTP, DCCP: a header of 12 bytes
            return "new" if len(data) >= 12 else "invalid"
        case _:
            return "new"


def _begins_tcp(data: bytes) -> bool:
    """Whether a connection may begin with this segment; one in the middle of it may
    (nf_conntrack_tcp_loose), an answer or an end may not."""
    if len(data) < 20 or (data[12] >> 4) * 4 < 20 or (data[12] >> 4) * 4 > len(data):
        return False
    flags = data[13] & (_FIN | _SYN | _RST | _ACK | _URG)
    if flags not in _VALID_FLAGS or flags & _RST:
        return False
    if flags & _SYN:
        return not flags & _ACK
    return not flags & _FIN


def checksum_holds(ip: Ip, data: bytes) -> bool:
    """Of TCP, UDP, ICMP and ICMPv6 (RFC 1071; RFC 8200, 8.1)."""
    if ip.protocol not in (TCP, UDP, ICMP, ICMP6):
        return True
    if ip.protocol == UDP and ip.version == 4 and data[6:8] == b"\0\0":
        return True
    if ip.protocol == UDP:
        data = data[: int.from_bytes(data[4:6], "big") or len(data)]
    head = b"" if ip.protocol == ICMP else pseudo_header(ip, len(data))
    return internet_sum(head + data) == 0


def pseudo_header(ip: Ip, length: int) -> bytes:
    ends = ip.source.packed + ip.destination.packed
    protocol = ip.protocol or 0
    if ip.version == 4:
        return ends + bytes([0, protocol]) + length.to_bytes(2, "big")
    return ends + length.to_bytes(4, "big") + bytes([0, 0, 0, protocol])


def internet_sum(data: bytes) -> int:
    """The ones' complement of the ones' complement sum: 0 over data with its own checksum."""
    data += b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF
