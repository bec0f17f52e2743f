"""Going where a network may not go: other tenants, the site, metadata, the gateway itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Network

from scapy.layers.inet import ICMP

from lab.attacks.case import Phase, Role
from lab.attacks.catalogue.draft import Attack, Draft, Packet, Send, Tag, bound
from lab.attacks.catalogue.packets import (
    PORTED,
    UNTRACKED,
    echo,
    ether,
    ip,
    multicast_mac,
    protocols,
    tcp,
    udp,
)
from lab.attacks.catalogue.vantage import Vantage, others, site_address, vantages
from lab.attacks.ground import (
    GATEWAY,
    METADATA4,
    METADATA6,
    NETS,
    NICS,
    WAN4,
    WAN6,
    WEB4,
    WEB6,
    Net,
    insiders,
)

Kind = Callable[[str, str, Tag], Packet]


def _of(net: Net) -> frozenset[str]:
    """All places of a network."""
    return frozenset({*insiders(net), net.inside, *([net.remote] if net.remote else [])})


def _same(where: Vantage, kind: Kind, version: int) -> tuple[Send, frozenset[str], str]:
    """The control: the same protocol to where this network may go."""
    place, target, words = where.control_elsewhere(version)
    first = next(net for net in NETS if net.nat4 == where.net.nat4).machines[0]
    if kind in UNTRACKED or (kind not in PORTED and where.name != first):
        place, target, words = where.neighbour(version)
    own = where.address(version)
    mac = where.net.mac if place == "web" else NICS[place].mac
    send = where.control(lambda tag: ether(where.mac, mac, kind(own, target, tag)))
    return send, frozenset({place}), words


def _routed(
    where: Vantage, variant: str, version: int, kind: Kind, targets: tuple[str, ...],
    leaks_at: frozenset[str],
) -> Draft:  # fmt: skip
    """One packet for each target, by the gateway."""
    control, arrives, words = _same(where, kind, version)
    own = where.address(version)
    sends = tuple(
        where.send(where.through_gateway(bound(lambda tag, to: kind(own, to, tag), to=to)))
        for to in targets
    )
    return Draft(
        f"{variant} IPv{version} from {where.name}", version, where.name, (control, *sends),
        leaks_at - {where.name}, words, arrives, needs=where.needs,
    )  # fmt: skip


def _tenants() -> Iterator[Draft]:
    """Every network x every other x every protocol: to a machine's address by the gateway, and to
    the gateway's address there."""
    for where in vantages():
        for victim in others(where.net):
            nic = NICS[victim.machines[0]]
            for version in (4, 6):
                for name, kind in protocols(version).items():
                    address = nic.ip4 if version == 4 else nic.ip6
                    yield _routed(
                        where, f"{victim.full} {name}", version, kind, (address,), _of(victim)
                    )


def _tenants_directly() -> Iterator[Draft]:
    """With the victim's MAC address on the attacker's own segment, and by its public address."""
    for where in vantages():
        for victim in others(where.net):
            nic = NICS[victim.machines[0]]
            for version in (4, 6):
                own, address = where.address(version), nic.ip4 if version == 4 else nic.ip6
                control, arrives, words = _same(where, udp, version)
                sends = tuple(
                    where.send(
                        bound(
                            lambda tag, to, own, address, where: ether(
                                where.mac, to, udp(own, address, tag)
                            ),
                            to=to,
                            own=own,
                            address=address,
                            where=where,
                        )
                    )
                    for to in (nic.mac, victim.mac)
                )
                yield Draft(
                    f"{victim.full} by MAC address IPv{version} from {where.name}", version,
                    where.name, (control, *sends), _of(victim) - {where.name}, words, arrives,
                    needs=where.needs,
                )  # fmt: skip
                public = victim.nat4 if version == 4 else victim.nat6
                if public:
                    for name, kind in (("tcp", tcp), ("udp", udp), ("icmp", echo)):
                        yield _routed(
                            where, f"{victim.full} by its public address {name}", version, kind,
                            (public,), _of(victim),
                        )  # fmt: skip


def _site() -> Iterator[Draft]:
    for where in vantages():
        if where.net.open:
            continue
        for version in (4, 6):
            for name, kind in protocols(version).items():
                target = site_address(version)
                yield _routed(where, name, version, kind, (target,), frozenset({"site"}))


def _internet() -> Iterator[Draft]:
    """Out of a network that has no NAT and is closed, and into all of them from outside."""
    for where in vantages():
        if where.net.open or where.net.nat4:
            continue
        for version in (4, 6):
            for name, kind in protocols(version).items():
                target = WEB4 if version == 4 else WEB6
                yield _routed(where, f"out {name}", version, kind, (target,), frozenset({"web"}))


