"""Tunnels: what the internet can put into one, and what tenants can pretend to be one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address

from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import GRE, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from dvn.addresses import wireguard_inner
from lab.attacks.case import Phase, Role
from lab.attacks.catalogue.draft import Attack, Draft, Packet, Send, Tag, bound
from lab.attacks.catalogue.packets import BROADCAST, ether, udp
from lab.attacks.catalogue.vantage import TEB, Vantage, in_gre, keyed, vantages
from lab.attacks.ground import (
    EVIL4,
    GATEWAY,
    NETS,
    NICS,
    PEER_KEY,
    PLACES,
    PUBLIC_KEY,
    ROUTER,
    SEALED_KEY,
    UNDERLAY,
    WAN4,
    Net,
    remote_address,
    remote_mac,
)

_GRE = frozenset({"gretap"})
_SEALED = frozenset({"gretap", "wireguard"})
SEALED_NET = next(net for net in NETS if net.full == "red-lab")
TUNNELLED = tuple(net for net in NETS if net.remote)
# The gateway's own stack sees outer packets by nature, and filters them where DVN has no say.
_INSIDE = frozenset(PLACES - {"cloud", "moon", "web", "site", GATEWAY})


def _inner(net: Net, tag: Tag, target_mac: str = BROADCAST) -> Packet:
    """An honest frame of the remote machine, which only the tunnel makes a wrong one."""
    nic = NICS[net.machines[0]]
    return ether(remote_mac(net), target_mac, udp(remote_address(net, 4), nic.ip4, tag))


def _honest(net: Net) -> tuple[Send, frozenset[str], str]:
    nic = NICS[net.machines[0]]
    send = Send(
        net.remote, lambda tag: in_gre(net, _inner(net, tag, nic.mac)), Phase.CONTROL, Role.CONTROL
    )
    return send, frozenset({nic.host}), "the same frame with the right outside arrives"


Outer = Callable[[Net, Packet], Packet]


def _as(net: Net, at: str, source: str, *, key: int | None = None) -> Outer:
    return lambda _net, frame: in_gre(net, frame, key=key, source=source, at=at)


def _gre(net: Net, gre: Packet, frame: Packet, source: str = "") -> Packet:
    """With another GRE header than the tunnel's, from the remote end."""
    at = net.remote
    outer = IP(src=source or net.remote4, dst=WAN4)
    return Ether(src=NICS[at].mac, dst=NICS[f"internet:{at}"].mac) / outer / gre / frame


def _injections(net: Net) -> Mapping[str, tuple[str, Outer]]:
    """(from which machine, what is around the inner frame)"""
    other = next(each for each in TUNNELLED if each != net)
    return {
        "from a wrong source": ("web", _as(net, "web", EVIL4)),
        "from another tenant's remote": (other.remote, _as(net, other.remote, other.remote4)),
        "from the gateway's own address": ("web", _as(net, "web", WAN4)),
        "from its public address": ("web", _as(net, "web", net.nat4)),
        "from a broadcast address": ("web", _as(net, "web", "255.255.255.255")),
        "to the address of its NAT": (
            net.remote, lambda n, f: in_gre(n, f, target=n.nat4),
        ),
        "with another tenant's key": (net.remote, _as(net, net.remote, net.remote4, key=other.key)),
        "without a key": (net.remote, lambda n, f: _gre(n, GRE(proto=TEB), f)),
        "with key 0": (net.remote, _as(net, net.remote, net.remote4, key=0)),
        "as IPv4 in GRE": (
            net.remote, lambda n, f: _gre(n, keyed(n.key, 0x0800), f.payload),
        ),
        "as ERSPAN": (
            net.remote, lambda n, f: _gre(n, keyed(n.key, 0x88BE), f),
        ),
        "as PPTP": (
            net.remote,
            lambda n, f: _gre(n, Raw(b"\x30\x01\x88\x0b" + n.key.to_bytes(4, "big")), f),
        ),
        "in UDP": (
            net.remote,
            lambda n, f: _gre(n, UDP(sport=5555, dport=5555) / keyed(n.key), f),
        ),
        "as VXLAN": (
            net.remote, lambda n, f: _gre(n, UDP(sport=4789, dport=4789) / VXLAN(vni=n.key), f),
        ),
        "as IPIP": (
            net.remote,
            lambda n, f: Ether(src=NICS[n.remote].mac, dst=NICS[f"internet:{n.remote}"].mac)
            / IP(src=n.remote4, dst=WAN4) / f.payload,
        ),
    }  # fmt: skip


