"""An interface that somebody put into a network's bridge, and nobody declared."""

from __future__ import annotations

from collections.abc import Iterator

from lab.attacks.case import Phase, Role
from lab.attacks.catalogue.draft import Attack, Draft, Packet, Send, Tag, bound
from lab.attacks.catalogue.packets import BROADCAST, arp, ether, udp
from lab.attacks.ground import BRIDGE_META, INTRUDED, INTRUDER, NICS, PLACES

_TO_GATEWAY = frozenset({BRIDGE_META})


def _address(version: int) -> str:
    net = INTRUDED
    return f"10.{net.number}.0.88" if version == 4 else f"fd{net.number:02d}::88"


def _in() -> Iterator[Draft]:
    nic, net = NICS[INTRUDER], INTRUDED
    peer, other = (NICS[name] for name in net.machines)
    for version in (4, 6):
        own, to = _address(version), peer.ip4 if version == 4 else peer.ip6

        def packet(tag: Tag, mac: str, own: str = own, to: str = to) -> Packet:
            return ether(nic.mac, mac, udp(own, to, tag))

        honest = Send(
            other.host,
            bound(
                lambda tag, own, to: ether(other.mac, peer.mac, udp(own, to, tag)),
                own=other.ip4 if version == 4 else other.ip6,
                to=to,
            ),
            Phase.CONTROL,
            Role.CONTROL,
        )
        words, arrives = "the same from a declared port arrives", frozenset({peer.host})
        machines = PLACES - {INTRUDER, net.inside}
        for whom, mac, places, needs in (
            ("a machine", peer.mac, machines, frozenset[str]()),
            ("everybody", BROADCAST, machines, frozenset[str]()),
            ("the gateway", net.mac, PLACES - {INTRUDER}, _TO_GATEWAY),
        ):
            yield Draft(
                f"to {whom} IPv{version}", version, INTRUDER,
                (honest, Send(INTRUDER, bound(packet, mac=mac))), places, words, arrives,
                needs=needs,
            )  # fmt: skip


def _out() -> Iterator[Draft]:
    """What machines say to all must not reach it either."""
    net = INTRUDED
    sender, peer = (NICS[name] for name in net.machines)

    def question(tag: Tag) -> Packet:
        return arp(sender.mac, sender.mac, sender.ip4, peer.ip4, tag, op=1)

    yield Draft(
        "hears broadcasts", 4, INTRUDER,
        (Send(sender.host, question), Send(sender.host, question, Phase.CONTROL, Role.CONTROL)),
        frozenset({INTRUDER}), "the same arrives at a declared port", frozenset({peer.host}),
    )  # fmt: skip


ATTACKS = (
    Attack("undeclared port", "sits in a bridge without being declared", "CWE-284", _in),
    Attack("undeclared listener", "listens in a bridge without being declared", "CWE-284", _out),
)  # fmt: skip
