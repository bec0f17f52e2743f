"""The same content for `ip -batch` and `nft -f`, as somebody who knows them well would write it:
one nft transaction, and as few `ip` commands as they take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.converge.standin import master_of, words_of
from dvn.kernel import nftdiff
from dvn.kernel.state import LINK_GROUP, Bridge, KernelState, Link
from dvn.kernel.things import Thing
from dvn.nat.things import MAIN_TABLE, ROUTE_PROTOCOL, Route, Rule

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
    master = f" master {master_of(link)}" if master_of(link) else ""
    # A bridge's MTU is its own only when it was changed (dvn/kernel/rtnl.py says why).
    bridge = isinstance(link.params, Bridge)
    mac = f" address {link.mac}" if link.mac else ""
    yield (
        f"link add {link.name}{mac} mtu {link.mtu - bridge} group {LINK_GROUP}{master} "
        f"{words_of(link.params)}"
    )
    changed = f" mtu {link.mtu}" if bridge else ""
    yield f"link set dev {link.name} alias {link.alias} addrgenmode none{changed}"
    # Not in the same message: it would go up before its address generation is off.
    yield f"link set dev {link.name} up"


def _thing(thing: Thing) -> str:
    match thing:
        case Route(table, prefix, on):
            name = "main" if table == MAIN_TABLE else str(table)
            return f"route add {prefix} dev {on} table {name} protocol {ROUTE_PROTOCOL}"
        case Rule(version, preference, mark, mask, action, target, inverted):
            marked = f" fwmark {mark:#x}/{mask:#x}" if mask else ""
            words = {"table": f"lookup {target}", "goto": f"goto {target}"}.get(action, action)
            # In a batch the family of a rule is that of its source.
            source = f"{' not' if inverted else ''} from {'0.0.0.0/0' if version == 4 else '::/0'}"
            return f"rule add{source}{marked} pref {preference} {words} protocol {ROUTE_PROTOCOL}"
        case _:
            raise TypeError(f"no ip command for {thing}")
