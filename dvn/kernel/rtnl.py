"""Links and addresses to and from route netlink messages (rtnetlink(7), linux/if_link.h)."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dvn.kernel import netlink as nl
from dvn.kernel.netlink import Request, attribute, be16, be32, nested, text, u8, u16, u32
from dvn.kernel.state import (
    ADDRESS_PROTOCOL,
    LINK_GROUP,
    Bridge,
    Fou,
    GreKind,
    Gretap,
    Ifb,
    Link,
    Params,
    Vlan,
    Vrf,
    WireguardLink,
)
from dvn.kernel.steps import Change
from dvn.kernel.things import IndexOf

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22

IFF_UP = 1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_QDISC = 1, 3, 4, 5, 6
IFLA_MASTER, IFLA_LINKINFO, IFLA_IFALIAS = 10, 18, 20
IFLA_STATS64, IFLA_AF_SPEC, IFLA_GROUP, IFLA_EXT_MASK = 23, 26, 27, 29
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_BRPORT_FLUSH, IFLA_BRPORT_ISOLATED = 24, 33
IFLA_INET_CONF = 1
IFLA_INET6_CONF, IFLA_INET6_ADDR_GEN_MODE = 2, 8
RTEXT_FILTER_SKIP_STATS = 1 << 3

IFLA_BR_FORWARD_DELAY, IFLA_BR_STP_STATE, IFLA_BR_MCAST_SNOOPING = 1, 5, 23
IFLA_VLAN_ID, IFLA_VLAN_PROTOCOL = 1, 5
ETH_P_8021Q = 0x8100
IFLA_VRF_TABLE = 1

IFLA_GRE_LINK = 1
IFLA_GRE_IFLAGS, IFLA_GRE_OFLAGS, IFLA_GRE_IKEY, IFLA_GRE_OKEY = 2, 3, 4, 5
IFLA_GRE_LOCAL, IFLA_GRE_REMOTE, IFLA_GRE_TTL, IFLA_GRE_PMTUDISC = 6, 7, 8, 10
IFLA_GRE_FLAGS, IFLA_GRE_IGNORE_DF = 13, 19
IFLA_GRE_ENCAP_TYPE, IFLA_GRE_ENCAP_FLAGS = 14, 15
IFLA_GRE_ENCAP_SPORT, IFLA_GRE_ENCAP_DPORT = 16, 17
GRE_KEY = 0x2000
IP6_TNL_F_IGN_ENCAP_LIMIT = 1  # else the kernel adds 8 bytes of RFC 2473 to each packet
TUNNEL_ENCAP_NONE, TUNNEL_ENCAP_FOU = 0, 1
TUNNEL_ENCAP_FLAG_CSUM6 = 2  # UDP over IPv6 needs its checksum (RFC 8200, 8.1)

IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS, IFA_PROTO = 1, 2, 4, 8, 11
IFA_F_NODAD, IFA_F_PERMANENT = 0x02, 0x80
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253

_IFINFO = struct.Struct("=BxHiII")
_NO_LINK = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)  # known by its name
_UP = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, IFF_UP, IFF_UP)
_DOWN = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, IFF_UP)
_LINK = nl.Shapes(
    IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_LINKINFO, IFLA_IFALIAS,
    IFLA_STATS64, IFLA_AF_SPEC, IFLA_GROUP, IFLA_QDISC,
)  # fmt: skip
_INFO = nl.Shapes(IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_DATA)
_INFO_DATA = nl.Shapes()
_BRIDGE_PORT = nl.Shapes(IFLA_BRPORT_ISOLATED)
_FAMILIES = nl.Shapes(socket.AF_INET, socket.AF_INET6)
_INET = nl.Shapes(IFLA_INET_CONF)
_INET6 = nl.Shapes(IFLA_INET6_CONF, IFLA_INET6_ADDR_GEN_MODE)
_OURS = u32(IFLA_GROUP, LINK_GROUP)
_ADDR_GEN = {
    link_local: nested(
        IFLA_AF_SPEC, nested(socket.AF_INET6, u8(IFLA_INET6_ADDR_GEN_MODE, 0 if link_local else 1))
    )
    for link_local in (False, True)
}
_IFADDR = struct.Struct("=BBBBI")

# Numbers of the IPv4 values (linux/ip.h) and places of the IPv6 ones (linux/ipv6.h), by the names
# of their files below /proc/sys/net/ipv4/conf/LINK.
CONF4 = {
    "forwarding": 1, "mc_forwarding": 2, "proxy_arp": 3, "accept_redirects": 4,
    "secure_redirects": 5, "send_redirects": 6, "rp_filter": 8, "accept_source_route": 9,
    "log_martians": 11, "arp_filter": 13, "arp_announce": 18, "arp_ignore": 19, "arp_accept": 21,
    "arp_notify": 22, "accept_local": 23, "src_valid_mark": 24, "route_localnet": 26,
}  # fmt: skip
CONF6 = {
    "forwarding": 0, "accept_ra": 3, "accept_redirects": 4, "autoconf": 5, "disable_ipv6": 26,
    "accept_dad": 27,
}  # fmt: skip

# What is gone already need not be removed.
GONE = frozenset({errno.ENODEV, errno.EADDRNOTAVAIL})


@dataclass(slots=True)  # frozen ones take three times as long to make
class RawLink:
    """A link as the kernel tells it; indexes instead of names where the kernel has those."""

    index: int
    name: str
    up: bool
    mtu: int
    mac: str
    alias: str
    group: int
    master: int
    parent: int
    kind: str
    info: bytes  # attributes of its kind, packed
    port: bytes  # and of what it is to its master
    link_local: bool
    queue: str  # kind of the root queue (tc(8)); "" if it has none
    conf4: bytes  # its IPv4 and IPv6 sysctls, as CONF4 and CONF6 number them
    conf6: bytes
    # rx packets, tx packets, rx bytes, tx bytes
    stats: tuple[int, int, int, int] | None = field(default=None, compare=False)

    @property
    def data(self) -> nl.Attributes:
        return _INFO_DATA.read(self.info)

    @property
    def isolated(self) -> bool:
        """Whether it is a port of a bridge that is isolated from other such ports."""
        return bool(self.port) and bool(_u8(_BRIDGE_PORT.read(self.port).get(IFLA_BRPORT_ISOLATED)))


@dataclass(slots=True)
class RawAddress:
    index: int
    address: str  # with prefix length
    protocol: int
    scope: int


def dump_links(sock: nl.Socket, *, stats: bool = False) -> list[RawLink]:
    """All links of the namespace."""
    mask = 0 if stats else RTEXT_FILTER_SKIP_STATS
    body = _NO_LINK + u32(IFLA_EXT_MASK, mask)
    return [parse_link(payload) for payload in sock.dump(RTM_GETLINK, body, "list links")]


def get_links(sock: nl.Socket, names: Sequence[str]) -> dict[str, RawLink | None]:
    """Some links by their names; None for those that are not there."""
    mask = u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    bodies = [_NO_LINK + text(IFLA_IFNAME, name) + mask for name in names]
    answers = sock.ask_each(RTM_GETLINK, bodies, "read links")
    return {
        name: parse_link(answer) if answer else None
        for name, answer in zip(names, answers, strict=True)
    }


def parse_link(payload: bytes) -> RawLink:
    _family, _type, index, flags, _change = _IFINFO.unpack_from(payload)
    found = _LINK.read(payload[_IFINFO.size :])
    info = _INFO.read(found.get(IFLA_LINKINFO, b""))
    families = _FAMILIES.read(found.get(IFLA_AF_SPEC, b""))
    inet = _INET.read(families.get(socket.AF_INET, b""))
    inet6 = _INET6.read(families.get(socket.AF_INET6, b""))
    stats = found.get(IFLA_STATS64)
    kind = _string(info.get(IFLA_INFO_KIND))
    return RawLink(
        index,
        _string(found.get(IFLA_IFNAME)),
        bool(flags & IFF_UP),
        _u32(found.get(IFLA_MTU)),
        found.get(IFLA_ADDRESS, b"").hex(":"),
        _string(found.get(IFLA_IFALIAS)),
        _u32(found.get(IFLA_GROUP)),
        _u32(found.get(IFLA_MASTER)),
        _u32(found.get(IFLA_LINK)),
        kind,
        # A bridge tells of its timers, so that no two messages are the same; and nothing we need.
        b"" if kind == "bridge" else info.get(IFLA_INFO_DATA, b""),
        info.get(IFLA_INFO_SLAVE_DATA, b""),
        inet6.get(IFLA_INET6_ADDR_GEN_MODE, b"\1") != b"\1",
        _string(found.get(IFLA_QDISC)),
        inet.get(IFLA_INET_CONF, b""),
        inet6.get(IFLA_INET6_CONF, b""),
        struct.unpack_from("=4Q", stats) if stats else None,
    )


def conf_of(link: RawLink, version: str, key: str) -> int | None:
    """A sysctl of a link as its message has it (version `ipv4` or `ipv6`); None if it has not."""
    if version == "ipv4":
        data, place = link.conf4, CONF4.get(key, 0) - 1
    else:
        data, place = link.conf6, CONF6.get(key, -1)
    if place < 0 or 4 * place + 4 > len(data):
        return None
    return int.from_bytes(data[4 * place : 4 * place + 4], sys.byteorder, signed=True)


def params_of(link: RawLink, name_of: Callable[[int], str]) -> Params | None:
    """What makes the link what it is; None if it is no kind of ours."""
    if link.kind == "bridge":  # half of all there are, and what it tells is long
        return Bridge()
    data = link.data
    match link.kind:
        case "vlan":
            return Vlan(
                name_of(link.parent), int.from_bytes(data.get(IFLA_VLAN_ID, b""), sys.byteorder)
            )
        case "gretap" | "ip6gretap" | "gre" | "ip6gre":
            return _gre_of(link.kind, data, name_of)
        case "ifb":
            return Ifb()
        case "wireguard":
            return WireguardLink()
        case "vrf":
            return Vrf(_u32(data.get(IFLA_VRF_TABLE)))
        case _:
            return None


def _gre_of(kind: GreKind, data: nl.Attributes, name_of: Callable[[int], str]) -> Gretap:
    six = kind.startswith("ip6")
    keyed = int.from_bytes(data.get(IFLA_GRE_IFLAGS, b""), "big") & GRE_KEY
    through = _u32(data.get(IFLA_GRE_LINK))
    fou = int.from_bytes(data.get(IFLA_GRE_ENCAP_TYPE, b""), sys.byteorder) == TUNNEL_ENCAP_FOU
    return Gretap(
        local=_ip(data.get(IFLA_GRE_LOCAL), six),
        remote=_ip(data.get(IFLA_GRE_REMOTE), six),
        key=int.from_bytes(data.get(IFLA_GRE_IKEY, b""), "big") if keyed else 0,
        ttl=_u8(data.get(IFLA_GRE_TTL)),
        pmtudisc=not six and bool(_u8(data.get(IFLA_GRE_PMTUDISC))),
        ignore_df=six or bool(_u8(data.get(IFLA_GRE_IGNORE_DF))),
        fou=Fou(_port(data, IFLA_GRE_ENCAP_SPORT), _port(data, IFLA_GRE_ENCAP_DPORT))
        if fou
        else None,
        through=name_of(through) if through else None,
        kind=kind,
    )


def _port(data: nl.Attributes, kind: int) -> int:
    return int.from_bytes(data.get(kind, b""), "big")


def create(link: Link, index_of: IndexOf) -> list[Request]:
    """Messages that make a link, down and stamped; to be sent together."""
    # A bridge follows the smallest MTU of its ports until its own is *changed*: made with
    # another and then set, it is steady (net/bridge/br_device.c, BROPT_MTU_SET_BY_USER).
    bridge = isinstance(link.params, Bridge)
    mtu = _other(link.mtu) if bridge else link.mtu
    body = _NO_LINK + text(IFLA_IFNAME, link.name) + _OURS + u32(IFLA_MTU, mtu)
    if link.mac:
        body += attribute(IFLA_ADDRESS, bytes.fromhex(link.mac.replace(":", "")))
    if link.master:
        body += u32(IFLA_MASTER, index_of(link.master))
    if isinstance(link.params, Vlan):
        body += u32(IFLA_LINK, index_of(link.params.parent))
    body += _info(link.params, index_of)
    # These are not taken in the message that creates.
    stamp = text(IFLA_IFALIAS, link.alias) + _ADDR_GEN[link.link_local]
    if bridge:
        stamp += u32(IFLA_MTU, link.mtu)
    requests = [
        Request(
            RTM_NEWLINK,
            nl.NLM_F_CREATE | nl.NLM_F_EXCL,
            body,
            f"create {link.params.kind} {link.name}",
        ),
        _set_named(link.name, stamp, f"stamp {link.name}"),
    ]
    if link.isolated:  # before it is up: nothing ever goes round
        requests.append(_isolate(link))
    return requests


def _isolate(link: Link) -> Request:
    """Settings of a bridge's port; the link has to be one already (rtnetlink.c, rtnl_newlink)."""
    # Who was learned here may be reached by another way from now on, or by none but another.
    flags = (u8(IFLA_BRPORT_ISOLATED, int(link.isolated)), attribute(IFLA_BRPORT_FLUSH, b""))
    port = (text(IFLA_INFO_SLAVE_KIND, "bridge"), nested(IFLA_INFO_SLAVE_DATA, *flags))
    return _set_named(link.name, nested(IFLA_LINKINFO, *port), f"isolation of {link.name}")


