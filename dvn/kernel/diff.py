"""(observed, desired) -> Plan. Pure.

Order: filters before what they filter, creation before reference, removal after; in-place changes
where the kernel can, so that flows survive. Elements are taken out of filter sets only after the
links they name are gone: a rule that disappears early would open a network, not close it.
"""

from __future__ import annotations

from collections.abc import Iterator

from dvn.kernel import nftdiff
from dvn.kernel.state import (
    SWITCH6,
    Bridge,
    Gretap,
    Ifb,
    KernelState,
    Link,
    Vlan,
    Vrf,
    WireguardLink,
)
from dvn.kernel.steps import (
    AddAddress,
    AddLink,
    Change,
    DelAddress,
    DelLink,
    DelThing,
    Enslave,
    Plan,
    PutThing,
    RaiseLink,
    SetLink,
    SetSysctl,
    Step,
)
from dvn.kernel.things import Thing
from dvn.nat.debts import Debts, without_debts

# All others, the tunnels, after them.
_KIND_ORDER = {"vrf": 0, "bridge": 1, "ifb": 1, "vlan": 2, "wireguard": 2}
_TUNNELS = 3  # the rest: GRE may run through WireGuard


def diff(observed: KernelState, desired: KernelState) -> Plan:
    """The steps from `observed` to `desired`; none if they mean the same."""
    early = _in_the_way(observed, desired)
    kept = {name: link for name, link in observed.by_name.items() if name not in early}
    closing, opening = nftdiff.changes(without_debts(observed.tables), desired.tables)
    debts = Debts(observed, desired)
    closing = debts.noted(closing)
    opening = debts.noted(opening)
    wanted = sorted(desired.links, key=_creation_order)
    steps: list[Step] = [DelLink(link) for link in sorted(early.values(), key=_removal_order)]
    if closing:
        steps.append(closing)
    steps += [AddLink(link) for link in wanted if link.name not in kept]
    settings = list(_sysctls(observed, desired, kept))
    steps += [step for step in settings if not _switches_ipv6(step)]
    # A VLAN goes up only on an uplink that is; a port comes up when it is in its bridge.
    down = sorted(desired.raised - observed.raised)
    names = {port.name for port in desired.ports}
    steps += [RaiseLink(name) for name in down if name not in names]
    steps += _in_place(kept, wanted)
    # By themselves, since each waits for RTNL; before there are addresses, or a link goes up.
    steps += [step for step in settings if _switches_ipv6(step)]
    steps += _addresses_added(observed, desired, kept)
    ports = {port.name: port.master for port in observed.ports if port.master in kept}
    steps += [
        Enslave(port.name, port.master, ports.get(port.name))
        for port in desired.ports
        if ports.get(port.name) != port.master
    ]
    putting = list(_things_put(observed, desired, kept))
    steps += [step for step in putting if step.thing.rank < 0]
    steps += [RaiseLink(link.name) for link in wanted if link.up and link.name not in kept]
    steps += [RaiseLink(name) for name in down if name in names]
    steps += [step for step in putting if step.thing.rank >= 0]
    steps += _removals(observed, desired, kept, ports)
    if opening:
        steps.append(opening)
    # The rules first: what is cut must not be able to come back by the old ones.
    return Plan((*steps, *debts.paid()))


def _creation_order(link: Link) -> tuple[int, str]:
    return (_KIND_ORDER.get(link.params.kind, _TUNNELS), link.name)


def _removal_order(link: Link) -> tuple[int, str]:
    return (-_KIND_ORDER.get(link.params.kind, _TUNNELS), link.name)


def _in_the_way(observed: KernelState, desired: KernelState) -> dict[str, Link]:
    """Links that must go before anything is made: of another kind or parent than wanted, or in a
    slot (VLAN id of an uplink, ends and key of a tunnel) that another link is to have."""
    slots = {link.params.slot(): link.name for link in desired.links if link.params.slot()}
    early = {}
    for link in observed.links:
        wanted = desired.by_name.get(link.name)
        if (wanted and not _changeable(link, wanted)) or slots.get(
            link.params.slot(), link.name
        ) != link.name:
            early[link.name] = link
    return early


