"""Connection tracking: other people's flows, forged errors, helpers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Raw

from lab.attacks.case import Phase, Role
from lab.attacks.catalogue.draft import Attack, Draft, Make, Packet, Send, Tag, bound
from lab.attacks.catalogue.packets import UDP_SERVICE, ether, udp
from lab.attacks.catalogue.vantage import Vantage, at_port, vantages
from lab.attacks.ground import EVIL4, NETS, NICS, WEB4, Net

_NATTED = tuple(net for net in NETS if net.nat4)
_QUIET = bytes(16)
HTTPS = 443


def _from_web(packet: Packet) -> Packet:
    return ether(NICS["web"].mac, NICS["internet:web"].mac, packet)


def _victim(net: Net) -> Vantage:
    return at_port(net.machines[1])


# -- a UDP flow of the victim's -------------------------------------------------------------------


def _opens(victim: Vantage) -> Send:
    """The victim speaks to the internet; nobody looks for this packet."""
    return victim.send(
        victim.through_gateway(lambda tag: udp(victim.ip4, WEB4, Tag(_QUIET, tag.port))),
        Phase.SETUP, Role.NONE,
    )  # fmt: skip


def _answers(net: Net, phase: Phase = Phase.CONTROL) -> Send:
    def reply(tag: Tag) -> Packet:
        packet = IP(src=WEB4, dst=net.nat4) / UDP(sport=UDP_SERVICE, dport=tag.port)
        return _from_web(packet / Raw(tag.data))

    return Send("web", reply, phase, Role.CONTROL)


def _flow_draft(
    variant: str, attacker: str, net: Net, sends: tuple[Send, ...], needs: frozenset[str]
) -> Draft:
    victim = _victim(net)
    return Draft(
        variant, 4, attacker, (_opens(victim), *sends, _answers(net), _answers(net, Phase.AFTER)),
        frozenset({victim.name}), "the true answer arrives", frozenset({victim.name}), needs=needs,
    )  # fmt: skip


def _into_flows() -> Iterator[Draft]:
    """Packets that fit a flow of another tenant's, or nearly."""
    for net in _NATTED:
        victim = _victim(net)

        def wrong_source(tag: Tag, net: Net = net) -> Packet:
            packet = IP(src=EVIL4, dst=net.nat4) / UDP(sport=UDP_SERVICE, dport=tag.port)
            return _from_web(packet / Raw(tag.data))

        def wrong_port(tag: Tag, net: Net = net) -> Packet:
            packet = IP(src=WEB4, dst=net.nat4) / UDP(sport=UDP_SERVICE + 1, dport=tag.port)
            return _from_web(packet / Raw(tag.data))

        for how, make in (("a wrong source", wrong_source), ("a wrong port", wrong_port)):
            yield _flow_draft(
                f"{how} into {net.full}", "web", net, (Send("web", make),), frozenset()
            )
        for where in vantages():
            if where.net == net:
                continue
            packets = {
                "the answer": bound(
                    lambda tag, net: (
                        IP(src=WEB4, dst=net.nat4)
                        / UDP(sport=UDP_SERVICE, dport=tag.port)
                        / Raw(tag.data)
                    ),
                    net=net,
                ),
                "the answer, translated already": bound(
                    lambda tag, victim: (
                        IP(src=WEB4, dst=victim.ip4)
                        / UDP(sport=UDP_SERVICE, dport=tag.port)
                        / Raw(tag.data)
                    ),
                    victim=victim,
                ),
                "from its own address": bound(
                    lambda tag, where, net: (
                        IP(src=where.ip4, dst=net.nat4)
                        / UDP(sport=UDP_SERVICE, dport=tag.port)
                        / Raw(tag.data)
                    ),
                    where=where,
                    net=net,
                ),
                "the question": bound(
                    lambda tag, victim: udp(victim.ip4, WEB4, tag), victim=victim
                ),
            }
            sends = tuple(where.send(where.through_gateway(make)) for make in packets.values())
            draft = _flow_draft(
                f"all forged by {where.name} into {net.full}", where.name, net, sends, where.needs
            )
            places = draft.leaks_at | {"web"}
            yield Draft(**{**vars(draft), "leaks_at": places - {where.name}})