def _other(mtu: int) -> int:
    """An MTU that is not this one; below 1280 there is no IPv6, and no setting of it."""
    return mtu - 1 if mtu > 1280 else mtu + 1


def change(link: Link, changes: tuple[Change, ...], index_of: IndexOf) -> list[Request]:
    """Messages that change a link in place."""
    requests = []
    for kind in changes:
        what = f"{kind} of {link.name}"
        match kind:
            case "alias":
                body = text(IFLA_IFALIAS, link.alias) + u32(IFLA_GROUP, LINK_GROUP)
            case "params":
                # Without an MTU the kernel works one out anew for a tunnel that is changed.
                body = _info(link.params, index_of) + u32(IFLA_MTU, link.mtu)
            case "mtu":
                body = u32(IFLA_MTU, link.mtu)
            case "master":
                body = u32(IFLA_MASTER, index_of(link.master) if link.master else 0)
            case "mac":
                body = attribute(IFLA_ADDRESS, bytes.fromhex((link.mac or "").replace(":", "")))
            case "link_local":
                body = _ADDR_GEN[link.link_local]
            case "isolated":
                requests.append(_isolate(link))
                continue
            case "up":
                requests.append(up(link.name, link.up))
                continue
        requests.append(_set_named(link.name, body, what))
    return requests


