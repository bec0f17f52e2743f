"""How an attack is written down, before it has a number and its packets have bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Any, TypeAlias

from lab.attacks.case import Case, Phase, Role, Shot, marker
from lab.attacks.ground import NETS, NICS, Net

Packet: TypeAlias = Any  # scapy's have no types
FIRST_PORT = 20000


@dataclass(frozen=True)
class Tag:
    """What makes the packets of one case its own: the marker, and a port nobody else uses."""

    data: bytes
    port: int


Make: TypeAlias = Callable[[Tag], Packet]


def bound(make: Callable[..., Packet], **values: Any) -> Callable[..., Packet]:
    """`make` with these values as they are now: a loop goes on, and a lambda looks late."""
    return partial(make, **values)


@dataclass(frozen=True)
class Send:
    """One frame put on the wire at an interface (a name of ground.NICS)."""

    at: str
    make: Make
    phase: Phase = Phase.ATTACK
    role: Role = Role.ATTACK
    times: int = 1
    sweep: int = 0


@dataclass(frozen=True)
class Draft:
    """One case of an attack; see Case for the fields of the same name."""

    variant: str
    family: int
    attacker: str
    sends: tuple[Send, ...]
    leaks_at: frozenset[str]
    control: str
    arrives_at: frozenset[str]
    leaks_with: tuple[bytes, ...] = ()
    needs: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Attack:
    """What is tried, why it is known to work elsewhere, and its cases."""

    name: str
    tries: str
    source: str
    drafts: Callable[[], Iterable[Draft]]


def numbered(
    attacks: Iterable[Attack], wanted: Callable[[Attack, int], bool] = lambda attack, place: True
) -> Iterator[Case]:
    """The cases with their bytes. A case's number depends only on the catalogue, not on what is
    left out of a run; `wanted` says by an attack and a case's place in it what is made."""
    number = 0
    for attack in attacks:
        for place, draft in enumerate(attack.drafts()):
            if wanted(attack, place):
                yield _case(number, attack, draft)
            number += 1


def _case(number: int, attack: Attack, draft: Draft) -> Case:
    tags = {role: Tag(marker(number, role), FIRST_PORT + number) for role in Role}
    shots = []
    for send in draft.sends:
        nic = NICS[send.at]
        frame = bytes(send.make(tags[send.role]))
        shots.append(Shot(send.phase, nic.host, nic.interface, frame, send.times, send.sweep))
    return Case(
        number=number,
        attack=attack.name,
        name=f"{attack.name}/{draft.variant}",
        tries=attack.tries,
        source=attack.source,
        family=draft.family,
        attacker=draft.attacker,
        shots=tuple(shots),
        leaks_at=draft.leaks_at,
        arrives_at=draft.arrives_at,
        control=draft.control,
        leaks_with=draft.leaks_with,
        arrives_with=_outside_of(draft),
        needs=draft.needs,
    )


def _outside_of(draft: Draft) -> tuple[bytes, ...]:
    """What a machine sends to the internet has the network's outside address there."""
    if draft.arrives_at != {"web"} or draft.family == 0:
        return ()
    nets = {_net_at(send.at) for send in draft.sends if send.role == Role.CONTROL} - {None}
    address = "".join(net.nat4 if draft.family == 4 else net.nat6 for net in nets if net)
    return (ip_address(address).packed,) if address else ()


def _net_at(at: str) -> Net | None:
    """The network of a machine, or of the remote end of a tunnel."""
    return NICS[at].net or next((net for net in NETS if net.remote == at), None)