def _from_outside() -> Iterator[Draft]:
    """New connections into networks: from the site into closed ones, from the internet into all."""
    web, site = NICS["web"], NICS["site"]
    for victim in NETS:
        nic = NICS[victim.machines[0]]
        for version in (4, 6):
            for name, kind in (("tcp", tcp), ("udp", udp), ("icmp", echo)):
                inner = nic.ip4 if version == 4 else nic.ip6
                public = victim.nat4 if version == 4 else victim.nat6
                honest, arrives, words = _from_site(kind, version)
                for outsider, via in ((web, NICS["gw:wan0"].mac), (site, NICS["gw:ext0"].mac)):
                    if outsider is site and victim.open:
                        continue
                    own = outsider.ip4 if version == 4 else outsider.ip6
                    # The router has no route to a private address: the attacker is next door.
                    at = "internet:site" if outsider is web else "site"
                    source = NICS["internet:site"].mac if outsider is web else site.mac
                    sends = [
                        Send(
                            at,
                            bound(
                                lambda tag, own, to, source, via, kind: ether(
                                    source, via, kind(own, to, tag)
                                ),
                                own=own,
                                to=to,
                                source=source,
                                via=via,
                                kind=kind,
                            ),
                        )
                        for to in (inner, public)
                        if to
                    ]
                    yield Draft(
                        f"{victim.full} {name} IPv{version} from {outsider.host}", version,
                        outsider.host, (honest, *sends), _of(victim), words, arrives,
                    )  # fmt: skip


def _from_site(kind: Kind, version: int) -> tuple[Send, frozenset[str], str]:
    """The site may start connections to an open network."""
    open_ = next(net for net in NETS if net.open)
    nic, site = NICS[open_.machines[0]], NICS["site"]
    own, to = (site.ip4, nic.ip4) if version == 4 else (site.ip6, nic.ip6)
    send = Send(
        "site", lambda tag: ether(site.mac, NICS["gw:ext0"].mac, kind(own, to, tag)),
        Phase.CONTROL, Role.CONTROL,
    )  # fmt: skip
    return send, frozenset({nic.host}), "the same from the site into an open network arrives"


def _transit() -> Iterator[Draft]:
    """Through the gateway from the internet to the site: it forwards for networks alone."""
    for version in (4, 6):
        web, to = NICS["web"], site_address(version)
        own = web.ip4 if version == 4 else web.ip6
        for name, kind in (("tcp", tcp), ("udp", udp), ("icmp", echo)):

            def make(tag: Tag, kind: Kind, own: str, to: str) -> Packet:
                source, via = NICS["internet:site"].mac, NICS["gw:wan0"].mac
                return ether(source, via, kind(own, to, tag))

            honest, arrives, words = _from_site(kind, version)
            send = Send("internet:site", bound(make, kind=kind, own=own, to=to))
            yield Draft(
                f"internet to site {name} IPv{version}", version, "web", (honest, send),
                frozenset({"site"}), words, arrives,
            )  # fmt: skip


def _inside_source() -> Iterator[Draft]:
    """From outside, with the address of a machine inside. Only an open network's addresses are the
    site's as well; those of a closed one may belong to somebody else out there."""
    for victim in NETS:
        nic = NICS[victim.machines[0]]
        for liar in (net for net in NETS if net.open):
            claimed = NICS[liar.machines[1]]
            for version in (4, 6):
                own, to = (
                    (claimed.ip4, nic.ip4) if version == 4 else (claimed.ip6, nic.ip6)
                )  # fmt: skip
                honest, arrives, words = _from_site(udp, version)
                for at, via in (("site", "gw:ext0"), ("internet:site", "gw:wan0")):
                    source = NICS[at].mac

                    def make(tag: Tag, source: str, via: str, own: str, to: str) -> Packet:
                        return ether(source, NICS[via].mac, udp(own, to, tag))

                    send = Send(at, bound(make, source=source, via=via, own=own, to=to))
                    yield Draft(
                        f"{claimed.host}'s to {victim.full} IPv{version} by {via[3:]}", version,
                        NICS[at].host, (honest, send), _of(victim), words, arrives,
                    )  # fmt: skip


def _metadata() -> Iterator[Draft]:
    for where in vantages():
        for version, target in ((4, METADATA4), (6, METADATA6)):
            for name, kind in (("tcp", _http), ("udp", udp), ("icmp", echo)):
                yield _routed(where, name, version, kind, (target,), frozenset({"web", GATEWAY}))


def _http(source: str, target: str, tag: Tag) -> Packet:
    return tcp(source, target, tag, port=80)


# -- the gateway itself ---------------------------------------------------------------------------

_PORTS_TCP = (23, 53, 111, 179, 443, 2049, 6817, 8443)
_PORTS_UDP = (69, 111, 123, 161, 500, 4500, 4789, 5555, 51820)


def _services() -> Iterator[Draft]:
    """Every protocol to each address that the gateway has."""
    for where in vantages():
        for version in (4, 6):
            gateway = where.net.gateway4 if version == 4 else where.net.gateway6
            ping = where.control(
                where.through_gateway(
                    bound(
                        lambda tag, where, version, gateway: echo(
                            where.address(version), gateway, tag
                        ),
                        where=where,
                        version=version,
                        gateway=gateway,
                    )
                )
            )
            for name, kind in _kinds(version):
                sends = tuple(
                    where.send(
                        bound(
                            lambda tag, kind, to, mac, where, version: ether(
                                where.mac, mac, kind(where.address(version), to, tag)
                            ),
                            kind=kind,
                            to=to,
                            mac=mac,
                            where=where,
                            version=version,
                        )
                    )
                    for to, mac in _gateways(where.net, version, ping=name == "icmp")
                )
                yield Draft(
                    f"{name} IPv{version} from {where.name}", version, where.name, (ping, *sends),
                    frozenset({GATEWAY}), "the gateway answers ping", frozenset({GATEWAY}),
                    needs=where.needs,
                )  # fmt: skip


