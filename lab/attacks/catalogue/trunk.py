"""A switch that is not what it should be: its trunk carries whatever the attacker likes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from scapy.layers.l2 import Dot1AD, Dot1Q, Ether

from lab.attacks.case import Phase, Role
from lab.attacks.catalogue.draft import Attack, Draft, Packet, Send, Tag, bound
from lab.attacks.catalogue.packets import BROADCAST, ether, udp
from lab.attacks.ground import GATEWAY, NETS, NICS, PLACES, UNDECLARED_VLAN, Net

_VLAN = frozenset({"vlan"})
_ON_VLAN = tuple(net for net in NETS if net.vlan)
TRUNK = "tor:gw"


def _inner(net: Net, tag: Tag) -> Packet:
    return udp(NICS[net.vlan_machine].ip4, NICS[net.machines[0]].ip4, tag)


def _wrong_tags(net: Net) -> Mapping[str, tuple[Packet, ...]]:
    own = net.vlan
    return {
        "no tag": (),
        "priority tag": (Dot1Q(vlan=0),),
        "an undeclared VLAN": (Dot1Q(vlan=UNDECLARED_VLAN),),
        "VLAN 1": (Dot1Q(vlan=1),),
        "VLAN 4095": (Dot1Q(vlan=4095),),
        "802.1ad with its number": (Dot1AD(vlan=own),),
        "undeclared, its own inside": (Dot1Q(vlan=UNDECLARED_VLAN), Dot1Q(vlan=own)),
        "802.1ad, its own inside": (Dot1AD(vlan=UNDECLARED_VLAN), Dot1Q(vlan=own)),
        "its own twice": (Dot1Q(vlan=own), Dot1Q(vlan=own)),
        "its own, priority inside": (Dot1Q(vlan=own), Dot1Q(vlan=0)),
        "its own, 802.1ad inside": (Dot1Q(vlan=own), Dot1AD(vlan=own)),
    }


def _frame(net: Net, tags: tuple[Packet, ...], to: str, tag: Tag) -> Packet:
    frame = Ether(src=NICS[net.vlan_machine].mac, dst=to)
    for each in tags:
        frame = frame / each.copy()
    return frame / _inner(net, tag)


def _control(net: Net) -> Send:
    tags = (Dot1Q(vlan=net.vlan),)
    mac = NICS[net.machines[0]].mac
    return Send(TRUNK, lambda tag: _frame(net, tags, mac, tag), Phase.CONTROL, Role.CONTROL)


def _tags() -> Iterator[Draft]:
    """Frames that carry anything but exactly the network's own tag. Not among them: a priority tag
    with the network's own inside, which Linux takes for the latter before any filter sees it
    (net/core/dev.c, __netif_receive_skb_core); docs/explanation/attacks.md says what follows."""
    for net in _ON_VLAN:
        mac = NICS[net.machines[0]].mac
        for how, tags in _wrong_tags(net).items():
            sends = tuple(
                Send(
                    TRUNK,
                    bound(
                        lambda tag, tags, to, net: _frame(net, tags, to, tag),
                        tags=tags,
                        to=to,
                        net=net,
                    ),
                )
                for to in (mac, net.mac, BROADCAST)
            )
            yield Draft(
                f"{how} for {net.full}", 4, "tor", (_control(net), *sends), PLACES,
                "with the network's own tag alone it arrives", frozenset({net.machines[0]}),
                needs=_VLAN,
            )  # fmt: skip


def _hopping() -> Iterator[Draft]:
    """Double tagging from one declared VLAN into another; the first tag is its own."""
    for net in _ON_VLAN:
        for victim in _ON_VLAN:
            if victim == net:
                continue
            nic = NICS[victim.machines[0]]
            for how, tags in {
                "802.1Q": (Dot1Q(vlan=net.vlan), Dot1Q(vlan=victim.vlan)),
                "802.1ad": (Dot1AD(vlan=net.vlan), Dot1Q(vlan=victim.vlan)),
                "three tags": (Dot1Q(vlan=net.vlan), Dot1Q(vlan=0), Dot1Q(vlan=victim.vlan)),
            }.items():
                sends = tuple(
                    Send(TRUNK, bound(lambda tag, tags, to, victim: (_frame(
                        victim, tags, to, tag)), tags=tags, to=to, victim=victim))
                    for to in (nic.mac, victim.mac, BROADCAST)
                )  # fmt: skip
                yield Draft(
                    f"{how} from {net.full} to {victim.full}", 4, "tor",
                    (_control(victim), *sends), PLACES,
                    "with the network's own tag alone it arrives", frozenset({nic.host}),
                    needs=_VLAN,
                )  # fmt: skip


def _addressed() -> Iterator[Draft]:
    """IP packets to the gateway on the trunk itself, which is nobody's network."""
    lan0 = NICS[f"{GATEWAY}:lan0"]
    for net in _ON_VLAN:
        nic, victim = NICS[net.vlan_machine], NICS[net.machines[0]]
        for version in (4, 6):
            own = nic.ip4 if version == 4 else nic.ip6
            to = victim.ip4 if version == 4 else victim.ip6
            sends = tuple(
                Send(TRUNK, bound(lambda tag, own, to, mac, nic: (ether(
                    nic.mac, mac, udp(own, to, tag))), own=own, to=to, mac=mac, nic=nic))
                for mac in (lan0.mac, net.mac, BROADCAST)
            )  # fmt: skip
            yield Draft(
                f"{net.full} IPv{version}", version, "tor", (_control(net), *sends),
                PLACES, "with the network's own tag alone it arrives",
                frozenset({net.machines[0]}), needs=_VLAN,
            )  # fmt: skip


ATTACKS = (
    Attack("trunk-tags", "sends what the trunk should not carry", "IEEE 802.1Q; CVE-2021-27853",
           _tags),
    Attack("vlan-hopping", "hides a second tag behind its own VLAN's", "CVE-2005-4440", _hopping),
    Attack("untagged-trunk", "speaks untagged on the trunk", "IEEE 802.1Q; CWE-923", _addressed),
)  # fmt: skip