def _forged_errors() -> Iterator[Draft]:
    """ICMP errors that quote a flow: related for conntrack, whoever sends them."""
    for net in _NATTED:
        victim = _victim(net)

        def error(tag: Tag, kind: int, code: int, source: str, net: Net = net) -> Packet:
            quoted = IP(src=net.nat4, dst=WEB4) / UDP(sport=tag.port, dport=UDP_SERVICE)
            body = ICMP(type=kind, code=code, nexthopmtu=552 if code == 4 else 0)
            return IP(src=source, dst=net.nat4) / body / quoted / Raw(tag.data)

        true = Send(
            "web", bound(lambda tag, error: (_from_web(error(tag, 3, 3, WEB4))), error=error),
            Phase.CONTROL, Role.CONTROL,
        )  # fmt: skip
        for where in vantages():
            if where.net == net:
                continue
            sends = tuple(
                where.send(
                    where.through_gateway(
                        bound(
                            lambda tag, error, kind, code, source: error(tag, kind, code, source),
                            error=error,
                            kind=kind,
                            code=code,
                            source=source,
                        )
                    )
                )
                for kind, code in ((3, 1), (3, 3), (3, 4), (11, 0), (5, 1))
                for source in (where.ip4, where.net.gateway4, WEB4)
            )
            yield Draft(
                f"by {where.name} for {net.full}", 4, where.name, (_opens(victim), true, *sends),
                frozenset({victim.name}), "the true error arrives", frozenset({victim.name}),
                needs=where.needs,
            )  # fmt: skip


# -- a TCP flow -----------------------------------------------------------------------------------

_ISN_OURS, _ISN_THEIRS = 1000, 700_000


def _handshake(victim: Vantage, port: int) -> tuple[Send, ...]:
    net = victim.net

    def ours(tag: Tag, flags: str, seq: int, ack: int, data: bytes = b"") -> Packet:
        segment = TCP(sport=tag.port, dport=port, flags=flags, seq=seq, ack=ack, window=8192)
        return IP(src=victim.ip4, dst=WEB4) / segment / Raw(data)

    def theirs(tag: Tag) -> Packet:
        segment = TCP(sport=port, dport=tag.port, flags="SA", seq=_ISN_THEIRS,
                      ack=_ISN_OURS + 1, window=8192)  # fmt: skip
        return _from_web(IP(src=WEB4, dst=net.nat4) / segment)

    def inside(flags: str, seq: int, ack: int, data: bytes = b"") -> Send:
        make = victim.through_gateway(lambda tag: ours(tag, flags, seq, ack, data))
        return victim.send(make, Phase.SETUP, Role.NONE)

    return (
        inside("S", _ISN_OURS, 0),
        Send("web", theirs, Phase.SETUP, Role.NONE),
        inside("A", _ISN_OURS + 1, _ISN_THEIRS + 1),
    )


def _segment(net: Net, port: int, seq: int, flags: str = "PA", source: str = WEB4) -> Make:
    def make(tag: Tag) -> Packet:
        segment = TCP(sport=port, dport=tag.port, flags=flags, seq=seq % 2**32, ack=_ISN_OURS + 1,
                      window=8192)  # fmt: skip
        return _from_web(IP(src=source, dst=net.nat4) / segment / Raw(tag.data))

    return make


def _windows() -> Iterator[Draft]:
    """Blind injection into an established connection (RFC 5961)."""
    for net in _NATTED:
        victim = _victim(net)
        good = _segment(net, HTTPS, _ISN_THEIRS + 1)
        wrong = {
            "data far ahead": _segment(net, HTTPS, _ISN_THEIRS + 2_000_000),
            "a reset far ahead": _segment(net, HTTPS, _ISN_THEIRS + 2_000_000, "R"),
            "a SYN-ACK from nowhere": _segment(net, HTTPS + 1, 1, "SA"),
            "data from another host": _segment(net, HTTPS, _ISN_THEIRS + 1, "PA", EVIL4),
        }
        for how, make in wrong.items():
            sends = (
                *_handshake(victim, HTTPS),
                Send("web", make),
                Send("web", good, Phase.AFTER, Role.CONTROL),
            )
            yield Draft(
                f"{how} into {net.full}", 4, "web", sends, frozenset({victim.name}),
                "the next segment of the connection arrives", frozenset({victim.name}),
            )  # fmt: skip


