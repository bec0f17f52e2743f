"""The same content for `ip -batch` and `nft -f`, as somebody who knows them well would write it:
one nft transaction, and as few `ip` commands as they take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.converge.standin import words_of
from dvn.kernel import nftdiff
from dvn.kernel.state import LINK_GROUP, Bridge, Gretap, KernelState, Link, Vrf
from dvn.kernel.things import Thing
from dvn.nat.things import ROUTE_PROTOCOL, Route, Rule

_ORDER = {"vrf": 0, "bridge": 1, "gretap": 2}


@dataclass(frozen=True)
class Script:
    ip: str
    nft: str


def script_of(state: KernelState) -> Script:
    links = sorted(state.links, key=lambda link: (_ORDER[link.params.kind], link.name))
    lines = [line for link in links for line in _link(link)]
    lines += [f"address add {a.address} brd + dev {a.link}" for a in state.addresses]
    lines += [_thing(thing) for thing in sorted(state.things, key=lambda thing: thing.rank)]
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
        case Vrf(table):
            yield f"link add {link.name} mtu {link.mtu} {group} type vrf table {table}"
            yield f"link set dev {link.name} {settings}"
        case _:
            raise TypeError(f"no ip command for {link.params}")
    # Not in the same message: it would go up before its address generation is off.
    yield f"link set dev {link.name} up"


def _thing(thing: Thing) -> str:
    match thing:
        case Route():
            return (
                f"route add {thing.prefix} dev {thing.on} table {thing.table} "
                f"proto {ROUTE_PROTOCOL}"
            )
        case Rule():
            # In a batch the family of a rule is that of its source.
            every = "0.0.0.0/0" if thing.version == 4 else "::/0"
            no = "not " if thing.inverted else ""
            mark = f" fwmark {thing.mark:#x}/{thing.mask:#x}" if thing.mask else ""
            what = {"table": f"lookup {thing.target}", "goto": f"goto {thing.target}"}
            return (
                f"rule add {no}from {every} pref {thing.preference}{mark} "
                f"{what.get(thing.action, thing.action)} "
                f"protocol {ROUTE_PROTOCOL}"
            )
        case _:
            raise TypeError(f"no ip command for {thing}")
