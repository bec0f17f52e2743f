"""Rules of others that would drop our traffic: found by leading samples of it through them.

An accept of ours does not override a drop of another base chain at the same hook. So each kind of
packet that a site lives by is walked twice: with our tables alone, and with everybody's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dvn import addresses
from dvn.diagnose.build import BROADCAST, Described, build
from dvn.diagnose.encapsulation import wrapped
from dvn.diagnose.findings import Finding, fail, ok, warn
from dvn.diagnose.flows import Flows
from dvn.diagnose.frames import Packet
from dvn.diagnose.rulesets import Ruleset
from dvn.diagnose.scene import Device, Scene
from dvn.diagnose.walk import HOST, Hop, Walk, Walker
from dvn.kernel.state import table_name
from dvn.spec import Network, Site, Tunnel

_FAR = {4: "192.0.2.77", 6: "2001:db8:77::77"}
_MACHINE, _NEIGHBOUR = "02:00:00:00:00:7d", "02:00:00:00:00:7e"
_LIMIT = 50  # networks that are tried; rules do not differ by network


@dataclass(frozen=True)
class Sample:
    """A packet the site lives by."""

    what: str
    enters: str
    packet: Packet


def check_rules(site: Site, ruleset: Ruleset, scene: Scene) -> Iterator[Finding]:
    """`ruleset` has everybody's tables, ours (maybe only planned) among them."""
    name = table_name(site.site)
    ours = Ruleset(tuple(table for table in ruleset.tables if table.name == name))
    both, alone = Walker(ruleset, scene), Walker(ours, scene)
    blamed: dict[tuple[str, str], Hop] = {}
    first: dict[tuple[str, str], Sample] = {}
    unknown: dict[str, int] = {}
    tried = 0
    for sample in samples(site, scene):
        if not alone.walk(sample.packet, sample.enters, Flows()).exits:
            continue  # not allowed by the site itself
        tried += 1
        way = both.walk(sample.packet, sample.enters, Flows())
        for hop in _foreign(way, name):
            if hop.unknown:
                unknown[hop.where] = len(hop.unknown)
            if hop.verdict == "drop":
                blamed.setdefault((hop.where, hop.words), hop)
                first.setdefault((hop.where, hop.words), sample)
    for key, hop in blamed.items():
        _hook, family, table, chain = hop.where.split(" ", 3)
        yield fail(
            "foreign rules",
            f"table {family} {table}, chain {chain} drops {first[key].what}: {hop.words}",
            f"let it pass there (nft list chain {family} {table} {chain}); an accept of ours "
            "does not override it",
        )
    for where, count in sorted(unknown.items()):
        yield warn(
            "foreign rules",
            f"{count} rules at {where} are not understood and may drop our traffic",
            "read them: nft list ruleset",
        )
    if not blamed:
        yield ok("foreign rules", f"no rule of others drops any of {tried} samples of our traffic")


def _foreign(way: Walk, ours: str) -> Iterator[Hop]:
    for hop in way.hops:
        words = hop.where.split(" ")
        if len(words) == 4 and words[2] != ours:
            yield hop


def samples(site: Site, scene: Scene) -> Iterator[Sample]:
    """What the site's machines, tunnels and the gateway itself send and get."""
    for tenant, name, network in list(site.networks())[:_LIMIT]:
        yield from _of_network(scene, f"{tenant}/{name}", tenant, name, network)
    for tunnel in site.tunnels():
        device = scene.devices.get(addresses.tunnel_name(tunnel.tenant, tunnel.name))
        if device is None or not device.remote or site.underlay is None:
            continue
        inner = _asks_for_gateway(site, tunnel)
        what = f"{tunnel.tenant}/{tunnel.name}"
        turned = replace(device, local=device.remote, remote=device.local)
        outer = wrapped(turned, inner)
        mac = _mac(scene, site.underlay.interface)
        incoming = outer.with_link(mac, _MACHINE)
        yield Sample(f"tunnel {what}, coming in", site.underlay.interface, incoming)
        yield Sample(f"tunnel {what}, going out", HOST, wrapped(device, inner))


def _asks_for_gateway(site: Site, tunnel: Tunnel) -> Packet:
    """What any machine behind a tunnel sends first."""
    gateway = site.network(tunnel.tenant, tunnel.network).gateways()[0]
    own = [address for address in tunnel.addresses if address.version == gateway.version]
    machine = next((a for a in (*own, *gateway.network.hosts()) if a != gateway.ip), gateway.ip)
    mac = tunnel.macs[0] if tunnel.macs else _MACHINE
    if gateway.version == 4:
        asked = Described(str(machine), str(gateway.ip), "arp", mac=mac, to_mac=BROADCAST)
    else:
        asked = Described(str(machine), str(gateway.ip), "icmp", mac=mac)
    return build(asked)


def _of_network(
    scene: Scene, what: str, tenant: str, name: str, network: Network
) -> Iterator[Sample]:
    bridge = addresses.bridge_name(tenant, name)
    if bridge not in scene.devices:
        return
    yield from _between(scene, what, bridge, network)
    for gateway in network.gateways():
        machine = next(host for host in gateway.network.hosts() if host != gateway.ip)
        version = gateway.version
        base = Described(
            str(machine), _FAR[version], mac=_MACHINE, to_mac=_mac(scene, bridge), dport=443
        )
        icmp = replace(base, protocol="icmp", destination=str(gateway.ip))
        asks = f"IPv{version} of {what}"
        # As from the bridge's own device: which port it came by makes no difference to others.
        yield Sample(f"{asks} to the internet (tcp)", bridge, build(base))
        yield Sample(f"{asks} to the internet (udp)", bridge, build(replace(base, protocol="udp")))
        yield Sample(f"{asks} to its gateway (ping)", bridge, build(icmp))
        for service in network.services:
            protocol, port = service.split("/")
            asked = replace(base, protocol=protocol, destination=str(gateway.ip), dport=int(port))
            yield Sample(f"{asks} to {service} of the gateway", bridge, build(asked))


def _between(scene: Scene, what: str, bridge: str, network: Network) -> Iterator[Sample]:
    """Frames that br_netfilter shows to the rules for routed packets, where it is loaded."""
    ports = [port for port in scene.ports(bridge) if port.up]
    shown = {4: "net/bridge/bridge-nf-call-iptables", 6: "net/bridge/bridge-nf-call-ip6tables"}
    if len(ports) < 2:
        return
    for gateway in network.gateways():
        if not scene.number(shown[gateway.version]):
            continue
        hosts = (str(host) for host in gateway.network.hosts() if host != gateway.ip)
        machine, other = next(hosts), next(hosts, "")
        if not other:
            continue
        for port in ports:
            pinned = next((p for p in network.ports if p.interface == port.name), None)
            own = [str(a) for a in pinned.address if a.version == gateway.version] if pinned else []
            asks = Described(
                own[0] if own else machine,
                other,
                "udp",
                mac=(pinned.mac if pinned else None) or _MACHINE,
                to_mac=_NEIGHBOUR,
                dport=443,
            )
            says = f"IPv{gateway.version} of {what} between its machines, by br_netfilter"
            yield Sample(says, port.name, build(asks))


def _mac(scene: Scene, device: str) -> str:
    found: Device | None = scene.devices.get(device)
    return found.mac if found and found.mac else "02:00:00:00:00:01"
