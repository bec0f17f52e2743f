"""gretap, or where this kernel has none, vxlan in its place.

Only for trying the benchmark on a kernel that lacks GRE (`--here`); the report says so.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable

from dvn import agent
from dvn.kernel import netlink as nl
from dvn.kernel import rtnl
from dvn.kernel.rtnl import RawLink
from dvn.kernel.state import Gretap, Params
from dvn.kernel.things import IndexOf

_ID, _GROUP, _LOCAL, _LEARNING, _PORT = 1, 2, 4, 7, 15  # IFLA_VXLAN_*
_state = {"on": False}


def stand_in() -> None:
    """From now on this process makes and reads vxlan for gretap."""
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
    _state["on"] = True


def is_stand_in() -> bool:
    return _state["on"]


def words_of(tunnel: Gretap) -> str:
    """The tunnel for `ip link add`."""
    if _state["on"]:
        return (
            f"type vxlan id {tunnel.key} remote {tunnel.remote} local {tunnel.local} "
            "nolearning dstport 4789"
        )
    return (
        f"type gretap local {tunnel.local} remote {tunnel.remote} key {tunnel.key} "
        f"ttl {tunnel.ttl} nopmtudisc ignore-df"
    )


if __name__ == "__main__":  # an agent with stand-ins
    stand_in()
    sys.exit(agent.main())
