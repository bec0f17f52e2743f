"""What ails a host that is to hold a site: pure checks on what was seen of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from dvn.diagnose.findings import Finding, fail, ok, warn
from dvn.diagnose.routing import Flow, Routing
from dvn.diagnose.rulesets import Ruleset
from dvn.diagnose.scene import Scene
from dvn.spec import Site

MODULES = {
    "gretap": "ip_gre", "vlan": "8021q", "vrf": "vrf", "bridge": "bridge", "wireguard": "wireguard",
    "fou": "fou", "nft inet nat": "nft_chain_nat", "nft bridge": "nf_tables", "ifb": "ifb",
}  # fmt: skip
_FALLBACKS = ("gre0", "gretap0", "erspan0", "tunl0", "sit0", "ip6tnl0", "ip6gre0")
_BRIDGED = ("iptables", "ip6tables", "arptables")
_FULL = 0.8  # of a table of the kernel's


@dataclass(frozen=True)
class Manager:
    """A program that changes networks by itself: whether it runs, which of our links it says are
    its own, whether it was told to leave others' things alone."""

    name: str
    links: tuple[str, ...] = ()
    told: bool = False


@dataclass(frozen=True)
class Facts:
    """What was seen of a host. None: could not be found out. `paths`: MTU toward each remote."""

    may_change: bool = True
    kernel: str = ""
    features: Mapping[str, bool] | None = None
    scene: Scene = field(default_factory=Scene)
    ruleset: Ruleset = field(default_factory=lambda: Ruleset(()))
    merging: frozenset[str] = frozenset()  # devices with large receive offload
    paths: Mapping[str, int] = field(default_factory=dict)
    clock: bool | None = None
    charon: bool = False
    managers: tuple[Manager, ...] = ()
    legacy: tuple[str, ...] = ()  # tables of iptables-legacy, which nft does not show
    sysctls: Mapping[str, str] = field(default_factory=dict)
    applied: bool = False  # whether the site is in the kernel


def check_host(site: Site, facts: Facts) -> Iterator[Finding]:
    """Every check but those of foreign rules (obstacles.py)."""
    yield _rights(facts)
    yield from _features(site, facts)
    yield from _interfaces(site, facts)
    yield from _forwarding(site, facts)
    yield from _reverse_path(site, facts)
    yield from _bridge_netfilter(facts)
    yield from _offloads(facts)
    yield from _mtu(site, facts)
    yield from _ipsec(site, facts)
    yield _clock(facts)
    yield from _managers(site, facts)
    yield from _legacy(facts)
    yield from _fallbacks(facts)
    yield from _tables(facts)


def needs(site: Site) -> tuple[str, ...]:
    """The kernel features that a site asks for."""
    found = ["bridge", "vrf", "nft bridge", "nft inet nat"]
    networks = [network for _t, _n, network in site.networks()]
    if any(n.rate or any(port.rate for port in n.ports) for n in networks):
        found.append("ifb")
    if site.tunnels():
        found.append("gretap")
    if any(network.vlan for network in networks):
        found.append("vlan")
    transports = {tunnel.transport for tunnel in site.tunnels()}
    found += [name for name in ("fou", "wireguard") if name in transports]
    return tuple(found)


def _rights(facts: Facts) -> Finding:
    if facts.may_change:
        return ok("rights", "this process may change networks")
    return fail("rights", "this process may not look at or change networks", "run it with sudo")


def _features(site: Site, facts: Facts) -> Iterator[Finding]:
    if facts.features is None:
        yield warn("kernel", "what the kernel can could not be tried out", "run it with sudo")
        return
    lacks = [name for name in needs(site) if not facts.features.get(name, False)]
    if not lacks:
        yield ok("kernel", f"{facts.kernel} has all that the site needs")
    for name in lacks:
        module = MODULES.get(name, name)
        yield fail(
            "kernel",
            f"{facts.kernel} cannot make {name}",
            f"modprobe {module}; if there is no such module, take a kernel that has it",
        )


