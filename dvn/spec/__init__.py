"""What a user declares: tenants, their networks, and the tunnels that extend them.

Frozen values; an error names file, line and the fix. `check_site` has the rules that need more than
one value at a time (dvn/checks).
"""

from dvn.spec.fabric import Beyond, Fabric, Hypervisor
from dvn.spec.nat import Forward, Nat
from dvn.spec.network import Network, Port, Vlan
from dvn.spec.policy import Policy
from dvn.spec.reading import parse_site, site_from_json
from dvn.spec.site import Site, Tenant, check_site
from dvn.spec.tunnel import Transport, Tunnel, TunnelSpec
from dvn.spec.underlay import Underlay, WireguardIdentity
from dvn.values import NotInFiles

__all__ = [
    "Beyond", "Fabric", "Forward", "Hypervisor", "Nat", "Network", "NotInFiles", "Policy",
    "Port", "Site", "Tenant", "Transport", "Tunnel", "TunnelSpec", "Underlay", "Vlan",
    "WireguardIdentity",
    "check_site", "parse_site", "site_from_json",
]  # fmt: skip
