"""Other people's rules that would drop our packets: found and named, never removed.

An accept in our chains does not override another base chain's drop: every chain of a hook has to
let a packet pass (nft(8), and moby#39439). So who hooks in beside us is read, and a chain whose
policy or whose rule drops what may be ours is named. What a rule looks at decides as far as it can
be told: another device or another prefix than ours is none of our business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import ip_network
from typing import Any, TypeAlias

from dvn.kernel.nft import Nft
from dvn.values import Prefix

Item: TypeAlias = Mapping[str, Any]
Table: TypeAlias = tuple[str, str]

_FAMILIES = frozenset({"ip", "ip6", "inet", "bridge"})
_HOOKS = frozenset({"prerouting", "input", "forward", "output", "postrouting"})
_NAMES = {
    "firewalld": "firewalld",
    "ufw": "ufw",
    "libvirt": "libvirtd",
    "docker": "docker",
    "kube": "kube-proxy",
}


@dataclass(frozen=True)
class Ours:
    """What our packets look like: devices they pass, prefixes they come from or go to."""

    links: frozenset[str] = frozenset()
    prefixes: tuple[Prefix, ...] = ()


@dataclass(frozen=True)
class Dropper:
    """A foreign chain that would drop what is ours."""

    family: str
    table: str
    chain: str
    hook: str
    what: str

    def __str__(self) -> str:
        whose = whose_table(self.table, self.chain)
        by = f" (of {whose})" if whose else ""
        return (
            f"nft chain {self.family} {self.table} {self.chain}{by}, hook {self.hook}, would drop "
            f"packets of our networks: {self.what}; let them pass there"
        )


def whose_table(table: str, chain: str) -> str:
    """The program a table is known to belong to; "" if none is."""
    words = f"{table} {chain}".lower()
    return next((name for mark, name in _NAMES.items() if mark in words), "")


def base_chains(items: Iterable[Item]) -> Iterator[Item]:
    """Foreign chains that packets of ours meet. Pure."""
    for item in items:
        chain = item.get("chain")
        if (
            chain
            and chain.get("hook") in _HOOKS
            and chain["family"] in _FAMILIES
            and not chain["table"].startswith("dvn-")
            and chain.get("type") == "filter"
        ):
            yield chain


def droppers(items: Iterable[Item], ours: Ours) -> Iterator[Dropper]:
    """Of one table as nft lists it (JSON). Pure."""
    items = list(items)
    rules: dict[str, list[Item]] = {}
    for item in items:
        if "rule" in item:
            rules.setdefault(item["rule"]["chain"], []).append(item["rule"])
    for chain in base_chains(items):
        found = list(_walk(chain["name"], rules, ours, frozenset()))
        where = (chain["family"], chain["table"], chain["name"], chain["hook"])
        dropping = next((what for verdict, what in found if verdict == "drop"), None)
        if dropping:
            yield Dropper(*where, dropping)
        elif chain.get("policy") == "drop" and not any(v == "accept" for v, _ in found):
            yield Dropper(*where, "its policy is drop, and no rule of it accepts them")


def _walk(
    name: str, rules: Mapping[str, list[Item]], ours: Ours, seen: frozenset[str]
) -> Iterator[tuple[str, str]]:
    """(verdict, words) of the rules of a chain that may meet our packets. An accept counts only
    if it names a device or prefix of ours, or everything."""
    for rule in rules.get(name, ()):
        expressions = rule.get("expr", ())
        fit = _fits(expressions, ours)
        if fit is None:
            continue
        for expression in expressions:
            if "drop" in expression or "reject" in expression:
                handle = rule.get("handle", "?")
                comment = f" ({rule['comment']})" if rule.get("comment") else ""
                yield "drop", f"rule {handle} of chain {name}{comment}"
                if fit == "all":
                    return
            elif "accept" in expression and fit in ("all", "named"):
                yield "accept", ""
                if fit == "all":
                    return
            for jump in ("jump", "goto"):
                target = expression[jump]["target"] if jump in expression else ""
                if target and target not in seen:
                    yield from _walk(target, rules, ours, seen | {target})


def _fits(expressions: Iterable[Item], ours: Ours) -> str | None:
    """Whether a rule meets our packets: `all` of them, those `named` by device or prefix, `some`
    (by what we cannot tell), or None: not one."""
    fit = "all"
    for expression in expressions:
        match = expression.get("match")
        if match is None:
            continue
        told = _match(match, ours)
        if told is None:
            return None
        if told == "some" or fit == "all":
            fit = told if fit != "some" else "some"
    return fit


def _match(match: Item, ours: Ours) -> str | None:
    left, right, equal = match.get("left", {}), match.get("right"), match.get("op") in ("==", "in")
    if not isinstance(left, dict):
        return "some"
    meta = left.get("meta", {}).get("key", "")
    if meta in ("iifname", "oifname", "iif", "oif"):
        named = any(fnmatchcase(link, text) for text in _texts(right) for link in ours.links)
        # One device of many, negated, leaves the others.
        return ("named" if named else None) if equal else "some"
    payload = left.get("payload", {})
    if payload.get("field") in ("saddr", "daddr") and payload.get("protocol") in ("ip", "ip6"):
        meets = any(_overlaps(text, ours.prefixes) for text in _texts(right))
        return ("named" if meets else None) if equal else "some"
    if left.get("ct", {}).get("key") == "state" and equal and set(_texts(right)) == {"invalid"}:
        return None  # ours are not
    return "some"


def _texts(right: Any) -> list[str]:
    if isinstance(right, str):
        return [right]
    if isinstance(right, list):
        return [text for item in right for text in _texts(item)]
    if isinstance(right, dict):
        if "prefix" in right:
            return [f"{right['prefix']['addr']}/{right['prefix']['len']}"]
        if "set" in right:
            return _texts(right["set"])
        if "elem" in right:
            return _texts(right["elem"].get("val"))
        if "range" in right:
            return _texts(right["range"])
    return []


def _overlaps(text: str, prefixes: Iterable[Prefix]) -> bool:
    try:
        given = ip_network(text, strict=False)
    except ValueError:
        return text.startswith("@")  # a set: it may hold ours
    return any(p.version == given.version and p.overlaps(given) for p in prefixes)


class ForeignRules:
    """What is found on this kernel. A table is listed again only when its turn comes: `changed`
    names the tables that were touched, None all."""

    def __init__(self, nft: Nft) -> None:
        self._nft = nft
        self._found: dict[Table, tuple[Dropper, ...]] = {}

    def close(self) -> None:
        self._nft.close()

    def look(self, ours: Ours, changed: frozenset[Table] | None = None) -> tuple[Dropper, ...]:
        """Raises KernelError."""
        chains = list(base_chains(self._nft.items("list chains")))
        tables = dict.fromkeys((chain["family"], chain["table"]) for chain in chains)
        self._found = {table: f for table, f in self._found.items() if table in tables}
        for table in tables:
            if changed is None or table in changed or table not in self._found:
                listed = self._nft.items(f"list table {table[0]} {table[1]}")
                self._found[table] = tuple(droppers(listed, ours))
        return tuple(dropper for found in self._found.values() for dropper in found)
