"""A frame's bytes and where the kernel sees its headers.

What nft matches are bytes at an offset from the link, network or transport header. Where these
begin is decided before any rule: the outermost VLAN tag is taken off (net/core/dev.c,
skb_vlan_untag), the bridge family looks for the transport header behind plain IPv4 or IPv6 only
(net/netfilter/nft_chain_filter.c, nft_do_chain_bridge), and a fragment but the first has none.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address

ETH_P_802_3, ETH_P_802_2 = 0x0001, 0x0004  # linux/if_ether.h: frames with a length, not a type
ETH_P_IP, ETH_P_ARP, ETH_P_IP6 = 0x0800, 0x0806, 0x86DD
ETH_P_8021Q, ETH_P_8021AD = 0x8100, 0x88A8
ETH_P_TEB = 0x6558  # Ethernet in GRE
TCP, UDP, ICMP, ICMP6, GRE = 6, 17, 1, 58, 47
HOP_BY_HOP, ROUTING, FRAGMENT, AUTH, NO_NEXT, DESTINATION = 0, 43, 44, 51, 59, 60
_EXTENSIONS = frozenset({HOP_BY_HOP, ROUTING, FRAGMENT, AUTH, NO_NEXT, DESTINATION})
_ETHERNET = 14


@dataclass(frozen=True)
class Tag:
    """A VLAN tag that is beside the frame. `protocol`: 0x8100 or 0x88a8."""

    protocol: int
    control: int

    @property
    def id(self) -> int:
        return self.control & 0xFFF


@dataclass(frozen=True)
class Packet:
    """An Ethernet frame as it enters, and what connection tracking thinks of it.

    `state`: new, established, related, invalid or untracked; "" for what conntrack would say of the
    first packet it sees of the flow.
    """

    frame: bytes
    state: str = ""
    mark: int = 0

    @cached_property
    def tag(self) -> Tag | None:
        """The outermost tag, which the kernel keeps beside the frame."""
        protocol = int.from_bytes(self.frame[12:14], "big")
        if protocol not in (ETH_P_8021Q, ETH_P_8021AD) or len(self.frame) < _ETHERNET + 4:
            return None
        return Tag(protocol, int.from_bytes(self.frame[14:16], "big"))

    @cached_property
    def data(self) -> bytes:
        """The frame without its outermost tag."""
        return self.frame[:12] + self.frame[16:] if self.tag else self.frame

    @property
    def destination(self) -> str:
        return mac_text(self.frame[0:6])

    @property
    def source(self) -> str:
        return mac_text(self.frame[6:12])

    @cached_property
    def ethertype(self) -> int:
        """Of the frame without its outermost tag, as it stands there (maybe a length)."""
        return int.from_bytes(self.data[12:14], "big")

    @cached_property
    def protocol(self) -> int:
        """What the kernel takes the frame for (skb->protocol; eth_type_trans)."""
        if self.ethertype >= 0x600:
            return self.ethertype
        return ETH_P_802_3 if self.data[14:16] == b"\xff\xff" else ETH_P_802_2

    @property
    def network(self) -> bytes:
        """From the network header on."""
        return self.data[_ETHERNET:]

    @cached_property
    def ip(self) -> Ip | None:
        """The IP header, where it is one a host would take (ip_rcv_core, ip6_rcv_core)."""
        if self.protocol == ETH_P_IP:
            return _ipv4(self.network)
        if self.protocol == ETH_P_IP6:
            return _ipv6(self.network)
        return None

    @property
    def transport(self) -> bytes | None:
        """From the transport header on; None where there is none to look at."""
        ip = self.ip
        if ip is None or ip.offset or ip.transport is None:
            return None
        return self.network[ip.transport : ip.length]

    # -- the same packet, changed

    def with_tag(self, id_: int) -> Packet:
        tag = struct.pack("!HH", ETH_P_8021Q, id_)
        return replace(self, frame=self.frame[:12] + tag + self.frame[12:])

    def without_tag(self) -> Packet:
        return replace(self, frame=self.data)

    def with_link(self, destination: str, source: str) -> Packet:
        return replace(self, frame=mac_bytes(destination) + mac_bytes(source) + self.frame[12:])

    def with_network(self, offset: int, value: bytes) -> Packet:
        """`value` written at `offset` from the network header. Checksums stay as they were."""
        return self._written(len(self.frame) - len(self.network) + offset, value)

    def with_transport(self, offset: int, value: bytes) -> Packet:
        ip = self.ip
        if ip is None or ip.transport is None:
            return self
        return self.with_network(ip.transport + offset, value)

    def with_frame(self, offset: int, value: bytes) -> Packet:
        return self._written(offset, value)

    def _written(self, at: int, value: bytes) -> Packet:
        return replace(self, frame=self.frame[:at] + value + self.frame[at + len(value) :])


@dataclass(frozen=True)
class Ip:
    """What the headers of an IP packet say. `transport`: where the transport header begins, from
    the network header; None if the chain of IPv6 extension headers is cut off. `offset` of a
    fragment in octets."""

    version: int
    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    protocol: int | None
    transport: int | None
    length: int
    hops: int
    offset: int = 0
    more: bool = False
    dont_fragment: bool = False
    extensions: tuple[tuple[int, int], ...] = ()  # (header, where it begins)

    @property
    def is_fragment(self) -> bool:
        return bool(self.offset or self.more)


def _ipv4(data: bytes) -> Ip | None:
    if len(data) < 20 or data[0] >> 4 != 4:
        return None
    header, length = (data[0] & 15) * 4, int.from_bytes(data[2:4], "big")
    if header < 20 or length < header or len(data) < length:
        return None
    word = int.from_bytes(data[6:8], "big")
    return Ip(
        4,
        IPv4Address(data[12:16]),
        IPv4Address(data[16:20]),
        data[9],
        header,
        length,
        data[8],
        (word & 0x1FFF) * 8,
        bool(word & 0x2000),
        bool(word & 0x4000),
    )


def _ipv6(data: bytes) -> Ip | None:
    if len(data) < 40 or data[0] >> 4 != 6:
        return None
    payload = int.from_bytes(data[4:6], "big")
    length = 40 + payload
    if len(data) < length:
        return None
    found = Ip(6, IPv6Address(data[8:24]), IPv6Address(data[24:40]), data[6], 40, length, data[7])
    return _behind_extensions(found, data)


def _behind_extensions(ip: Ip, data: bytes) -> Ip:
    """As net/ipv6/exthdrs_core.c, ipv6_find_hdr with target -1."""
    header, at, offset, more = data[6], 40, 0, False
    seen: list[tuple[int, int]] = []
    while header in _EXTENSIONS and header != NO_NEXT:
        if at + 8 > ip.length:
            return replace(ip, protocol=None, transport=None, extensions=tuple(seen))
        seen.append((header, at))
        following = data[at]
        if header == FRAGMENT:
            word = int.from_bytes(data[at + 2 : at + 4], "big")
            offset, more = word & 0xFFF8, bool(word & 1)
            if offset:  # what follows is in the first fragment
                inner = following if following not in _EXTENSIONS or following == NO_NEXT else None
                return replace(
                    ip, protocol=inner, transport=at + 8, offset=offset, more=more,
                    extensions=tuple(seen),
                )  # fmt: skip
            size = 8
        elif header == AUTH:
            size = (data[at + 1] + 2) * 4
        else:
            size = (data[at + 1] + 1) * 8
        header, at = following, at + size
    return replace(
        ip, protocol=header, transport=at, offset=offset, more=more, extensions=tuple(seen)
    )


def mac_text(raw: bytes) -> str:
    return raw.hex(":")


def mac_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def is_group(mac: str) -> bool:
    """Broadcast or multicast."""
    return bool(int(mac[:2], 16) & 1)
