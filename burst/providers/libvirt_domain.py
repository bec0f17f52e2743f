"""What a borrowed virtual machine is called and looks like in libvirt: pure, text in and text out.

Everything is derived from the lease's id, so that a launch repeated after a kill finds what the
first one made: the id, 32 hex digits, *is* the domain's UUID; the domain, its disk and its seed
carry it in their names; two elements of our own in the domain's metadata say the rest. libvirt
keeps one element for each namespace ("Domain XML format", General metadata), hence two of them.

    <burst:lease site= id= pool= tenant= type= defined= started=/>    ours: which lease this is
    <dvn:ports><dvn:port network="TENANT/NETWORK" mac= address= lease=/>   for the network engine

The interface is a tap device without a bridge: no packet passes before the hypervisor's network
engine, which reads `dvn:ports`, has put it into its network behind the port filter.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from typing import Literal

from burst.join.userdata import inner_mac
from burst.providers.base import LaunchRequest

PORTS_NS = "urn:dvn:libvirt:1"  # read by dvn/hosts/domains.py on the hypervisor
LEASE_NS = "urn:dvn:burst:1"
ET.register_namespace("dvn", PORTS_NS)
ET.register_namespace("burst", LEASE_NS)

_LEASE_ID = re.compile(r"[0-9a-f]{32}")
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Image:
    """What machines boot from. `volume` is the name of a volume in the storage pool, never written
    to: each machine has an overlay of its own."""

    volume: str
    format: Literal["qcow2", "raw"] = "qcow2"
    kernel: str = ""  # a path on the hypervisor: booted directly, without a boot loader
    initrd: str = ""
    cmdline: str = ""


@dataclass(frozen=True, slots=True)
class Flavour:
    """One type of machine: what an offer is made of."""

    cores: int
    memory_mb: int
    disk_gb: int
    image: str
    price_per_hour: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class LibvirtConfig:
    """One hypervisor, local or a partner's."""

    uri: str
    site: str  # two gateways on one hypervisor stay apart
    images: Mapping[str, Image]
    types: Mapping[str, Flavour]
    storage: str = "default"  # the storage pool of images, overlays and seeds
    cores: int | None = None  # the most that our machines may have together; None: the host's
    memory_mb: int | None = None
    reserve_cores: int = 0  # left to the host itself
    reserve_memory_mb: int = 1024
    virtualization: Literal["kvm", "qemu"] = "kvm"
    mtu: int = 1500


@dataclass(frozen=True, slots=True)
class Tag:
    """The `burst:lease` element."""

    site: str
    lease_id: str
    pool: str
    tenant: str
    type: str
    defined: datetime | None = None
    started: bool = False
    network: str = ""
    address: str = ""  # from `dvn:ports`, which the same domain carries

    @property
    def attributes(self) -> dict[str, str]:
        values = {
            "site": self.site,
            "id": self.lease_id,
            "pool": self.pool,
            "tenant": self.tenant,
            "type": self.type,
            "defined": self.defined.isoformat() if self.defined else "",
            "started": "yes" if self.started else "",
        }
        return {name: value for name, value in values.items() if value}

    def xml(self) -> str:
        """The element alone, without a namespace: virDomainSetMetadata gives it ours."""
        return ET.tostring(ET.Element("lease", self.attributes), encoding="unicode")


@dataclass(frozen=True, slots=True)
class Domain:
    """One domain of the hypervisor, anybody's; `tag` is None where no lease made it."""

    uuid: str
    name: str
    active: bool
    ended: bool  # libvirt says that it was shut down, destroyed or has crashed
    cores: int
    memory_mb: int
    tag: Tag | None = None


@dataclass(frozen=True, slots=True)
class HostSize:
    name: str
    cores: int
    memory_mb: int