def up(name: str, raised: bool = True) -> Request:
    header = _UP if raised else _DOWN
    return Request(RTM_NEWLINK, 0, header + text(IFLA_IFNAME, name), f"set {name} up")


def enslave(name: str, master: int) -> Request:
    return _set_named(name, u32(IFLA_MASTER, master), f"master of {name}")


def set_conf4(name: str, values: Mapping[str, str]) -> Request:
    """IPv4 sysctls of a link (IFLA_INET_CONF). It writes the value and does nothing else, so it is
    for a link that has no traffic yet; `values` by the name of the file."""
    conf = b"".join(u32(CONF4[key], int(value)) for key, value in values.items())
    spec = nested(socket.AF_INET, attribute(IFLA_INET_CONF | nl.NLA_F_NESTED, conf))
    return _set_named(name, nested(IFLA_AF_SPEC, spec), f"sysctls of {name}")


def delete(name: str) -> Request:
    body = _NO_LINK + text(IFLA_IFNAME, name)
    return Request(RTM_DELLINK, 0, body, f"delete {name}", GONE)


def delete_together(names: Sequence[str], group: int) -> list[Request]:
    """Messages that delete links at once, by a `group` that no other link is in.

    The kernel waits for every CPU once for them all, instead of some 30 ms for each link.
    """
    moves = [
        Request(
            RTM_NEWLINK,
            0,
            _NO_LINK + text(IFLA_IFNAME, name) + u32(IFLA_GROUP, group),
            f"delete {name}",
            GONE,
        )
        for name in names
    ]
    what = f"delete {names[0]} and {len(names) - 1} more"
    return [*moves, Request(RTM_DELLINK, 0, _NO_LINK + u32(IFLA_GROUP, group), what, GONE)]