def _injection() -> Iterator[Draft]:
    for net in TUNNELLED:
        control, arrives, words = _honest(net)
        nic = NICS[net.machines[0]]
        for how, (at, outer) in _injections(net).items():
            sends = tuple(
                Send(
                    at,
                    bound(
                        lambda tag, outer, to, net: outer(net, _inner(net, tag, to)),
                        outer=outer,
                        to=to,
                        net=net,
                    ),
                )
                for to in (nic.mac, net.mac, BROADCAST)
            )
            yield Draft(
                f"{how} into {net.full}", 4, at, (control, *sends), _INSIDE, words, arrives,
                needs=_GRE,
            )  # fmt: skip


def _guessing() -> Iterator[Draft]:
    """The key is no secret and no password; from a wrong source not even the right one helps."""
    for net in TUNNELLED:
        control, arrives, words = _honest(net)
        guesses = [*range(16), 42, 100, 1000, 4711, 0xFFFFFFFF, *(net.key + d for d in (-1, 0, 1))]
        sends = tuple(
            Send(
                "web",
                bound(
                    lambda tag, key, net: in_gre(
                        net, _inner(net, tag), key=key, source=EVIL4, at="web"
                    ),
                    key=key,
                    net=net,
                ),
            )
            for key in guesses
        )
        yield Draft(
            f"{len(guesses)} keys into {net.full}", 4, "web", (control, *sends), _INSIDE, words,
            arrives, needs=_GRE,
        )  # fmt: skip


def _nested() -> Iterator[Draft]:
    """An encapsulated packet inside the network, which nobody must unpack."""
    for where in vantages():
        for victim in TUNNELLED:
            if victim == where.net:
                continue
            for how, packet in _nestings(where, victim).items():
                sends = (
                    where.send(where.through_gateway(packet)),
                    where.send(
                        bound(
                            lambda tag, packet, where: ether(
                                where.mac, NICS[where.peer].mac, packet(tag)
                            ),
                            packet=packet,
                            where=where,
                        )
                    ),
                )
                send, arrives, words = where.honest(4, "udp")
                places = frozenset({*victim.machines, victim.inside})
                yield Draft(
                    f"{how} for {victim.full} from {where.name}", 4, where.name, (send, *sends),
                    places, words, arrives, needs=where.needs,
                )  # fmt: skip


def _nestings(where: Vantage, victim: Net) -> Mapping[str, Callable[[Tag], Packet]]:
    """To the gateway's outer address, with the victim's tunnel inside or around."""

    def inner(tag: Tag) -> Packet:
        return _inner(victim, tag)

    def to(source: str, target: str) -> Packet:
        return IP(src=source, dst=target)

    own = where.ip4
    return {
        "its tunnel": lambda tag: to(victim.remote4, WAN4) / keyed(victim.key) / inner(tag),
        "its tunnel by an honest source": lambda tag: to(own, WAN4) / keyed(victim.key)
        / inner(tag),
        "GRE in GRE": lambda tag: to(own, WAN4) / GRE(proto=0x0800) / to(victim.remote4, WAN4)
        / keyed(victim.key) / inner(tag),
        "GRE in IPIP": lambda tag: IP(src=own, dst=WAN4, proto=4) / to(victim.remote4, WAN4)
        / keyed(victim.key) / inner(tag),
        "GRE in UDP": lambda tag: to(own, WAN4) / UDP(sport=5555, dport=5555)
        / keyed(victim.key) / inner(tag),
        "VXLAN": lambda tag: to(own, where.net.gateway4) / UDP(sport=4789, dport=4789)
        / VXLAN(vni=victim.key) / inner(tag),
        "IPIP": lambda tag: IP(src=own, dst=WAN4, proto=4)
        / udp(remote_address(victim, 4), NICS[victim.machines[0]].ip4, tag),
        "6in4": lambda tag: IP(src=own, dst=WAN4, proto=41)
        / udp(remote_address(victim, 6), NICS[victim.machines[0]].ip6, tag),
        "Geneve": lambda tag: to(own, where.net.gateway4) / UDP(sport=6081, dport=6081)
        / Raw(b"\0\0\x65\x58" + victim.key.to_bytes(3, "big") + b"\0") / inner(tag),
    }  # fmt: skip