@dataclass(frozen=True, slots=True)
class Names:
    """What belongs to one lease."""

    uuid: str
    disk: str
    seed: str

    @classmethod
    def of(cls, site: str, lease_id: str) -> Names:
        """Raises ValueError for what cannot be a lease's id: nothing is made up."""
        if not _LEASE_ID.fullmatch(lease_id):
            raise ValueError(f"lease id {lease_id!r}: 32 hex digits are needed")
        if not _SITE.fullmatch(site):
            raise ValueError(f"site name {site!r} cannot be part of a volume's name")
        stem = f"dvn-{site}-{lease_id}"
        return cls(uuid_of(lease_id), f"{stem}.qcow2", f"{stem}-seed.iso")


def uuid_of(lease_id: str) -> str:
    """The id in the form of RFC 4122 (libvirt does not look at the version bits)."""
    return "-".join(lease_id[a:b] for a, b in pairwise((0, 8, 12, 16, 20, 32)))


def lease_of_uuid(uuid: str) -> str:
    return uuid.replace("-", "").lower()


def lease_of_volume(site: str, volume: str) -> str | None:
    """The lease to which a volume of this name belongs, if it is one of ours."""
    found = re.fullmatch(rf"dvn-{re.escape(site)}-([0-9a-f]{{32}})(\.qcow2|-seed\.iso)", volume)
    return found[1] if found else None


def tap_name(lease_id: str) -> str:
    """The host's end of the machine's interface: 15 characters, as many as Linux allows."""
    return f"dvn{lease_id[:12]}"


def tag_of(request: LaunchRequest, site: str, now: datetime) -> Tag:
    return Tag(
        site=site,
        lease_id=request.lease_id,
        pool=request.pool,
        tenant=request.tenant,
        type=request.type,
        defined=now,
        network=request.network,
        address=request.address,
    )


def domain_xml(request: LaunchRequest, config: LibvirtConfig, tag: Tag) -> str:
    """The whole domain. The caller has checked that type and image exist."""
    flavour = config.types[request.type]
    names = Names.of(config.site, request.lease_id)
    domain = ET.Element("domain", type=config.virtualization)
    _text(domain, "name", f"dvn-{request.name}")
    _text(domain, "uuid", names.uuid)
    _text(domain, "title", f"{request.name}: tenant {request.tenant}, pool {request.pool}")
    metadata = ET.SubElement(domain, "metadata")
    ET.SubElement(metadata, f"{{{LEASE_NS}}}lease", tag.attributes)
    ports = ET.SubElement(metadata, f"{{{PORTS_NS}}}ports")
    wanted = {
        "network": f"{request.tenant}/{request.network}",
        "mac": inner_mac(request.address),
        "address": request.address,
        "lease": request.lease_id,  # so that it may have an address that is kept for such
    }
    ET.SubElement(ports, f"{{{PORTS_NS}}}port", wanted)
    _text(domain, "memory", str(flavour.memory_mb), unit="MiB")
    _text(domain, "vcpu", str(flavour.cores), placement="static")
    _boot(domain, config.images[flavour.image])
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    kvm = config.virtualization == "kvm"
    ET.SubElement(domain, "cpu", mode="host-passthrough" if kvm else "maximum")
    ET.SubElement(domain, "clock", offset="utc")
    # A machine that powers itself off (the dead man's switch, the end of its lease) has ended.
    for event, reaction in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _text(domain, f"on_{event}", reaction)
    _devices(domain, request, config, names)
    return ET.tostring(domain, encoding="unicode")


def _boot(domain: ET.Element, image: Image) -> None:
    system = ET.SubElement(domain, "os")
    _text(system, "type", "hvm", arch="x86_64", machine="q35")
    for name in ("kernel", "initrd", "cmdline"):
        value = getattr(image, name)
        if value:
            _text(system, name, value)
    if not image.kernel:
        ET.SubElement(system, "boot", dev="hd")