def _set_named(name: str, body: bytes, what: str) -> Request:
    return Request(RTM_NEWLINK, 0, _NO_LINK + text(IFLA_IFNAME, name) + body, what)


def _info(params: Params, index_of: IndexOf) -> bytes:
    kind = attribute(IFLA_INFO_KIND, params.kind.encode())
    match params:
        case WireguardLink() | Ifb():
            return nested(IFLA_LINKINFO, kind)
        case Bridge():
            data = [
                u32(IFLA_BR_FORWARD_DELAY, 0),
                u32(IFLA_BR_STP_STATE, 0),
                u8(IFLA_BR_MCAST_SNOOPING, 0),
            ]
        case Vlan(_parent, id_):
            data = [u16(IFLA_VLAN_ID, id_), be16(IFLA_VLAN_PROTOCOL, ETH_P_8021Q)]
        case Gretap():
            data = _gre(params, index_of(params.through) if params.through else 0)
        case Vrf(table):
            data = [u32(IFLA_VRF_TABLE, table)]
    return nested(IFLA_LINKINFO, kind, nested(IFLA_INFO_DATA, *data))


def _gre(params: Gretap, through: int) -> list[bytes]:
    """The kernel resets what is not named: a change carries all of it."""
    six = params.kind.startswith("ip6")
    data = [
        u32(IFLA_GRE_LINK, through),
        be16(IFLA_GRE_IFLAGS, GRE_KEY),
        be16(IFLA_GRE_OFLAGS, GRE_KEY),
        be32(IFLA_GRE_IKEY, params.key),
        be32(IFLA_GRE_OKEY, params.key),
        attribute(IFLA_GRE_LOCAL, ipaddress.ip_address(params.local).packed),
        attribute(IFLA_GRE_REMOTE, ipaddress.ip_address(params.remote).packed),
        u8(IFLA_GRE_TTL, params.ttl),
    ]
    if six:
        data.append(u32(IFLA_GRE_FLAGS, IP6_TNL_F_IGN_ENCAP_LIMIT))
    else:
        data += [
            u8(IFLA_GRE_PMTUDISC, int(params.pmtudisc)),
            u8(IFLA_GRE_IGNORE_DF, int(params.ignore_df)),
        ]
    if params.fou:
        return [
            *data,
            u16(IFLA_GRE_ENCAP_TYPE, TUNNEL_ENCAP_FOU),
            u16(IFLA_GRE_ENCAP_FLAGS, TUNNEL_ENCAP_FLAG_CSUM6 if six else 0),
            be16(IFLA_GRE_ENCAP_SPORT, params.fou.sport),
            be16(IFLA_GRE_ENCAP_DPORT, params.fou.dport),
        ]
    return [*data, u16(IFLA_GRE_ENCAP_TYPE, TUNNEL_ENCAP_NONE)]