def _untranslated() -> Iterator[Draft]:
    """What conntrack calls invalid is not translated: it must not leave with an inside address."""
    for net in _NATTED:
        victim = _victim(net)
        for how, flags, seq in (
            ("a segment far ahead", "PA", _ISN_OURS + 2_000_000),
            ("a reset far ahead", "R", _ISN_OURS + 2_000_000),
            ("nonsense flags", "SRF", 5),
        ):

            def stray(tag: Tag, flags: str, seq: int, victim: Vantage = victim) -> Packet:
                segment = TCP(sport=tag.port, dport=HTTPS, flags=flags, seq=seq,
                              ack=_ISN_THEIRS + 1, window=8192)  # fmt: skip
                return IP(src=victim.ip4, dst=WEB4) / segment / Raw(tag.data)

            good = victim.through_gateway(bound(stray, flags="PA", seq=_ISN_OURS + 1))
            yield Draft(
                f"{how} from {victim.name}", 4, victim.name,
                (
                    *_handshake(victim, HTTPS),
                    victim.send(victim.through_gateway(bound(stray, flags=flags, seq=seq))),
                    victim.send(good, Phase.AFTER, Role.CONTROL),
                ),
                frozenset({"web", "site"}), "the connection's next segment arrives",
                frozenset({"web"}),
            )  # fmt: skip


_HELPERS = {
    "FTP": (21, "PORT {ip},{high},{low}\r\n"),
    "IRC": (6667, "PRIVMSG x :\x01DCC CHAT chat {number} {port}\x01\r\n"),
    "SIP": (
        5060,
        "INVITE sip:x@y SIP/2.0\r\nContact: <sip:x@{dotted}:{port}>\r\nContent-Length: 0\r\n\r\n",
    ),
}


def _slipstream() -> Iterator[Draft]:
    """The victim's browser is made to say what a helper takes for a request to open a port."""
    for net in _NATTED:
        victim = _victim(net)
        for name, (port, text) in _HELPERS.items():

            def said(
                tag: Tag, victim: Vantage = victim, text: str = text, port: int = port
            ) -> Packet:
                high, low = divmod(8080, 256)
                data = text.format(
                    ip=victim.ip4.replace(".", ","), dotted=victim.ip4, port=8080, high=high,
                    low=low, number=int.from_bytes(bytes(map(int, victim.ip4.split("."))), "big"),
                )  # fmt: skip
                segment = TCP(sport=tag.port, dport=port, flags="PA", seq=_ISN_OURS + 1,
                              ack=_ISN_THEIRS + 1, window=8192)  # fmt: skip
                return IP(src=victim.ip4, dst=WEB4) / segment / Raw(data.encode())

            def opened(tag: Tag, net: Net = net) -> Packet:
                segment = TCP(sport=20, dport=8080, flags="S", seq=5)
                return _from_web(IP(src=WEB4, dst=net.nat4) / segment / Raw(tag.data))

            good = _segment(net, port, _ISN_THEIRS + 1)
            yield Draft(
                f"{name} into {net.full}", 4, "web",
                (
                    *_handshake(victim, port),
                    victim.send(victim.through_gateway(said), Phase.SETUP, Role.NONE),
                    Send("web", opened),
                    Send("web", good, Phase.AFTER, Role.CONTROL),
                ),
                frozenset({*net.machines}), "the connection itself goes on",
                frozenset({victim.name}),
            )  # fmt: skip


# -- the same addresses twice ---------------------------------------------------------------------