def _outer_spoof() -> Iterator[Draft]:
    """A tenant's packet that another tenant's remote end would take for the gateway's tunnel."""
    gateway = ip_address(WAN4).packed
    for where in vantages():
        for victim in TUNNELLED:
            if victim == where.net or where.name == victim.remote:
                continue
            sends = tuple(
                where.send(
                    where.through_gateway(
                        bound(
                            lambda tag, source, victim: (
                                IP(src=source, dst=victim.remote4)
                                / keyed(victim.key)
                                / _inner(victim, tag)
                            ),
                            source=source,
                            victim=victim,
                        )
                    )
                )
                for source in (where.ip4, WAN4)
            )
            send, arrives, words = where.honest(4, "udp")
            yield Draft(
                f"{victim.full}'s remote end from {where.name}", 4, where.name, (send, *sends),
                frozenset({victim.remote}), words, arrives, (gateway,), where.needs,
            )  # fmt: skip


def _forged_errors() -> Iterator[Draft]:
    """Anybody says that the tunnel's outer packets are too big: it must change nothing."""
    for net in TUNNELLED:
        nic = NICS[net.machines[0]]

        def forged(tag: Tag, net: Net = net) -> Packet:
            quoted = IP(src=WAN4, dst=net.remote4) / GRE(key_present=1, key=net.key, proto=TEB)
            error = ICMP(type=3, code=4, nexthopmtu=552) / quoted / Raw(bytes(16))
            outer = IP(src=EVIL4, dst=WAN4) / error
            return ether(NICS["web"].mac, NICS["internet:web"].mac, outer)

        def big(tag: Tag, net: Net = net, nic: object = nic) -> Packet:
            own = NICS[net.machines[0]]
            packet = IP(src=own.ip4, dst=remote_address(net, 4), flags="DF")
            body = UDP(sport=tag.port, dport=5002) / Raw(tag.data + bytes(1300))
            return ether(own.mac, remote_mac(net), packet / body)

        teach = Send(
            net.remote,
            bound(lambda tag, net: in_gre(net, _inner(net, Tag(bytes(16), tag.port))), net=net),
            Phase.SETUP,
            Role.NONE,
        )
        yield Draft(
            f"packet too big for {net.full}", 4, "web",
            (teach, Send("web", forged),
             Send(nic.host, big, Phase.AFTER, Role.CONTROL)),
            frozenset(), "a big packet goes through the tunnel afterwards",
            frozenset({net.remote}), needs=_GRE,
        )  # fmt: skip


def _probing() -> Iterator[Draft]:
    """Whether a tunnel is there: an error for a wrong one would tell (and quote it)."""
    for net in TUNNELLED:
        control, arrives, words = _honest(net)
        for how, source, key in (
            ("a wrong key", net.remote4, net.key + 1),
            ("a wrong source", EVIL4, net.key),
        ):
            at = net.remote if source == net.remote4 else "web"
            send = Send(
                at,
                bound(
                    lambda tag, net, source, key, at: in_gre(
                        net, _inner(net, tag), key=key, source=source, at=at
                    ),
                    net=net, source=source, key=key, at=at,
                ),
            )  # fmt: skip
            yield Draft(
                f"{how} for {net.full}", 4, "internet", (control, send), frozenset({at}),
                words, arrives, needs=_GRE,
            )  # fmt: skip


# -- encrypted tunnels ----------------------------------------------------------------------------