def _interfaces(site: Site, facts: Facts) -> Iterator[Finding]:
    if site.underlay is None:
        return
    device = facts.scene.devices.get(site.underlay.interface)
    name = site.underlay.interface
    if device is None:
        yield fail("underlay", f"there is no interface {name}", "see `ip -brief link`")
    elif not device.up:
        yield fail("underlay", f"{name} is down", f"ip link set {name} up")
    else:
        there = {own.ip for own in device.addresses}
        missing = [address for address in site.underlay.address if address not in there]
        for address in missing:
            yield fail(
                "underlay",
                f"{name} has not the address {address}",
                "give it to the interface, or write the one that is there",
            )
        if not missing:
            yield ok("underlay", f"{name} is up and has all of its addresses")


def _forwarding(site: Site, facts: Facts) -> Iterator[Finding]:
    if site.underlay is None:
        return
    key = f"net/ipv4/conf/{site.underlay.interface}/forwarding"
    value = facts.sysctls.get(key, facts.scene.sysctls.get(key))
    if value == "1":
        yield ok("forwarding", f"IPv4 is forwarded on {site.underlay.interface}")
    elif facts.applied:
        yield fail(
            "forwarding",
            f"IPv4 is not forwarded on {site.underlay.interface}: somebody switched it off",
            "dvn apply switches it on again; look for who sets it (sysctl.d, NetworkManager)",
        )
    else:
        yield ok("forwarding", "off; dvn apply switches it on for the networks alone")


def _reverse_path(site: Site, facts: Facts) -> Iterator[Finding]:
    """The effective value is max(all, interface): a strict `all` cannot be loosened."""
    every = facts.scene.number("net/ipv4/conf/all/rp_filter")
    if every == 2:
        yield warn(
            "rp_filter",
            "net.ipv4.conf.all.rp_filter is 2 (loose), and loosens the networks' own check; "
            "our nft rules still check every source",
            "sysctl net.ipv4.conf.all.rp_filter=0",
        )
    if site.underlay is None:
        return
    name = site.underlay.interface
    own = facts.scene.number(f"net/ipv4/conf/{name}/rp_filter")
    if max(every, own) != 1:
        yield ok("rp_filter", f"not strict on {name}")
        return
    routing = Routing(facts.scene)
    for tunnel in site.tunnels():
        if tunnel.remote is None or tunnel.remote.version == 6:  # IPv6 has no such check
            continue
        path = routing.lookup(Flow(ip_address(str(tunnel.remote))))
        if path is None or path.device != name:
            where = path.device if path else "nowhere"
            yield fail(
                "rp_filter",
                f"strict on {name}, and the route to {tunnel.remote} leads to {where}: packets "
                f"of tunnel {tunnel.tenant}/{tunnel.name} are dropped",
                f"sysctl net.ipv4.conf.{'all' if every == 1 else name}.rp_filter=2, or mend "
                "the route",
            )
            return
    yield ok("rp_filter", f"strict on {name}, and the tunnels' routes agree")


def _bridge_netfilter(facts: Facts) -> Iterator[Finding]:
    there = [name for name in _BRIDGED if facts.scene.number(f"net/bridge/bridge-nf-call-{name}")]
    if there:
        off = " ".join(f"net.bridge.bridge-nf-call-{name}=0" for name in there)
        yield warn(
            "br_netfilter",
            "bridged packets also pass the rules of IP: ours let them, others' may not (see "
            "`foreign rules`)",
            f"sysctl {off}, if nothing else (Docker, Kubernetes) needs it",
        )
    else:
        yield ok("br_netfilter", "bridged packets meet the bridge rules only")


def _offloads(facts: Facts) -> Iterator[Finding]:
    for name in sorted(facts.merging):
        yield fail(
            "offloads",
            f"{name} merges received packets (LRO): what is forwarded or bridged breaks",
            f"ethtool -K {name} lro off",
        )
    if not facts.merging:
        yield ok("offloads", "none that hurts forwarding")


def _mtu(site: Site, facts: Facts) -> Iterator[Finding]:
    if site.underlay is None:
        return
    device = facts.scene.devices.get(site.underlay.interface)
    if device is None:
        return
    wanted = site.underlay.mtu or min(device.mtu, 1500)
    if site.underlay.mtu and device.mtu < site.underlay.mtu:
        yield fail(
            "mtu",
            f"underlay.mtu is {site.underlay.mtu}, and {device.name} carries {device.mtu}",
            f"ip link set {device.name} mtu {site.underlay.mtu}, or write mtu: {device.mtu}",
        )
        return
    narrow = {remote: mtu for remote, mtu in facts.paths.items() if mtu < wanted}
    for remote, mtu in sorted(narrow.items()):
        yield warn(
            "mtu",
            f"the path to {remote} carries {mtu} bytes, not {wanted}: outer packets are fragmented",
            f"write underlay: {{mtu: {mtu}, ...}}",
        )
    if not narrow:
        yield ok("mtu", f"{wanted} bytes on {device.name}, and no path is known to be narrower")


