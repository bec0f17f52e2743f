"""The same content for `ip -batch` and `nft -f`, as somebody who knows them well would write it:
one nft transaction, and as few `ip` commands as they take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.converge.standin import words_of
from dvn.kernel import nftdiff
from dvn.kernel.state import LINK_GROUP, Bridge, Gretap, KernelState, Link

_ORDER = {"vrf": 0, "bridge": 1, "gretap": 2}


@dataclass(frozen=True)
class Script:
    ip: str
    nft: str


def script_of(state: KernelState) -> Script:
    links = sorted(state.links, key=lambda link: (_ORDER[link.params.kind], link.name))
    lines = [line for link in links for line in _link(link)]
    lines += [f"address add {a.address} brd + dev {a.link}" for a in state.addresses]
    lines += [f"{thing.command()}" for thing in state.things if hasattr(thing, "command")]
    first, _last = nftdiff.changes((), state.tables)
    return Script("\n".join(lines) + "\n", first.text() + "\n" if first else "")


def _link(link: Link) -> Iterator[str]:
    group = f"group {LINK_GROUP}"
    settings = f"alias {link.alias} addrgenmode none"
    master = f" master {link.master}" if link.master else ""
    match link.params:
        case Bridge():
            # Its MTU is its own only when it was changed (dvn/kernel/rtnl.py says why).
            yield (
                f"link add {link.name} address {link.mac} mtu {link.mtu - 1} {group} type bridge "
                "forward_delay 0 stp_state 0 mcast_snooping 0"
            )
            yield f"link set dev {link.name} {settings} mtu {link.mtu}{master}"
        case Gretap() as tunnel:
            yield f"link add {link.name} mtu {link.mtu} {group}{master} {words_of(tunnel)}"
            yield f"link set dev {link.name} {settings}"
        case _:
            raise TypeError(f"no ip command for {link.params}")
    # Not in the same message: it would go up before its address generation is off.
    yield f"link set dev {link.name} up"