def _devices(
    domain: ET.Element, request: LaunchRequest, config: LibvirtConfig, names: Names
) -> None:
    devices = ET.SubElement(domain, "devices")
    for volume, kind, target in ((names.disk, "qcow2", "vda"), (names.seed, "raw", "vdb")):
        # The seed, too, is a virtio disk: cloud-init goes by its label, and kernels for clouds
        # need no driver for CD-ROMs then.
        disk = ET.SubElement(devices, "disk", type="volume", device="disk")
        ET.SubElement(disk, "driver", name="qemu", type=kind)
        ET.SubElement(disk, "source", pool=config.storage, volume=volume)
        ET.SubElement(disk, "target", dev=target, bus="virtio")
        if volume == names.seed:
            ET.SubElement(disk, "readonly")
    nic = ET.SubElement(devices, "interface", type="ethernet")
    ET.SubElement(nic, "mac", address=inner_mac(request.address))
    ET.SubElement(nic, "target", dev=tap_name(request.lease_id), managed="yes")
    ET.SubElement(nic, "model", type="virtio")
    ET.SubElement(nic, "mtu", size=str(config.mtu))
    ET.SubElement(devices, "controller", type="usb", model="none")
    serial = ET.SubElement(devices, "serial", type="pty")  # `virsh console`
    ET.SubElement(serial, "target", port="0")
    rng = ET.SubElement(devices, "rng", model="virtio")  # else sshd and munge may wait for entropy
    _text(rng, "backend", "/dev/urandom", model="random")
    ET.SubElement(devices, "memballoon", model="none")


def overlay_xml(names: Names, image: Image, base_path: str, disk_gb: int) -> str:
    """A volume that holds only what the machine changes; the image behind it stays as it is."""
    volume = ET.Element("volume", type="file")
    _text(volume, "name", names.disk)
    _text(volume, "capacity", str(disk_gb), unit="GiB")
    _text(volume, "allocation", "0")
    target = ET.SubElement(volume, "target")
    ET.SubElement(target, "format", type="qcow2")
    backing = ET.SubElement(volume, "backingStore")
    _text(backing, "path", base_path)
    ET.SubElement(backing, "format", type=image.format)
    return ET.tostring(volume, encoding="unicode")


def seed_xml(names: Names, size: int) -> str:
    """The volume of the seed: readable by the hypervisor alone, it holds the machine's token."""
    volume = ET.Element("volume", type="file")
    _text(volume, "name", names.seed)
    _text(volume, "capacity", str(size), unit="bytes")
    target = ET.SubElement(volume, "target")
    ET.SubElement(target, "format", type="raw")
    permissions = ET.SubElement(target, "permissions")
    _text(permissions, "mode", "0600")
    return ET.tostring(volume, encoding="unicode")


def read_domain(xml: str, *, active: bool, ended: bool) -> Domain:
    """A domain from its XML: what it takes of the host, and whose it is."""
    root = ET.fromstring(xml)  # libvirt's own, over its own connection
    memory = root.find("memory")
    unit = _KIB.get(memory.get("unit", "KiB"), 1.0) if memory is not None else 1.0
    amount = float(memory.text or 0) if memory is not None else 0.0
    return Domain(
        uuid=root.findtext("uuid", ""),
        name=root.findtext("name", ""),
        active=active,
        ended=ended,
        cores=int(root.findtext("vcpu", "0") or 0),
        memory_mb=-(-int(amount * unit) // 1024),
        tag=_read_tag(root),
    )


# libvirt reports KiB, and accepts more ("Domain XML format", Memory allocation).
_KIB = {"b": 1 / 1024, "bytes": 1 / 1024, "KiB": 1.0, "MiB": 1024.0, "GiB": 1048576.0}


def _read_tag(root: ET.Element) -> Tag | None:
    found = root.find(f"metadata/{{{LEASE_NS}}}lease")
    if found is None:
        return None
    tag = Tag(
        site=found.get("site", ""),
        lease_id=found.get("id", ""),
        pool=found.get("pool", ""),
        tenant=found.get("tenant", ""),
        type=found.get("type", ""),
        defined=_instant(found.get("defined", "")),
        started=found.get("started") == "yes",
    )
    port = root.find(f"metadata/{{{PORTS_NS}}}ports/{{{PORTS_NS}}}port")
    if port is None:
        return tag
    network = port.get("network", "").partition("/")[2]
    return replace(tag, network=network, address=port.get("address", ""))


def _instant(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _text(parent: ET.Element, name: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, name, attributes).text = text
