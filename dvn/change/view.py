"""A plan as a good diff: what happens to which tenant's network, and how much of it. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network

from dvn import addresses
from dvn.kernel.nftcommands import AddElements, DelElements
from dvn.kernel.state import Link
from dvn.kernel.steps import (
    AddAddress,
    AddLink,
    DelAddress,
    DelLink,
    DelThing,
    Enslave,
    NftChange,
    Plan,
    PutThing,
    RaiseLink,
    SetLink,
    SetSysctl,
    Step,
)
from dvn.present import plan_lines
from dvn.spec import Site
from dvn.values import Prefix

HOST = ("", "")
_SIGNS = {"+": "added", "~": "changed", "-": "removed"}
_NEW_LINK = re.compile(r"\+ link (\S+):")
_RAISED = re.compile(r"~ link (\S+): up$")
_WORDS = re.compile(r"[\w.:~/-]+")


@dataclass(frozen=True)
class Group:
    """What happens to one network; `tenant` "" for what belongs to the host or to all."""

    tenant: str
    network: str
    lines: tuple[str, ...]

    @property
    def title(self) -> str:
        if not self.tenant:
            return "host and shared rules"
        return f"{self.tenant}/{self.network}" if self.network else self.tenant

    def counts(self) -> dict[str, int]:
        found = Counter(_SIGNS.get(line[:1], "changed") for line in self.lines)
        return {word: found[word] for word in _SIGNS.values()}


def folded(group: Group) -> tuple[str, ...]:
    """The lines for people: of what is new, the settings and set elements are only counted, and
    that it is set up goes without saying."""
    new = {found[1] for line in group.lines if (found := _NEW_LINK.match(line))}
    if not new:
        return group.lines
    shown: list[str] = []
    settings = elements = 0
    for line in group.lines:
        raised = _RAISED.match(line)
        if line.startswith("+ element "):
            elements += 1
        elif line.startswith("~ sysctl ") and new & set(line.split()[2].split("/")):
            settings += 1
        elif not (raised and raised[1].rstrip(":") in new):
            shown.append(line)
    if settings:
        shown.append(f"+ {settings} settings of its devices")
    if elements:
        shown.append(f"+ {elements} set elements: filters, NAT")
    return tuple(shown)


def groups(plan: Plan, site: Site, *, verbose: bool = False) -> tuple[Group, ...]:
    """The plan's lines by network, in the order of names, the host's first."""
    owners = _Owners(site, plan)
    found: dict[tuple[str, str], list[str]] = {}
    for step in plan.steps:
        for owner, line in _lines(step, owners, verbose):
            found.setdefault(owner, []).append(line)
    return tuple(Group(*owner, tuple(lines)) for owner, lines in sorted(found.items()))


def totals(all_: tuple[Group, ...]) -> dict[str, int]:
    found = dict.fromkeys(_SIGNS.values(), 0)
    for group in all_:
        for word, count in group.counts().items():
            found[word] += count
    return found


def summary(all_: tuple[Group, ...]) -> str:
    """`12 to add, 3 to change in place, 1 to remove, in 2 networks`."""
    count = totals(all_)
    networks = sum(bool(group.network) for group in all_)
    parts = [
        f"{count['added']} to add" if count["added"] else "",
        f"{count['changed']} to change in place" if count["changed"] else "",
        f"{count['removed']} to remove" if count["removed"] else "",
    ]
    where = f", in {networks} network{'s' if networks != 1 else ''}" if networks else ""
    return ", ".join(part for part in parts if part) + where


class _Owners:
    """Whose a device or a prefix is."""

    def __init__(self, site: Site, plan: Plan) -> None:
        self._devices: dict[str, tuple[str, str]] = {}
        self._prefixes: list[tuple[Prefix, tuple[str, str]]] = []
        self._exact: dict[str, tuple[str, str]] = {}
        for step in plan.steps:  # those that go, or are not of the file
            if isinstance(step, DelLink | SetLink | AddLink):
                self._stamped(step.link)
        for tenant, name, network in site.networks():
            owner = (tenant, name)
            self._devices[addresses.bridge_name(tenant, name)] = owner
            self._devices[addresses.vlan_name(tenant, name)] = owner
            self._devices |= {port.interface: owner for port in network.on(site.here)}
            self._prefixes += [(prefix, owner) for prefix in network.prefix]
            self._exact |= {str(prefix): owner for prefix in network.prefix}
        for tunnel in site.tunnels():
            device = addresses.tunnel_name(tunnel.tenant, tunnel.name)
            self._devices[device] = (tunnel.tenant, tunnel.network)

    def _stamped(self, link: Link) -> None:
        tenant, _, of = ":".join(link.alias.split(":", 3)[3:]).partition("/")
        self._devices.setdefault(link.name, (tenant, of) if tenant else HOST)

    def of_device(self, name: str | None) -> tuple[str, str]:
        return self._devices.get(name or "", HOST)

    def of_words(self, words: Iterator[str]) -> tuple[str, str]:
        """The first word that names somebody's device or prefix decides."""
        for word in words:
            owner = self._devices.get(word) or self._exact.get(word) or self._within(word)
            if owner:
                return owner
        return HOST

    def _within(self, word: str) -> tuple[str, str] | None:
        if "/" not in word and word.count(".") != 3 and word.count(":") < 2:
            return None
        try:
            wanted = ip_network(word, strict=False)
        except ValueError:
            return None
        for prefix, owner in self._prefixes:
            if prefix.version == wanted.version and wanted.subnet_of(prefix):  # type: ignore[arg-type]
                return owner
        return None


def _lines(step: Step, owners: _Owners, verbose: bool) -> Iterator[tuple[tuple[str, str], str]]:
    if not isinstance(step, NftChange):
        owner = _owner(step, owners)
        yield from ((owner, line) for line in str(step).splitlines())
        return
    shared = []
    for command in step.commands:
        if not isinstance(command, AddElements | DelElements):
            shared.append(command)
            continue
        for element in sorted(command.elements):
            one = dataclasses.replace(command, elements=frozenset({element}))
            yield owners.of_words(iter(element)), one.shown()
    rest = Plan((NftChange(tuple(shared)),)) if shared else Plan()
    yield from ((HOST, line) for line in plan_lines(rest, verbose=verbose))


def _owner(step: Step, owners: _Owners) -> tuple[str, str]:
    match step:
        case AddLink(link) | DelLink(link) | SetLink(link):
            return owners.of_device(link.name)
        case RaiseLink(name):
            return owners.of_device(name)
        case Enslave(_name, master, before):
            return owners.of_device(master or before)
        case AddAddress(link, _address) | DelAddress(link, _address):
            return owners.of_device(link)
        case SetSysctl(key):
            return owners.of_words(iter(key.split("/")))
        case PutThing(thing) | DelThing(thing):
            own = owners.of_device(thing.link)
            return own if own != HOST else owners.of_words(iter(_WORDS.findall(str(thing))))
        case _:
            return HOST


def as_json(all_: tuple[Group, ...]) -> dict[str, object]:
    """For programs: `counts` of all, and each group with its own."""
    told: list[Mapping[str, object]] = [
        {
            "tenant": group.tenant or None,
            "network": group.network or None,
            "lines": list(group.lines),
            "counts": group.counts(),
        }
        for group in all_
    ]
    return {"counts": totals(all_), "groups": told}