def _ipsec(site: Site, facts: Facts) -> Iterator[Finding]:
    if not any(tunnel.transport == "ipsec" for tunnel in site.tunnels()):
        return
    if facts.charon:
        yield ok("ipsec", "strongSwan's charon takes connections")
    else:
        yield fail(
            "ipsec",
            "strongSwan's charon does not answer: tunnels under IPsec stay closed",
            "apt-get install strongswan-charon strongswan-swanctl, and start it",
        )


def _clock(facts: Facts) -> Finding:
    if facts.clock is None:
        return warn("clock", "whether the clock is right is not known", "see `timedatectl`")
    if facts.clock:
        return ok("clock", "synchronised")
    return warn(
        "clock",
        "not synchronised: munge and TLS refuse machines whose time differs",
        "start chrony or systemd-timesyncd",
    )


def _managers(site: Site, facts: Facts) -> Iterator[Finding]:
    fixes = {
        "NetworkManager": "write /etc/NetworkManager/conf.d/90-dvn.conf: [keyfile] "
        "unmanaged-devices=interface-name:b-*;interface-name:v-*;interface-name:t-*",
        "systemd-networkd": "write /etc/systemd/networkd.conf.d/90-dvn.conf: [Network] "
        "ManageForeignRoutes=no, ManageForeignRoutingPolicyRules=no",
        "firewalld": "firewall-cmd --permanent --zone=trusted --add-interface=b-... for each "
        "bridge; it forgets our rules on no reload, and its own may drop",
    }
    for manager in facts.managers:
        fix = fixes.get(manager.name, f"see to it that {manager.name} leaves b-*, v-*, t-* alone")
        if manager.links:
            names = ", ".join(manager.links)
            yield fail("managers", f"{manager.name} thinks it has to manage {names}", fix)
        elif manager.told:
            yield ok("managers", f"{manager.name} runs, and leaves our links alone")
        else:
            yield warn("managers", f"{manager.name} runs, and may touch our links or routes", fix)
    if not facts.managers:
        yield ok("managers", "no other program manages networks here")


def _legacy(facts: Facts) -> Iterator[Finding]:
    if facts.legacy:
        names = ", ".join(facts.legacy)
        yield warn(
            "iptables-legacy",
            f"there are legacy tables ({names}), whose rules nft does not show",
            "see `iptables-legacy-save`; move to iptables-nft or nft",
        )


def _fallbacks(facts: Facts) -> Iterator[Finding]:
    """VU#199397: what nobody else takes, they do."""
    up = [name for name in _FALLBACKS if (d := facts.scene.devices.get(name)) and d.up]
    for name in up:
        yield fail(
            "fallback tunnels",
            f"{name} is up: it takes tunnel packets from anybody",
            f"ip link set {name} down; sysctl net.core.fb_tunnels_only_for_init_net=2",
        )


def _tables(facts: Facts) -> Iterator[Finding]:
    pairs = (
        ("conntrack", "net/netfilter/nf_conntrack_count", "net/netfilter/nf_conntrack_max"),
        ("neighbours", "neighbours", "net/ipv4/neigh/default/gc_thresh3"),
    )
    counts = {"neighbours": str(len(facts.scene.neighbours))}
    for name, used_key, limit_key in pairs:
        used, limit = (
            counts.get(used_key, facts.sysctls.get(used_key)),
            facts.sysctls.get(limit_key),
        )
        if not used or not limit or not limit.isdigit() or not used.isdigit() or limit == "0":
            continue
        if int(used) > int(limit) * _FULL:
            yield warn(
                name,
                f"{used} of {limit} entries are used: the next ones are refused",
                f"sysctl {limit_key.replace('/', '.')}={int(limit) * 4}",
            )
        else:
            yield ok(name, f"{used} of {limit} entries are used")