def _bare() -> Iterator[Draft]:
    """Plain GRE with the addresses and the key that are right inside WireGuard."""
    peer, own = (str(wireguard_inner(key)) for key in (PEER_KEY, PUBLIC_KEY))
    control, arrives, words = _honest(TUNNELLED[0])
    target = NICS[SEALED_NET.machines[0]]

    def frame(tag: Tag, source: str) -> Packet:
        inner = udp(f"10.{SEALED_NET.number}.0.101", target.ip4, tag)
        outer = IP(src=source, dst=own) / keyed(SEALED_KEY)
        return outer / ether(remote_mac(SEALED_NET), target.mac, inner)

    def at_wire(tag: Tag, at: str, via: str, source: str) -> Packet:
        return ether(NICS[at].mac, NICS[via].mac, frame(tag, source))

    for at, via in (("internet:site", "gw:wan0"), ("site", "gw:ext0")):
        for whose, source in (("the peer", peer), ("anybody", EVIL4), ("itself", own)):
            send = Send(at, bound(at_wire, at=at, via=via, source=source))
            yield Draft(
                f"as {whose} by {via[3:]}", 4, NICS[at].host, (control, send),
                _INSIDE | {UNDERLAY}, words, arrives, needs=_SEALED,
            )  # fmt: skip
    for where in vantages():
        sends = tuple(
            where.send(where.through_gateway(bound(frame, source=source)))
            for source in (where.ip4, peer)
        )
        send, there, told = where.honest(4, "udp")
        inside = {*SEALED_NET.machines, SEALED_NET.inside, UNDERLAY, GATEWAY}
        places = frozenset(inside - {where.name})
        if where.kind == "tunnel":
            places -= {UNDERLAY}  # its own outer packets
        if where.net == SEALED_NET:
            places -= {SEALED_NET.inside}  # it is on its way to the gateway
        yield Draft(
            f"from {where.name}", 4, where.name, (send, *sends), places, told, there,
            needs=where.needs | _SEALED,
        )  # fmt: skip


def _in_clear() -> Iterator[Draft]:
    """What goes into an encrypted tunnel is nowhere in clear, though the other end is not there."""
    sender = NICS[SEALED_NET.machines[0]]

    def said(tag: Tag, mac: str) -> Packet:
        return ether(sender.mac, mac, udp(sender.ip4, f"10.{SEALED_NET.number}.0.101", tag))

    peer = NICS[SEALED_NET.machines[1]]
    control = Send(
        sender.host,
        bound(lambda tag: ether(sender.mac, peer.mac, udp(sender.ip4, peer.ip4, tag))),
        Phase.CONTROL,
        Role.CONTROL,
    )
    for how, mac in (("broadcast", BROADCAST), ("to a far machine", remote_mac(SEALED_NET))):
        yield Draft(
            how, 4, sender.host, (control, Send(sender.host, bound(said, mac=mac))),
            frozenset({ROUTER, "web", "cloud", "moon", "site"}),
            "the same to a neighbour arrives", frozenset({peer.host}), needs=_SEALED,
        )  # fmt: skip


def _tagged_inside() -> Iterator[Draft]:
    """The remote end hops into a VLAN of the site's switch."""
    for net in TUNNELLED:
        control, arrives, words = _honest(net)
        for vlan in sorted({each.vlan for each in NETS if each.vlan} | {555}):
            send = Send(
                net.remote,
                bound(
                    lambda tag, net, vlan: in_gre(
                        net,
                        Ether(src=remote_mac(net), dst=BROADCAST)
                        / Dot1Q(vlan=vlan)
                        / udp(remote_address(net, 4), NICS[net.machines[0]].ip4, tag),
                    ),
                    net=net,
                    vlan=vlan,
                ),
            )
            yield Draft(
                f"VLAN {vlan} through {net.full}", 4, net.remote, (control, send),
                PLACES - {net.remote}, words, arrives, needs=_GRE,
            )  # fmt: skip


ATTACKS = (
    Attack("gre-injection", "puts a frame into a tenant's tunnel",
           "VU#199397; CVE-2024-7595, -7596; CVE-2020-10136", _injection),
    Attack("gre-key-guessing", "tries keys until one fits", "RFC 2890", _guessing),
    Attack("gre-probe", "finds out which tunnels there are", "RFC 792; CWE-203", _probing),
    Attack("unsealed", "brings plain GRE into an encrypted tunnel", "CWE-319; CVE-2020-10136",
           _bare),
    Attack("in clear", "hears what an encrypted tunnel should hide", "CWE-319", _in_clear),
    Attack("nested", "wraps a packet for another tenant so that the gateway unwraps it",
           "CVE-2020-10136; RFC 6169", _nested),
    Attack("outer-spoof", "speaks to another tenant's remote end as if it were the gateway",
           "VU#199397; CWE-290", _outer_spoof),
    Attack("forged-pmtu", "shrinks a tunnel with a forged ICMP error", "RFC 5927, 7; CVE-2004-1060",
           _forged_errors),
    Attack("tag-in-tunnel", "tags frames inside a tunnel", "IEEE 802.1Q; CVE-2005-4440",
           _tagged_inside),
)  # fmt: skip