def _kinds(version: int) -> Iterator[tuple[str, Kind]]:
    for port in _PORTS_TCP:
        yield f"tcp/{port}", bound(lambda s, t, tag, port: tcp(s, t, tag, port=port), port=port)
    for port in _PORTS_UDP:
        yield f"udp/{port}", bound(lambda s, t, tag, port: udp(s, t, tag, port=port), port=port)
    for name, kind in protocols(version).items():
        if name not in ("tcp", "udp"):
            yield name, kind
    if version == 4:
        yield "icmp timestamp", _timestamp
        yield "icmp address mask", _mask
    yield "tcp without SYN", lambda s, t, tag: tcp(s, t, tag, port=23, flags="A")


def _timestamp(source: str, target: str, tag: Tag) -> Packet:
    return ip(source, target) / ICMP(type=13, id=tag.port) / tag.data


def _mask(source: str, target: str, tag: Tag) -> Packet:
    return ip(source, target) / ICMP(type=17, id=tag.port) / tag.data


def _gateways(net: Net, version: int, *, ping: bool) -> Iterator[tuple[str, str]]:
    """(address, MAC address) by which the gateway could be spoken to; its own address answers
    pings."""
    mine = (net.gateway4,) if version == 4 else (net.gateway6,)
    elsewhere = [each.gateway4 if version == 4 else each.gateway6 for each in others(net)]
    outside = (WAN4, "192.168.77.1", "127.0.0.1") if version == 4 else (WAN6, "fd77::1", "::1")
    link_local = () if version == 4 else (net.link_local,)
    for address in (*(() if ping else (*mine, *link_local)), *elsewhere, *outside):
        yield address, net.mac
    if version == 4:
        broadcast = str(IPv4Network(net.prefix4).broadcast_address)
        for address in ("255.255.255.255", broadcast):
            yield address, "ff:ff:ff:ff:ff:ff"
        yield "224.0.0.1", multicast_mac("224.0.0.1")
    else:
        yield "ff02::1", multicast_mac("ff02::1")
        yield "ff02::2", multicast_mac("ff02::2")


def _outside_services() -> Iterator[Draft]:
    """The offered service is for the network alone: not for another, nor by another address."""
    offered = next(net for net in NETS if net.services)
    for where in vantages():
        for version in (4, 6):
            for victim in NETS:
                if victim == where.net == offered:
                    continue
                to = victim.gateway4 if version == 4 else victim.gateway6
                honest = NICS[offered.machines[1]]
                own, gateway = (
                    (honest.ip4, offered.gateway4) if version == 4
                    else (honest.ip6, offered.gateway6)
                )  # fmt: skip
                control = Send(
                    honest.host,
                    bound(
                        lambda tag, own, gateway, honest: ether(
                            honest.mac, offered.mac, tcp(own, gateway, tag, port=22)
                        ),
                        own=own,
                        gateway=gateway,
                        honest=honest,
                    ),
                    Phase.CONTROL,
                    Role.CONTROL,
                )
                send = where.send(
                    where.through_gateway(
                        bound(
                            lambda tag, to, where, version: tcp(
                                where.address(version), to, tag, port=22
                            ),
                            to=to,
                            where=where,
                            version=version,
                        )
                    )
                )
                yield Draft(
                    f"tcp/22 of {victim.full} IPv{version} from {where.name}", version, where.name,
                    (control, send), frozenset({GATEWAY}),
                    "the network it is offered to reaches it", frozenset({GATEWAY}),
                    needs=where.needs,
                )  # fmt: skip


ATTACKS = (
    Attack("tenant-to-tenant", "reaches another network through the gateway", "RFC 4364, 13.1",
           _tenants),
    Attack("tenant-to-tenant directly", "by MAC address, or by the public address",
           "CWE-653", _tenants_directly),
    Attack("closed-to-site", "reaches the site from a closed network", "CWE-923", _site),
    Attack("closed-to-internet", "leaves a network that has no way out", "CWE-923", _internet),
    Attack("into-a-network", "starts a connection from outside", "CWE-923",
           _from_outside),
    Attack("transit", "uses the gateway as a router into the site", "CWE-923", _transit),
    Attack("inside-source", "comes from outside with an address of the inside",
           "RFC 2827; RFC 3704", _inside_source),
    Attack("metadata", "asks the cloud's metadata service for credentials", "CWE-918; AWS IMDS",
           _metadata),
    Attack("gateway-service", "reaches the gateway's own services", "CVE-2020-8558; CWE-1327",
           _services),
    Attack("offered-service", "uses a service that is offered to another network", "CWE-923",
           _outside_services),
)  # fmt: skip
