"""Whether a host can hold a site: interfaces that are missing, names and slots others have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import TypeAlias

from dvn import addresses
from dvn.allocate import table_of
from dvn.checks.inside import Inside
from dvn.forms import nearest
from dvn.kernel.state import Host, HostLink, table_name
from dvn.nat.things import FIRST, LAST
from dvn.problems import Path_, Problem
from dvn.spec import Site
from dvn.spec.fabric import fabric_path
from dvn.tunnels.mtu import LEAST, whole_mtu

_SHOWN = 12  # interfaces worth listing in a message
# What the kernel itself may have put there (net.core.default_qdisc), and our own.
_DEFAULT_QUEUES = frozenset(
    ("", "noop", "noqueue", "pfifo_fast", "mq", "fq", "fq_codel", "fq_pie", "sfq", "cake", "tbf")
)

Device: TypeAlias = tuple[str, tuple[object, ...] | None, Path_]  # name, slot, where it is from


def host_problems(site: Site, host: Host) -> tuple[list[Problem], list[Problem]]:
    """(what makes the whole site impossible, what makes one port or uplink impossible)."""
    devices = list(_devices(site))
    hard = [
        *_underlay(site, host),
        *_secrets(site, host),
        *_foreign_names(site, host, devices),
        *_foreign_slots(site, host, devices),
        *_foreign_routing(site, host),
        *_host_addresses(site, host),
        *_too_narrow(site, host),
        *_narrow_here(site, host),
    ]
    return hard, [*_attachments(site, host)]


def _others(host: Host) -> list[str]:
    return [name for name, link in host.links.items() if not link.ours and name != "lo"]


def _narrow_here(site: Site, host: Host) -> Iterator[Problem]:
    """The MTU of networks on many hosts comes from the file alone, the same for all of them."""
    link = host.links.get(site.underlay.interface) if site.underlay else None
    path = fabric_path(site)
    if link is not None and path is not None and link.mtu < path:
        where: Path_ = ("hosts", site.here, "underlay") if site.here else ("underlay",)
        yield Problem(
            "",
            0,
            f"{link.name} carries packets of {link.mtu} bytes, and the hosts of this site send "
            f"each other {path}",
            f"write `mtu: {link.mtu}` in this host's `underlay` in the site file",
            (*where, "mtu"),
        )


def _missing(name: str, host: Host, path: Path_) -> Problem:
    others = _others(host)
    fix = nearest(name, others) if 0 < len(others) <= _SHOWN else "see `ip -brief link`"
    return Problem("", 0, f"interface {name} is not on this host", fix, path)


def _underlay(site: Site, host: Host) -> Iterator[Problem]:
    if site.underlay is None:
        return
    if site.underlay.interface not in host.links:
        yield _missing(site.underlay.interface, host, ("underlay", "interface"))
        return
    for address in site.underlay.address:
        if str(address) not in host.addresses:
            yield Problem(
                "",
                0,
                f"underlay address {address} is on no interface of this host",
                f"give it to {site.underlay.interface}, or write the address that is there",
                ("underlay", "address"),
            )


def _secrets(site: Site, host: Host) -> Iterator[Problem]:
    """Files of secrets that are not there, or not as they must be."""
    own = site.underlay.wireguard if site.underlay else None
    if own:
        yield from _secret(
            host, own.private_key_file, ("underlay", "wireguard", "private_key_file")
        )
        secret = host.secrets.get(own.private_key_file)
        if own.public_key and secret and secret.public not in ("", own.public_key):
            yield Problem(
                "",
                0,
                f"`public_key` is not that of the key in {own.private_key_file}",
                f"the other hosts go by it: write {secret.public}",
                ("underlay", "wireguard", "public_key"),
            )
    for tunnel in site.tunnels():
        if tunnel.psk_file:
            path: Path_ = ("tenants", tunnel.tenant, "tunnels", tunnel.name, "psk_file")
            yield from _secret(host, tunnel.psk_file, path)


def _too_narrow(site: Site, host: Host) -> Iterator[Problem]:
    """IPv6 breaks nothing up on the way, and no network can have less than 1280 bytes."""
    for tunnel in site.tunnels():
        outer6 = tunnel.remote is not None and tunnel.remote.version == 6
        whole = whole_mtu(site, host, tunnel)
        if outer6 and whole < LEAST and tunnel.transport in ("plain", "fou", "ipsec"):
            yield Problem(
                "",
                0,
                f"the IPv6 path of tunnel {tunnel.full_name} leaves {whole} bytes for the packets "
                f"of its network, which needs {LEAST}",
                "use `transport: wireguard`, which can break packets up, or an IPv4 remote",
                ("tenants", tunnel.tenant, "tunnels", tunnel.name, "remote"),
            )


def _secret(host: Host, file: str, path: Path_) -> Iterator[Problem]:
    secret = host.secrets.get(file)
    if secret and secret.wrong:
        what, _, fix = secret.wrong.partition("; ")
        yield Problem("", 0, f"{file} {what}", fix, path)


def _attachments(site: Site, host: Host) -> Iterator[Problem]:
    for tenant, name, network in site.networks():
        path: Path_ = ("tenants", tenant, "networks", name)
        if network.vlan and network.vlan.uplink not in host.links:
            yield _missing(network.vlan.uplink, host, (*path, "vlan", "uplink"))
        bridge = addresses.bridge_name(tenant, name)
        for index, port in enumerate(network.ports):
            if port.host != site.here:
                continue
            where = (*path, "ports", index, "interface")
            link = host.links.get(port.interface)
            if link is None:
                yield _missing(port.interface, host, where)
            elif link.master not in (None, bridge) and not _ours(host, link.master):
                yield Problem(
                    "",
                    0,
                    f"interface {port.interface} belongs to {link.master} already",
                    f"free it: ip link set {port.interface} nomaster",
                    where,
                )
            if link and port.rate and port.rate.inward:
                yield from _foreign_queue(link, (*path, "ports", index, "rate"))


def _foreign_queue(link: HostLink, path: Path_) -> Iterator[Problem]:
    """A queue of the kernel's own choice may be replaced; one that somebody chose may not."""
    if link.queue not in _DEFAULT_QUEUES:
        yield Problem(
            "",
            0,
            f"interface {link.name} has a queueing discipline already ({link.queue})",
            f"remove it (tc qdisc delete dev {link.name} root), or leave out `rate`",
            path,
        )


