"""A site's plan on a host that nobody has: for a file written elsewhere, and for simulations."""

from __future__ import annotations

from ipaddress import ip_interface

from dvn.compile import compile_site
from dvn.diagnose.rulesets import Ruleset
from dvn.diagnose.scene import Device, of_state
from dvn.diagnose.walk import Walker
from dvn.kernel.state import Host, HostLink, KernelState
from dvn.spec import Site

_MAC = "02:00:00:00:00:01"


def imagined_host(site: Site) -> Host:
    """A host with every interface that the site names, and nothing else."""
    names = {port.interface for _t, _n, net in site.networks() for port in net.on(site.here)}
    names |= {network.vlan.uplink for _t, _n, network in site.networks() if network.vlan}
    addresses = frozenset[str]()
    if site.underlay:
        names.add(site.underlay.interface)
        addresses = frozenset(map(str, site.underlay.address))
    off = {f"net/ipv4/conf/{name}/forwarding": "0" for name in names}
    return Host(
        links={name: HostLink(name, "", 1500, True, False) for name in sorted(names)},
        addresses=addresses,
        sysctls={**off, "net/ipv6/conf/all/forwarding": "0"},
    )


def planned_state(site: Site, host: Host | None = None) -> KernelState:
    """What the site's compile makes, here on an imagined host. Raises SpecError."""
    return compile_site(site, host or imagined_host(site)).state


def planned_walker(site: Site, host: Host | None = None) -> Walker:
    """A walker through the plan of a site. Raises SpecError."""
    host = host or imagined_host(site)
    state = planned_state(site, host)
    devices = {
        link.name: Device(link.name, link.kind, link.mtu, link.up, master=link.master or "")
        for link in host.links.values()
        if not link.ours
    }
    if site.underlay and site.underlay.interface in devices:
        devices[site.underlay.interface] = Device(
            site.underlay.interface,
            mtu=devices[site.underlay.interface].mtu,
            mac=_MAC,
            addresses=tuple(ip_interface(str(address)) for address in site.underlay.address),
        )
    return Walker(Ruleset.of(state.tables), of_state(state, host=devices))