def _changeable(link: Link, wanted: Link) -> bool:
    match link.params, wanted.params:
        case (Bridge(), Bridge()) | (WireguardLink(), WireguardLink()) | (Ifb(), Ifb()):
            return True
        case Gretap() as have, Gretap() as want:
            return have.kind == want.kind
        case (Vlan(), Vlan()) | (Vrf(), Vrf()):
            return link.params == wanted.params
        case _:
            return False


def _in_place(kept: dict[str, Link], wanted: list[Link]) -> Iterator[SetLink]:
    for link in wanted:
        have = kept.get(link.name)
        if have is None:
            continue
        changes = tuple(_changes(have, link))
        if changes:
            yield SetLink(link, changes, have)


def _changes(have: Link, want: Link) -> Iterator[Change]:
    if have.alias != want.alias:
        yield "alias"
    if have.params != want.params:
        yield "params"
    if have.mtu != want.mtu:
        yield "mtu"
    if have.master != want.master:
        yield "master"
    # The flag is the port's, and goes with the port.
    if have.isolated != want.isolated or (want.isolated and have.master != want.master):
        yield "isolated"
    if want.mac is not None and have.mac != want.mac:
        yield "mac"
    if have.link_local != want.link_local:
        yield "link_local"
    if have.up != want.up:
        yield "up"


def _sysctls(
    observed: KernelState, desired: KernelState, kept: dict[str, Link]
) -> Iterator[SetSysctl]:
    # Those of a link that is remade went with it.
    remade = observed.by_name.keys() - kept.keys()
    values = observed.sysctl_values
    for sysctl in desired.sysctls:
        gone = bool(remade) and not remade.isdisjoint(sysctl.key.split("/"))
        before = None if gone else values.get(sysctl.key)
        if before != sysctl.value:
            yield SetSysctl(sysctl.key, sysctl.value, before)


def _switches_ipv6(step: SetSysctl) -> bool:
    return step.key.endswith(f"/{SWITCH6}")


def _addresses_added(
    observed: KernelState, desired: KernelState, kept: dict[str, Link]
) -> Iterator[AddAddress]:
    # The kernel drops a link's addresses with the link: those of one remade count as missing. A
    # bridge that gets another router goes down and up, and loses those of IPv6.
    remade = observed.by_name.keys() - kept.keys()
    moved = {
        name
        for name, link in kept.items()
        if isinstance(link.params, Bridge)
        and link.master != getattr(desired.by_name.get(name), "master", None)
    }
    have = {
        address
        for address in observed.addresses
        if address.link not in remade and not (address.link in moved and ":" in address.address)
    }
    for address in desired.addresses:
        if address not in have:
            yield AddAddress(address.link, address.address)


def _things_put(
    observed: KernelState, desired: KernelState, kept: dict[str, Link]
) -> Iterator[PutThing]:
    # Those of a link that is remade went with it.
    remade = observed.by_name.keys() - kept.keys()
    have = {_key(thing): thing for thing in observed.things if thing.link not in remade}
    for thing in sorted(desired.things, key=lambda thing: thing.rank):
        before = have.get(_key(thing))
        if before != thing:
            yield PutThing(thing, before)


def _things_gone(observed: KernelState, desired: KernelState, gone: set[str]) -> Iterator[DelThing]:
    wanted = {_key(thing) for thing in desired.things}
    for thing in sorted(observed.things, key=lambda thing: -thing.rank):
        if _key(thing) not in wanted and thing.link not in gone:
            yield DelThing(thing)


def _key(thing: Thing) -> tuple[object, ...]:
    return (thing.kind, *thing.key)


def _removals(
    observed: KernelState,
    desired: KernelState,
    kept: dict[str, Link],
    ports: dict[str, str],
) -> Iterator[Step]:
    gone = [link for name, link in kept.items() if name not in desired.by_name]
    gone_names = {link.name for link in gone}
    remade = observed.by_name.keys() - kept.keys()
    yield from _things_gone(observed, desired, gone_names | remade)
    wanted_addresses = set(desired.addresses)
    for address in observed.addresses:
        if address not in wanted_addresses and address.link not in gone_names | remade:
            yield DelAddress(address.link, address.address)
    wanted_ports = {port.name for port in desired.ports}
    for name, master in sorted(ports.items()):
        if name not in wanted_ports and master not in gone_names:
            yield Enslave(name, None, master)
    for link in sorted(gone, key=_removal_order):
        yield DelLink(link)
