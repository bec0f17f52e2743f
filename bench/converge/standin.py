"""What stands in for links that this kernel lacks: vxlan for gretap, ifb for a router (VRF).

For trying the benchmark where there is no full kernel; the report says so. They cost the kernel
about as much to make. An ifb routes nothing, so a bridge is not put into it: the master it should
have is read as if it had.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable, Collection
from dataclasses import replace

from dvn import agent
from dvn.kernel import netlink as nl
from dvn.kernel import ours, rtnl
from dvn.kernel.netlink import Request
from dvn.kernel.rtnl import RawLink
from dvn.kernel.state import Bridge, Gretap, Link, Params, Vrf
from dvn.kernel.steps import Change
from dvn.kernel.things import IndexOf

_ID, _GROUP, _LOCAL, _LEARNING, _PORT = 1, 2, 4, 7, 15  # IFLA_VXLAN_*
_ROUTER_MAC = "02:76"  # and then its table: an ifb has no room for it elsewhere
_on: set[str] = set()


def stand_in(missing: Collection[str]) -> None:
    """From now on this process makes and reads them for what of `gretap`, `vrf` is missing."""
    if "gretap" in missing:
        _gretap()
    if "vrf" in missing:
        _router()


def stands_in() -> dict[str, str]:
    """What stands in for what."""
    names = {"gretap": "vxlan", "vrf": "ifb (a bridge is not put into it)"}
    return {name: names[name] for name in sorted(_on)}


def words_of(params: Params) -> str:
    """A device for `ip link add`."""
    match params:
        case Gretap() as tunnel if "gretap" in _on:
            return (
                f"type vxlan id {tunnel.key} remote {tunnel.remote} local {tunnel.local} "
                "nolearning dstport 4789"
            )
        case Gretap() as tunnel:
            return (
                f"type gretap local {tunnel.local} remote {tunnel.remote} key {tunnel.key} "
                f"ttl {tunnel.ttl} nopmtudisc ignore-df"
            )
        case Vrf(table) if "vrf" in _on:
            return f"address {_mac_of(table)} type ifb"
        case Vrf(table):
            return f"type vrf table {table}"
        case Bridge():
            return "type bridge forward_delay 0 stp_state 0 mcast_snooping 0"
        case _:
            raise TypeError(f"no ip command for {params}")


def master_of(link: Link) -> str | None:
    """What `ip` is to put it into."""
    return None if isinstance(link.params, Bridge) and "vrf" in _on else link.master


def _gretap() -> None:
    own_info, own_params = rtnl._info, rtnl.params_of

    def info(params: Params, index_of: IndexOf) -> bytes:
        if not isinstance(params, Gretap):
            return own_info(params, index_of)
        data = (
            nl.u32(_ID, params.key),
            nl.attribute(_GROUP, socket.inet_aton(params.remote)),
            nl.attribute(_LOCAL, socket.inet_aton(params.local)),
            nl.u8(_LEARNING, 0),
            nl.be16(_PORT, 4789),
        )
        kind = nl.attribute(rtnl.IFLA_INFO_KIND, b"vxlan")
        return nl.nested(rtnl.IFLA_LINKINFO, kind, nl.nested(rtnl.IFLA_INFO_DATA, *data))

    def params_of(link: RawLink, name_of: Callable[[int], str]) -> Params | None:
        if link.kind != "vxlan":
            return own_params(link, name_of)
        data = link.data
        (number,) = struct.unpack("=I", data[_ID])
        return Gretap(socket.inet_ntoa(data[_LOCAL]), socket.inet_ntoa(data[_GROUP]), number)

    rtnl._info, rtnl.params_of = info, params_of
    _on.add("gretap")


def _mac_of(table: int) -> str:
    return f"{_ROUTER_MAC}:{table.to_bytes(4, 'big').hex(':')}"


def _router() -> None:
    own_info, own_create, own_change = rtnl._info, rtnl.create, rtnl.change
    own_parse, own_link = rtnl.parse_link, ours.link_of

    def info(params: Params, index_of: IndexOf) -> bytes:
        if not isinstance(params, Vrf):
            return own_info(params, index_of)
        mac = bytes.fromhex(_mac_of(params.table).replace(":", ""))
        kind = nl.nested(rtnl.IFLA_LINKINFO, nl.attribute(rtnl.IFLA_INFO_KIND, b"ifb"))
        return nl.attribute(rtnl.IFLA_ADDRESS, mac) + kind

    def create(link: Link, index_of: IndexOf) -> list[Request]:
        return own_create(replace(link, master=master_of(link)), index_of)

    def change(link: Link, changes: tuple[Change, ...], index_of: IndexOf) -> list[Request]:
        return own_change(replace(link, master=master_of(link)), changes, index_of)

    def parse_link(payload: bytes) -> RawLink:
        link = own_parse(payload)
        if link.kind == "ifb" and link.mac.startswith(_ROUTER_MAC):
            table = int(link.mac.replace(":", "")[4:], 16)
            link.kind, link.info = "vrf", nl.u32(rtnl.IFLA_VRF_TABLE, table)
        return link

    def as_wanted(raw: RawLink, names: dict[int, str]) -> Link:
        link = own_link(raw, names)
        if isinstance(link.params, Bridge):
            return replace(link, master=f"g{link.name[1:]}")  # as addresses.router_name has it
        return link

    rtnl._info, rtnl.create, rtnl.change = info, create, change
    rtnl.parse_link = parse_link
    ours.link_of = as_wanted  # type: ignore[assignment]  # the names of its arguments
    _on.add("vrf")


if __name__ == "__main__":  # an agent with stand-ins; the last argument names what is missing
    stand_in(sys.argv[-1].split(","))
    sys.exit(agent.main(sys.argv[1:-1]))