def _ours(host: Host, name: str | None) -> bool:
    link = host.links.get(name or "")
    return link is not None and link.ours


def _devices(site: Site) -> Iterator[Device]:
    """(device, its slot, path) of all that this site makes."""
    for tenant, name, network in site.networks():
        path: Path_ = ("tenants", tenant, "networks", name)
        yield addresses.bridge_name(tenant, name), None, path
        yield addresses.router_name(tenant, name), None, path
        if network.vlan:
            slot = ("vlan", network.vlan.uplink, network.vlan.id)
            yield addresses.vlan_name(tenant, name), slot, (*path, "vlan", "id")
        if network.rate and network.rate.outward:
            yield addresses.network_rate_name(tenant, name), None, (*path, "rate")
        for index, port in enumerate(network.ports):
            if port.host == site.here and port.rate and port.rate.outward:
                device = addresses.port_rate_name(port.interface)
                yield device, None, (*path, "ports", index, "rate")
    for tunnel in site.tunnels():
        path = ("tenants", tunnel.tenant, "tunnels", tunnel.name)
        end: tuple[object, ...] | None = None
        if tunnel.transport != "wireguard":  # its ends are in a device of ours
            six = tunnel.remote is not None and tunnel.remote.version == 6
            kind = f"ip6{tunnel.type}" if six else tunnel.type
            end = (kind, str(site.local_of(tunnel)), str(tunnel.remote), tunnel.key)
        yield addresses.tunnel_name(tunnel.tenant, tunnel.name), end, path
    if site.underlay and site.underlay.wireguard:
        device = addresses.wireguard_name(site.underlay.wireguard.port)
        yield device, None, ("underlay", "wireguard", "port")


def _foreign_names(site: Site, host: Host, devices: Iterable[Device]) -> Iterator[Problem]:
    for device, _slot, path in devices:
        link = host.links.get(device)
        if link and (not link.ours or link.site not in ("", site.site)):
            whose = f"belongs to site {link.site}" if link.ours else "is not ours"
            yield Problem(
                "", 0, f"device {device} is there and {whose}", f"ip link delete {device}", path
            )
    for family, name in sorted(host.foreign_tables):
        if name == table_name(site.site):
            yield Problem(
                "",
                0,
                f"nft table {family} {name} is there and is not ours",
                f"nft delete table {family} {name}",
                ("site",),
            )


def _foreign_slots(site: Site, host: Host, devices: Iterable[Device]) -> Iterator[Problem]:
    taken = {
        link.slot: link
        for owner, links in host.links_by_site.items()
        if owner not in ("", site.site)
        for link in links
        if link.slot
    }
    for device, slot, path in devices:
        link = taken.get(slot) if slot else None
        if slot is None or link is None or link.name == device:
            continue
        if slot[0] == "vlan":
            what = f"VLAN id {slot[2]} on {slot[1]} is the device {link.name}, which is not ours"
        else:
            what = f"device {link.name}, which is not ours, has the same tunnel ends and key"
        yield Problem("", 0, what, f"remove it (ip link delete {link.name}) or change yours", path)


def _foreign_routing(site: Site, host: Host) -> Iterator[Problem]:
    """Tables that others use, and rules of theirs between ours."""
    for tenant, name, _network in site.networks():
        number = host.numbers.get((site.site, tenant, name))
        table = table_of(number) if number else 0
        if table in host.foreign_routing.tables:
            yield Problem(
                "",
                0,
                f"the routing table {table} of this network is used by "
                f"{host.foreign_routing.tables[table]}, which is not ours",
                "let that use another table",
                ("tenants", tenant, "networks", name),
            )
    for preference in sorted(host.foreign_routing.preferences)[:1]:
        yield Problem(
            "",
            0,
            f"rule {preference} of `ip rule` is not ours, and {FIRST} to {LAST} are",
            f"give it another preference (ip rule delete preference {preference})",
            ("site",),
        )


def _host_addresses(site: Site, host: Host) -> Iterator[Problem]:
    """The kernel looks for addresses of the host itself before it looks at any rule, so a machine
    that has one would never get its answers."""
    if site.here is not None:
        return  # nothing is routed here
    inside = Inside(
        (f"{tenant}/{name}", prefix)
        for tenant, name, network in site.networks()
        for prefix in network.prefix
    )
    for address in map(ip_address, sorted(host.addresses)):
        for owner, prefix in () if address.is_link_local else inside.holding(address):
            tenant, _, name = owner.partition("/")
            yield Problem(
                "",
                0,
                f"prefix {prefix} contains {address}, which is an address of this host",
                "give the network another prefix, or the host another address",
                ("tenants", tenant, "networks", name, "prefix"),
            )
