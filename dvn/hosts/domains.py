"""The NICs of a libvirt domain, and which networks they ask for. Pure: from its XML.

A domain says it in its metadata (https://libvirt.org/formatdomain.html#general-metadata), where
libvirt keeps what belongs to other programs:

    <metadata>
      <dvn:port xmlns:dvn="urn:dvn:libvirt:1" network="cms/farm" address="10.9.0.20"/>
    </metadata>

For several NICs there are several, each with the `mac` that says which is meant, in one
`<dvn:ports>` (libvirt takes one element of a namespace). Several addresses are separated by blanks.
`lease` is written by the burst provider (burst/providers/libvirt_domain.py). A NIC that no port is
for is somebody else's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from pydantic import ValidationError

from dvn.hosts.joining import Nic

NAMESPACE = "urn:dvn:libvirt:1"
_PORTS, _PORT = f"{{{NAMESPACE}}}ports", f"{{{NAMESPACE}}}port"
_ATTRIBUTES = frozenset(("network", "address", "mac", "lease"))


@dataclass(frozen=True)
class Misnamed:
    """A port of a domain that cannot be: the interface ("" if it has none), and why."""

    machine: str
    interface: str
    why: str


@dataclass(frozen=True)
class Domain:
    """What a running domain asks for."""

    nics: tuple[Nic, ...] = ()
    wrong: tuple[Misnamed, ...] = ()


def domain_of(xml: str) -> Domain:
    """From the XML of a running domain. Raises ValueError if it is none of libvirt's."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise ValueError(f"no XML of a domain: {error}") from None
    machine = root.findtext("name") or "?"
    cards = dict(_cards(root))
    nics: list[Nic] = []
    wrong: list[Misnamed] = []
    written = [
        *root.iterfind(f"metadata/{_PORT}"),
        *root.iterfind(f"metadata/{_PORTS}/{_PORT}"),
    ]
    for port in written:
        found = _nic(machine, dict(port.attrib), cards)
        if isinstance(found, Misnamed):
            wrong.append(found)
        elif any(found.interface == other.interface for other in nics):
            wrong.append(Misnamed(machine, "", f"{found.interface} has two ports in the metadata"))
        else:
            nics.append(found)
    return Domain(tuple(nics), tuple(wrong))


def _cards(root: ElementTree.Element) -> Iterator[tuple[str, str]]:
    """(MAC address, interface on the host) of each NIC that has both."""
    for interface in root.iterfind("devices/interface"):
        mac, target = interface.find("mac"), interface.find("target")
        address = mac.get("address", "").lower() if mac is not None else ""
        device = target.get("dev", "") if target is not None else ""
        if address and device:
            yield address, device


def _nic(machine: str, said: dict[str, str], cards: dict[str, str]) -> Nic | Misnamed:
    unknown = sorted(said.keys() - _ATTRIBUTES)
    mac = said.get("mac", "").lower() or (next(iter(cards)) if len(cards) == 1 else "")
    interface = cards.get(mac, "")
    if not mac:
        why = "a port without `mac` is for a domain with one NIC: say which is meant"
    elif not interface:
        why = f"the domain has no NIC with MAC address {mac}"
    elif unknown:
        why = f"a port has no attribute `{unknown[0]}`: there are network, address and mac"
    else:
        try:
            return Nic(
                interface=interface,
                network=said.get("network", ""),
                mac=mac,
                address=tuple(said.get("address", "").split()),
                machine=machine,
                lease=said.get("lease", ""),
            )
        except ValidationError as error:
            why = str(error.errors(include_url=False)[0]["msg"])
    return Misnamed(machine, interface, why)