def _overlap() -> Iterator[Draft]:
    """Two networks with the same addresses, inside and outside: neither gets the other's."""
    for net in _NATTED:
        for twin in (each for each in NETS if each.number == net.number and each != net):
            victim, double = _victim(net), _victim(twin)
            ports = {net.full: UDP_SERVICE, twin.full: UDP_SERVICE + 1}
            there = frozenset({*twin.machines, twin.inside})

            def opens(of: Vantage, ports: dict[str, int] = ports) -> Send:
                quiet = bound(
                    lambda tag, ip4, port: udp(ip4, WEB4, Tag(_QUIET, tag.port), port=port),
                    ip4=of.ip4,
                    port=ports[of.net.full],
                )
                return of.send(of.through_gateway(quiet), Phase.SETUP, Role.NONE)

            def reply(tag: Tag, net: Net = net, port: int = ports[net.full]) -> Packet:
                packet = IP(src=WEB4, dst=net.nat4) / UDP(sport=port, dport=tag.port)
                return _from_web(packet / Raw(tag.data))

            yield Draft(
                f"{net.full}'s answers to {twin.full}", 4, "web",
                (opens(victim), opens(double), Send("web", reply),
                 Send("web", reply, Phase.AFTER, Role.CONTROL)),
                there, "they arrive where they belong", frozenset({victim.name}),
            )  # fmt: skip
            first = at_port(net.machines[0])
            for version in (4, 6):
                own, to = first.address(version), victim.address(version)

                def speak(
                    tag: Tag, own: str = own, to: str = to, first: Vantage = first,
                    mac: str = victim.mac,
                ) -> Packet:  # fmt: skip
                    return ether(first.mac, mac, udp(own, to, tag))

                def ask(tag: Tag, own: str = own, to: str = to, first: Vantage = first) -> Packet:
                    return ether(first.mac, first.net.mac, udp(own, to, tag))

                yield Draft(
                    f"{net.full}'s own to {twin.full} IPv{version}", version, first.name,
                    (first.send(speak), first.send(ask), first.control(speak)),
                    there, "they arrive where they belong", frozenset({victim.name}),
                )  # fmt: skip
                place, target, words = victim.control_elsewhere(version)

                def same(
                    tag: Tag, of: Vantage, target: str = target, data: bytes = b"",
                    version: int = version,
                ) -> Packet:  # fmt: skip
                    packet = udp(of.address(version), target, Tag(data or tag.data, tag.port))
                    return ether(of.mac, of.net.mac, packet)

                yield Draft(
                    f"{twin.full} speaks like {net.full} IPv{version}", version, double.name,
                    (
                        double.send(bound(same, of=double, data=_QUIET), Phase.SETUP, Role.NONE),
                        double.send(bound(same, of=double, data=_QUIET)),
                        victim.send(bound(same, of=victim), Phase.AFTER, Role.CONTROL),
                    ),
                    frozenset(), words, frozenset({place}),
                )  # fmt: skip


# -- using it up ----------------------------------------------------------------------------------

FLOOD = 1000  # flows of one flood; all floods of a run come together
_UDP_SOURCE = 14 + 20  # where a UDP source port is in a frame


def _exhaustion() -> Iterator[Draft]:
    """One network opens flow after flow to one server; others must still get new ones there."""
    for net in _NATTED:
        attacker = at_port(net.machines[0])

        def flood(tag: Tag, attacker: Vantage = attacker) -> Packet:
            segment = UDP(sport=1024, dport=UDP_SERVICE, chksum=0)
            return IP(src=attacker.ip4, dst=WEB4) / segment / Raw(_QUIET)

        send = replace(
            attacker.send(attacker.through_gateway(flood)), times=FLOOD, sweep=_UDP_SOURCE
        )
        for other in (each for each in _NATTED if each != net):
            victim = _victim(other)
            after = victim.send(
                victim.through_gateway(bound(lambda tag, ip4: udp(ip4, WEB4, tag), ip4=victim.ip4)),
                Phase.AFTER,
                Role.CONTROL,
            )
            yield Draft(
                f"{net.full} against {other.full}", 4, attacker.name, (send, after),
                frozenset(), "a new connection of the other network reaches the same server",
                frozenset({"web"}),
            )  # fmt: skip


ATTACKS = (
    Attack("flow-spoof", "sends packets that fit another tenant's flow",
           "CVE-2019-14899; RFC 4787, 5", _into_flows),
    Attack("forged-error", "sends ICMP errors about another tenant's flow",
           "RFC 5927; CVE-2004-0790, -0791", _forged_errors),
    Attack("blind-injection", "guesses its way into a TCP connection", "RFC 5961; CVE-2004-0230",
           _windows),
    Attack("exhaustion", "uses up the NAT's flows", "RFC 4732, 2.2; CWE-770", _exhaustion),
    Attack("overlap", "has the same addresses as another network", "RFC 4364, 4.1; CWE-653",
           _overlap),
    Attack("untranslated", "leaves the NAT with an inside address", "RFC 5382, REQ-10; CWE-200",
           _untranslated),
    Attack("slipstreaming", "has a helper open a port by what the victim says",
           "CVE-2020-28041", _slipstream),
)  # fmt: skip