def dump_addresses(sock: nl.Socket, index: int = 0) -> list[RawAddress]:
    """All IPv4 and IPv6 addresses of the namespace, or of the link of an index."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        body = _IFADDR.pack(family, 0, 0, 0, index)
        for payload in sock.dump(RTM_GETADDR, body, "list addresses"):
            found.append(parse_address(payload))
    return found


def parse_address(payload: bytes) -> RawAddress:
    _family, length, _flags, scope, index = _IFADDR.unpack_from(payload)
    attrs = nl.attributes(payload, _IFADDR.size)
    raw = attrs.get(IFA_LOCAL) or attrs[IFA_ADDRESS]
    return RawAddress(
        index, f"{ipaddress.ip_address(raw)}/{length}", _u8(attrs.get(IFA_PROTO)), scope
    )


def add_address(index: int, address: str) -> Request:
    """IPv6 without duplicate detection: the bridge may have no carrier yet, and the address would
    stay tentative and useless."""
    what = f"add address {address}"
    flags = nl.NLM_F_CREATE | nl.NLM_F_REPLACE
    return Request(RTM_NEWADDR, flags, _address_body(index, address, own=True), what)


def del_address(index: int, address: str) -> Request:
    body = _address_body(index, address, own=False)
    return Request(RTM_DELADDR, 0, body, f"delete address {address}", GONE)


def _address_body(index: int, address: str, *, own: bool) -> bytes:
    interface = ipaddress.ip_interface(address)
    four = interface.version == 4
    family = socket.AF_INET if four else socket.AF_INET6
    raw = interface.ip.packed
    length = interface.network.prefixlen
    body = _IFADDR.pack(family, length, 0, RT_SCOPE_UNIVERSE, index)
    body += attribute(IFA_LOCAL, raw) + attribute(IFA_ADDRESS, raw)
    if own:
        if four and length < 31:
            body += attribute(IFA_BROADCAST, interface.network.broadcast_address.packed)
        if not four:
            body += u32(IFA_FLAGS, IFA_F_NODAD | IFA_F_PERMANENT)
        body += u8(IFA_PROTO, ADDRESS_PROTOCOL)
    return body


def _string(raw: bytes | None) -> str:
    return raw.rstrip(b"\0").decode(errors="replace") if raw else ""


def _u8(raw: bytes | None) -> int:
    return raw[0] if raw else 0


def _u32(raw: bytes | None) -> int:
    return int.from_bytes(raw[:4], sys.byteorder) if raw else 0


def _ip(raw: bytes | None, six: bool) -> str:
    if not raw:
        return "::" if six else "0.0.0.0"
    return str(ipaddress.ip_address(raw))
